"""The translation experiment.

A whole record, an exact resume after a kill, the note's runs as parameter files, and the command
that uses what was trained.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
from command import medseg
from conftest import TOP

from medseg.data.manifest import Item, read_manifest, write_manifest
from medseg.data.spine_cohort import make_spine_cohort
from medseg.data.unpaired import PatchSampling, unpaired_batches
from medseg.data.scans import load_sides
from medseg.runs.execute import checked_parameters, read_parameters
from medseg.runs.folder import run_state
from medseg.translate.perceptual import Perceptual
from medseg.translate.settings import Settings, settings_from
from medseg.translate.step import CycleGAN, fit_cyclegan
from medseg.io.read import read_volume

TRANSLATE, PRESETS = TOP / "nbs" / "experiments" / "translate.ipynb", sorted(
    (TOP / "medseg" / "experiments" / "parameters").glob("*.yaml")
)
TINY = ["-p", "patch", "12", "-p", "steps", "3", "-p", "threads", "1"]


def rows_of(folder, kind="train"):
    return [
        r
        for line in (folder / "rows.jsonl").read_text().splitlines()
        if (r := json.loads(line))["kind"] == kind
    ]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_spine_cohort(
        tmp_path_factory.mktemp("spines"),
        2,
        2,
        2,
        spacing_mr=(5.0, 5.0, 5.0),
        spacing_ct=(5.0, 5.0, 5.0),
        extent_mm=(70.0, 70.0, 80.0),
        workers=1,
    )


@pytest.fixture(scope="module")
def finished(cohort, tmp_path_factory):
    top = tmp_path_factory.mktemp("run")
    done = medseg(
        "run",
        "translate",
        *TINY,
        "-p",
        "manifest",
        cohort,
        "-p",
        "spacing_mm",
        "5",
        "-p",
        "keep_every",
        "2",
        "-p",
        "picture_every",
        "2",
        "--out",
        "run",
        "--json",
        cwd=top,
    )
    assert done.returncode == 0, done.stderr
    return top / "run", json.loads(done.stdout)


def test_a_run_leaves_a_whole_record(finished, cohort):
    folder, told = finished
    assert (
        told["state"] == "finished"
        and told["data"] == "phantom"
        and told["headline"]["test subjects"] == 2
    )
    assert [r["step"] for r in rows_of(folder)] == [0, 1, 2] and all(
        np.isfinite(r["loss"]) for r in rows_of(folder)
    )
    assert {r["subject"] for r in told["table"]} == {"spine_1000", "spine_1001"}
    assert all(
        {"mae_hu", "ms_ssim", "bone_mae_hu", "bone_dice", "map_mae_hu", "identity_mae_hu", "seam"}
        <= set(r)
        for r in told["table"]
    )
    made = sorted(p.name for p in (folder / "made").iterdir())
    assert made == [
        "spine_1000_ct.nii.gz",
        "spine_1001_ct.nii.gz",
    ], "a made CT is named after its person"
    mr, ct = read_volume(cohort.parent / "mr" / "spine_1000_mr.nii.gz"), read_volume(
        folder / "made" / made[0]
    )
    assert (
        ct.shape == mr.shape
        and np.array_equal(ct.affine, mr.affine)
        and ct.voxels.dtype == np.int16
    )
    captions = json.loads((folder / "figures" / "captions.json").read_text())
    assert (
        "spine_0000, spine_0001 (training people)" in captions["step_000002_seed_0.png"]
        and "seed 0" in captions["step_000002_seed_0.png"]
    ), "pictures on the way say who, which seed, which step, and show nobody of the test"
    assert [p.name for p in (folder / "models").iterdir()] == ["step_000002.safetensors"]


def test_training_opens_nothing_hidden(cohort, tmp_path):
    """The whole training path with an eye on every file that is opened.

    The scoring is the only one to open the answers.
    """
    code = f"""
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from medseg.data.manifest import read_manifest
from medseg.data.unpaired import PatchSampling, unpaired_batches
from medseg.data.scans import load_sides
from medseg.translate.predict import TranslateRecipe, translate_scan
from medseg.translate.settings import Settings
from medseg.translate.step import CycleGAN, fit_cyclegan
from medseg.io.read import read_volume
items = read_manifest({str(cohort)!r})
mr, ct = load_sides([i for i in items if i.split == "train"], 5.)
model = CycleGAN(Settings("resnet1", 2, disc_width=2, disc_layers=1, steps=2))
rows = list(fit_cyclegan(model, unpaired_batches(mr, ct, PatchSampling((8, 8, 8)), 2)))
test = next(i for i in items if i.split == "test")
recipe = TranslateRecipe("resnet1", 2, patch=(8, 8, 8), spacing_mm=5.)
translate_scan(model.translator(), recipe, read_volume(test.image))
assert len(rows) == 2 and any("_mr.nii.gz" in p for p in opened), "the hook saw nothing"
assert not [p for p in opened if "hidden" in p], opened
from medseg.translate.scores import hidden_ct
hidden_ct({str(cohort.parent)!r}, test.subject)
assert [p for p in opened if "hidden" in p], "the hook is blind"
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_killed_and_resumed_is_the_unbroken_run(cohort, tmp_path):
    """SIGKILL in the middle.

    The numbers of every step, replay pools and averages included, are those of a run that was
    left alone.
    """
    words = [
        "run",
        "translate",
        "-p",
        "patch",
        "12",
        "-p",
        "steps",
        "24",
        "-p",
        "threads",
        "1",
        "-p",
        "save_every",
        "4",
        "-p",
        "pool",
        "3",
        "-p",
        "disc_spectral",
        "true",
        "-p",
        "manifest",
        str(cohort),
        "-p",
        "spacing_mm",
        "5",
        "-p",
        "turn_sd",
        "5",
        "-p",
        "noise_sd",
        "0.01",
    ]
    assert medseg(*words, "--out", "whole", cwd=tmp_path).returncode == 0
    running = subprocess.Popen(
        [sys.executable, "-m", "medseg", *words, "--out", "cut"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.time() + 120
    while time.time() < deadline and not (
        (tmp_path / "cut" / "rows.jsonl").exists()
        and len((tmp_path / "cut" / "rows.jsonl").read_text().splitlines()) > 9
    ):
        time.sleep(0.01)
    kernels = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(running.pid)], capture_output=True, text=True
    ).stdout.split()
    for pid in [*map(int, kernels), running.pid]:
        os.kill(pid, signal.SIGKILL)
    running.wait()
    # until the system has buried the kernel
    while time.time() < deadline and run_state(tmp_path / "cut") == "running":
        time.sleep(0.05)
    before = rows_of(tmp_path / "cut")
    assert (
        run_state(tmp_path / "cut") == "lost" and 9 < len(before) < 24
    ), f"killed after {len(before)} steps"
    other = medseg("run", "translate", "-p", "lr", "0.1", "--resume", "cut", cwd=tmp_path)
    assert (
        other.returncode == 1 and "lr" in other.stderr and "as when the run began" in other.stderr
    )
    done = medseg("run", "translate", "--resume", "cut", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole, cut = rows_of(tmp_path / "whole"), rows_of(tmp_path / "cut")
    assert [r["step"] for r in cut] == list(range(24)) and len(
        rows_of(tmp_path / "cut", "resumed")
    ) == 1
    assert cut == whole
    tables = [
        json.loads((tmp_path / name / "result.json").read_text())["table"]
        for name in ("whole", "cut")
    ]
    assert tables[0] == tables[1]
    assert (
        medseg("run", "translate", "--resume", "cut", cwd=tmp_path).returncode == 1
    ), "a finished run is not resumed"


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_named_runs(path, cohort, monkeypatch):
    "Each named run is whole as a file, and its reduced form trains."
    # as deep as VGG16, a sixteenth as wide
    monkeypatch.setattr("medseg.translate.loss_terms.Perceptual", partial(Perceptual, width=4))
    values = checked_parameters(TRANSLATE, read_parameters(path))
    assert values["name"] == path.stem
    assert (
        values["epochs"] in (100, 200) if path.stem.startswith("mr2ct") else values["steps"] >= 1000
    )
    given = settings_from(
        {k: v for k, v in values.items() if k in {f.name for f in fields(Settings)}}
    )
    model = CycleGAN(
        replace(given, width=2, disc_width=2, disc_layers=1, steps=2, decay_from=1.0, share=0.1)
    )
    mr, ct = load_sides([i for i in read_manifest(cohort) if i.split == "train"], 5.0)
    rows = list(fit_cyclegan(model, unpaired_batches(mr, ct, PatchSampling((16, 16, 16), 2), 2)))
    assert len(rows) == 2 and {k.split("_")[0] for k in rows[0]} >= set(given.weights)


def test_a_run_of_the_note_by_its_file(cohort, tmp_path):
    path = next(p for p in PRESETS if p.stem == "mr2ct_spectral")
    values = checked_parameters(TRANSLATE, read_parameters(path))
    small = [
        "-p",
        "epochs",
        "0",
        "-p",
        "steps",
        "2",
        "-p",
        "patch",
        "16",
        "-p",
        "width",
        "2",
        "-p",
        "batch",
        "2",
        "-p",
        "disc_width",
        "2",
        "-p",
        "disc_layers",
        "1",
        "-p",
        "share",
        "0.1",
    ]
    done = medseg(
        "run",
        "translate",
        "-f",
        path,
        "-p",
        "manifest",
        cohort,
        *small,
        "--out",
        "run",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert {
        k: config[k] for k in values if k not in ("epochs", "patch", "width", "batch", "steps")
    } == {
        k: v for k, v in values.items() if k not in ("epochs", "patch", "width", "batch", "steps")
    }


def test_the_presets_are_the_note_and_our_long_run():
    assert [p.stem for p in PRESETS] == [
        "mr2ct_new_unetUpdated",
        "mr2ct_perceptual_unet",
        "mr2ct_perceptual_unetUpdated",
        "mr2ct_spectral",
        "mr2ct_unet_batchsize16",
        "mr2ct_unet_gradient_consistency_batchsize8",
        "phantom_unet",
    ]


def test_real_scans_need_no_answer(cohort, tmp_path):
    "A manifest without hidden answers: translated, shown, not scored."
    items = [
        Item(
            f"{m}{i}",
            cohort.parent / m.lower() / f"spine_{n:04d}_{m.lower()}.nii.gz",
            split=split,
            modality=m,
        )
        for m, i, n, split in (("MR", 0, 0, "train"), ("CT", 0, 500, "train"), ("MR", 1, 1, "test"))
    ]
    write_manifest(tmp_path / "real.csv", items)
    done = medseg(
        "run",
        "translate",
        *TINY,
        "-p",
        "manifest",
        tmp_path / "real.csv",
        "--out",
        "run",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (
        told["data"] == "real"
        and "mae_hu" not in told["table"][0]
        and any("plumbing" in n for n in told["notes"])
    )


def test_translate_names_after_the_input(finished, cohort, tmp_path):
    folder, _ = finished
    mr = cohort.parent / "mr" / "spine_1001_mr.nii.gz"
    done = medseg("translate", folder / "model.safetensors", mr, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (
        told["scan"] == "spine_1001_mr_ct.nii.gz"
        and told["unit"] == "HU"
        and told["range"] == [-1000.0, 2000.0]
    )
    apart = (
        read_volume(tmp_path / told["scan"]).voxels.astype(int)
        - read_volume(folder / "made" / "spine_1001_ct.nii.gz").voxels
    )
    assert (
        np.abs(apart).max() <= 1
    ), "the command gives what the run gave, but for the rounding of another order of sums"
    again = medseg("translate", folder / "model.safetensors", mr, cwd=tmp_path)
    assert (
        again.returncode == 1 and "name the result with -o" in again.stderr
    ), "what was not named is not written over"
    for words, told in (
        (["translate", mr, mr], "safetensors file"),
        (["translate", folder / "rows.jsonl", mr], "safetensors file"),
        (["translate", folder / "model.safetensors", tmp_path / "none.nii"], "none.nii"),
    ):
        bad = medseg(*words, cwd=tmp_path)
        assert (
            bad.returncode == 1 and told in bad.stderr and len(bad.stderr.splitlines()) == 1
        ), bad.stderr
