"The command line as a newcomer types it: results on stdout, one line for an error, exit statuses."

import json
import subprocess
import sys

import command
import numpy as np
import pytest

from medseg.data.manifest import read_manifest
from medseg.segment.predict import SegmentRecipe, save_model
from medseg.io.read import read_volume
from medseg.io.volume import ORIENTATIONS, Volume, reorient
from medseg.io.write import write_labels, write_volume


def typed(*words):
    "What a new process answers."
    done = subprocess.run(
        [sys.executable, "-m", "medseg", *map(str, words)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout, done.stderr


def medseg(*words, cwd="."):
    "The same, asked in this process."
    done = command.medseg(*words, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


def refused(*words, cwd=".", ask=medseg) -> str:
    "The one line on stderr of a command that must fail with status 1."
    status, out, err = ask(*words) if ask is typed else ask(*words, cwd=cwd)
    assert (status, out) == (1, ""), (status, out, err)
    lines = err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in err, err
    return lines[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A small untrained network: its masks are nonsense, and must still lie where they belong."
    import torch

    torch.manual_seed(0)
    recipe = SegmentRecipe(depth=3, width=4, levels=2, inplane_mm=8.0)
    return save_model(
        tmp_path_factory.mktemp("model") / "model.safetensors", recipe.net().eval(), recipe, {}
    )


COMMANDS = (
    "check",
    "survey",
    "related",
    "fetch",
    "run",
    "predict",
    "evaluate",
    "log",
    "demo",
    "lab",
    "viewer-assets",
    "bone",
    "collapse",
    "compare",
)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(name):
    status, out, _ = typed(name, "--help")
    assert status == 0 and "Example" in out and f"medseg {name}" in out


def test_wrong_usage_is_status_2():
    for words in (
        ["nonsense"],
        ["predict"],
        ["survey"],
        ["check", "a.nii", "--classes", "a,b"],
        ["run", "segment", "-p", "steps"],
    ):
        status, _, err = typed(*words)
        assert status == 2 and "Traceback" not in err, words


def test_check(cohort, tmp_path):
    item = read_manifest(cohort)[0]
    status, out, _ = medseg("check", item.image, "--label", item.label, "--json")
    assert status == 0 and json.loads(out)[0]["status"] == "ok"
    (tmp_path / "page.nii.gz").write_text("<html>404</html>")
    status, out, err = medseg("check", item.image, tmp_path / "page.nii.gz", "--json")
    rows = json.loads(out)
    assert status == 1 and [r["status"] for r in rows] == ["ok", "refused"] and rows[1]["code"]
    assert set(rows[0]) == {"path", "status", "code", "message", "sides"}
    assert set(rows[1]) == {"path", "status", "code", "message"}
    # folders are searched; what is found is listed by its own path
    status, out, _ = medseg("check", tmp_path, item.image.parent, "--json")
    rows = json.loads(out)
    assert status == 1 and {r["path"] for r in rows} >= {
        str(item.image),
        str(tmp_path / "page.nii.gz"),
    }


def test_survey(cohort):
    status, out, err = medseg("survey", cohort.parent, "--json")
    found = json.loads(out)
    assert status == 0 and err == "" and len(found["volumes"]) == 8 and not found["refused"]
    assert {
        "path",
        "shape",
        "spacing",
        "axcodes",
        "extent_mm",
        "dtype",
        "modality",
        "flags",
    } <= set(found["volumes"][0])
    assert "8 volumes" in medseg("survey", cohort.parent)[1]


def test_predict_then_evaluate(cohort, model, tmp_path):
    item = read_manifest(cohort)[-1]
    status, out, _ = medseg("predict", model, item.image, "-o", tmp_path / "mask.nii.gz", "--json")
    scan, mask = read_volume(item.image), read_volume(tmp_path / "mask.nii.gz", role="labels")
    assert status == 0 and json.loads(out)["shape"] == list(scan.shape)
    assert mask.shape == scan.shape and np.array_equal(mask.affine, scan.affine)
    status, out, _ = medseg(
        "evaluate", tmp_path / "mask.nii.gz", item.label, "--label-values", "1+2", "--json"
    )
    assert status == 0 and set(json.loads(out)["classes"]["1"]) == {
        "dice",
        "hd95_mm",
        "assd_mm",
        "pred_ml",
        "label_ml",
        "false_parts",
        "false_ml",
    }
    status, out, _ = medseg("evaluate", item.label, item.label, "--json")
    assert {c["dice"] for c in json.loads(out)["classes"].values()} == {1.0}


def test_predict_in_all_48_axis_orders(cohort, model, tmp_path):
    "The mask has exactly the file's shape and affine, and covers the same voxels in the patient."
    from medseg.segment.predict import load_model, predict

    net, recipe = load_model(model)
    scan, seen = read_volume(read_manifest(cohort)[0].image), set()
    home = None
    for codes in ORIENTATIONS:
        turned = reorient(scan, codes)
        write_volume(tmp_path / "scan.nii.gz", Volume(np.asarray(turned.voxels), turned.affine))
        stored = read_volume(tmp_path / "scan.nii.gz")
        write_labels(tmp_path / "mask.nii.gz", predict(net, recipe, stored))
        mask = read_volume(tmp_path / "mask.nii.gz", role="labels")
        assert (
            stored.axcodes == codes
            and mask.shape == stored.shape
            and np.array_equal(mask.affine, stored.affine)
        )
        ras = reorient(mask, "RAS")
        home = ras if home is None else home
        assert np.array_equal(ras.voxels, home.voxels) and np.allclose(
            ras.affine, home.affine, atol=1e-4
        )
        seen.add(codes)
    assert len(seen) == 48 and 0 < home.voxels.mean() < 1


def test_errors_are_one_line(cohort, model, tmp_path):
    item = read_manifest(cohort)[0]
    whole = item.image.read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "mask.nii.gz"
    for ask in (typed, medseg):
        assert "cut.nii.gz" in refused(
            "predict", model, tmp_path / "cut.nii.gz", "-o", out, ask=ask
        )
    assert "ending" in refused("predict", model, item.image, "-o", tmp_path / "mask.png")
    assert "safetensors" in refused("predict", item.image, item.image, "-o", out)
    assert "nowhere" in refused("evaluate", tmp_path / "nowhere.nii.gz", item.label)
    for ask in (typed, medseg):
        assert "no such notebook" in refused("run", "segmnt", ask=ask)
    assert "needs only manifest, label_values" in refused(
        "run", "segment", "-p", "stepz", "3", cwd=tmp_path
    )
    assert "needs a value like" in refused("run", "segment", "-p", "steps", "1e5", cwd=tmp_path)
    assert "check the path" in refused(
        "demo", "--data", tmp_path / "none.csv", "--out", tmp_path / "demo"
    )
    assert not out.exists() and not list(tmp_path.glob(".*part*"))


def test_debug_shows_the_traceback(tmp_path):
    status, _, err = typed("--debug", "evaluate", tmp_path / "a.nii", tmp_path / "b.nii")
    assert status == 1 and "Traceback" in err
