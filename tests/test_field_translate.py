"""Translation as people in the field do it.

A folder a person, true CTs beside the MR, scans of several voxel sizes, nobody marked for
validation.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from command import medseg
from conftest import TOP
from torch import nn

from medseg.data.manifest import Item, item_names, read_manifest, subjects, write_manifest
from medseg.data.split import hold_validation, split_items
from medseg.data.spine_cohort import make_spine_cohort
from medseg.data.scans import load_sides, on_grid
from medseg.translate.predict import TranslateRecipe, save_translator, translate_scan
from medseg.translate.report import translation_figure
from medseg.translate.scores import onto_made_grid, score_ct
from medseg.runs.paired_comparison import shows_sameness
from medseg.io.files import InputError, read_rows
from medseg.io.read import read_volume
from medseg.io.resample import resample, resample_to
from medseg.phantoms.spine_scanner import spine_ct, spine_mr
from medseg.io.volume import Volume, reorient, world
from medseg.io.write import write_volume

pytestmark = pytest.mark.usefixtures("one_thread")
AT = dict(spacing=(6.0, 6.0, 6.0), extent_mm=(60.0, 60.0, 60.0))


class Bright(nn.Module):
    "800 HU, whatever it is shown: what is not 800 in its CT was invented on the way."

    def forward(self, x):
        return torch.full_like(x, 0.2)


def tilted(degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


# --- 14: no rim of air, one voxel size
# ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, spacing, at",
    [
        ((20, 20, 62), (1, 1, 0.7), 3),
        ((62, 20, 20), (0.7, 1, 1), 3),
        ((21, 33, 17), (0.9, 0.8, 1.3), 3),
        ((20, 20, 1), (1, 1, 8), 3),
        ((20, 20, 5), (1, 1, 1), 4),
        ((31, 30, 22), (0.98, 0.98, 3.3), (1.5, 1.5, 4.0)),
        ((9, 11, 13), (5, 5, 5), 3.3),
    ],
)
@pytest.mark.parametrize("codes, degrees", [("RAS", 0), ("LPI", 0), ("SAR", 0), ("RAS", 17)])
def test_a_made_ct_has_no_rim_of_air(shape, spacing, at, codes, degrees):
    mr = Volume(
        np.random.default_rng(0).integers(0, 900, shape).astype(np.int16),
        tilted(degrees) @ np.diag([*spacing, 1.0]),
    )
    made, _ = translate_scan(
        Bright(), TranslateRecipe(patch=(8, 8, 8), overlap=0, spacing_mm=at), reorient(mr, codes)
    )
    assert made.shape == reorient(mr, codes).shape and np.unique(made.voxels).tolist() == [800]


@pytest.mark.parametrize("shape", [(62, 9, 9), (9, 9, 62), (7, 5, 1)])
def test_there_and_back_invents_nothing_at_the_border(shape):
    for degrees, coarse in ((0, 3), (0, (2, 5, 4)), (17, 3)):
        affine = tilted(degrees) @ np.diag([0.7, 0.7, 0.7, 1.0])
        ct, labels = Volume(np.full(shape, 40, np.int16), affine), Volume(
            np.ones(shape, np.uint8), affine
        )
        assert np.unique(resample_to(resample(ct, coarse), ct, outside=-1000).voxels).tolist() == [
            40
        ]
        assert resample_to(resample(labels, coarse, labels=True), labels, labels=True).voxels.all()
    far = Volume(
        np.zeros(shape, np.int16),
        affine.copy() @ np.array([[1, 0, 0, 5.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    )
    assert (
        resample_to(ct, far, outside=-1000).voxels == -1000
    ).any(), "beyond the field of view there still is nothing"


@pytest.mark.parametrize("other", [(1.0, 1.0, 1.0), (6.0, 6.0, 3.0), (6.0, 7.0, 6.0)])
def test_scans_of_several_voxel_sizes_do_not_train_together(tmp_path, other):
    "Whichever scan and whichever side is another: refused, or brought to the size that was named."
    shape, files, dice = (12, 12, 12), {}, np.random.default_rng(1)
    ct = np.where(dice.random(shape) < 0.5, -1000, 40) + dice.integers(-9, 9, shape)
    for name, spacing in (
        ("a", (6.0,) * 3),
        ("b", (6.0,) * 3),
        ("c", other),
        ("d", (6.01, 5.99, 6.0)),
    ):
        for kind, voxels in (("CT", ct), ("MR", dice.integers(0, 900, shape))):
            files[name, kind] = tmp_path / f"{name}_{kind}.nii.gz"
            write_volume(
                files[name, kind], Volume(voxels.astype(np.int16), np.diag([*spacing, 1.0]))
            )
    for kinds in (dict(a="MR", b="CT", c="CT"), dict(a="MR", c="MR", b="CT")):
        items = [Item(n, files[n, k], modality=k) for n, k in kinds.items()]
        with pytest.raises(InputError, match="voxel size.*spacing_mm|spacing_mm"):
            load_sides(items)
        assert {s.spacing for side in load_sides(items, 6.0) for s in side} == {(6.0, 6.0, 6.0)}
    assert load_sides(
        [Item("a", files["a", "MR"], modality="MR"), Item("d", files["d", "CT"], modality="CT")]
    ), "what a header rounds is one size"
    assert on_grid(read_volume(files["c", "CT"]), (6.0, 6.0, 6.0)).spacing == (6.0, 6.0, 6.0)


# --- 17: nothing is written over
# ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("a/b", "a_b", "a b", "a:b"),
        ("C", "C", "C-1", "c-1"),
        ("Anna", "anna", "ANNA"),
        ("x.", "x", ".x"),
        ("é", "é", "è", "\u00fc"),
        ("ü" * 90 + "1", "ü" * 90 + "2"),
        ("C", "C", "C", "C-1", "C-2", "C-3"),
    ],
)
def test_no_two_scans_share_a_file_name(names):
    made = item_names([Item(s, f"{k}/mr.nii.gz") for k, s in enumerate(names)])
    assert len({n.lower() for n in made}) == len(names), made
    assert all(n == n.encode("ascii").decode() and not set(n) & set("/\\: ") for n in made)


def test_translate_without_a_name_writes_over_nothing(tmp_path):
    recipe = TranslateRecipe("resnet1", 2, patch=(8, 8, 8))
    save_translator(tmp_path / "model.safetensors", recipe.net(), recipe, {})
    for who in ("p1", "p2"):
        write_volume(tmp_path / who / "mr.nii.gz", spine_mr(int(who[1]), **AT).image)
    first = medseg("translate", "model.safetensors", "p1/mr.nii.gz", cwd=tmp_path)
    before = (tmp_path / "mr_ct.nii.gz").read_bytes()
    second = medseg("translate", "model.safetensors", "p2/mr.nii.gz", cwd=tmp_path)
    assert (
        first.returncode == 0
        and second.returncode == 1
        and "-o" in second.stderr
        and len(second.stderr.splitlines()) == 1
    )
    assert (tmp_path / "mr_ct.nii.gz").read_bytes() == before


# --- 18: titles say what is in the picture
# ------------------------------------------------------------------------------


@pytest.mark.parametrize("known", ["nn", "nk", "kn", "kk", "n", "nnn"])
def test_titles_are_those_of_what_is_drawn(known):
    mr, ct = spine_mr(0, **AT).image, spine_ct(0, **AT).image
    fig = translation_figure(
        [(f"person {k}", mr, ct, ct if one == "k" else None) for k, one in enumerate(known)]
    )
    across = 4 if "k" in known else 2
    assert len(fig.axes) == across * len(known)
    assert [ax.get_title() for ax in fig.axes] == [
        "MR",
        "made CT",
        "measured CT",
        "made − measured",
    ][:across] + [""] * across * (len(known) - 1)
    for k, one in enumerate(known):
        row = fig.axes[across * k : across * (k + 1)]
        assert [bool(ax.images) for ax in row] == [True, True] + [one == "k"] * (
            across - 2
        ), "a title never stands over another's picture"
        assert row[0].texts[0].get_text() == f"person {k}"


# --- 19: the truth
# ------------------------------------------------------------------------------


def grown(ct, by=2):
    "A CT that shows more than the MR, stored another way, on a finer grid."
    home = Volume(np.pad(ct.voxels, by, mode="edge"), ct.affine.copy())
    shift = home.affine.copy()
    shift[:3, 3] = world(ct.affine, (-by,) * 3)
    return reorient(resample(Volume(home.voxels, shift), 4.0), "LPI")


def test_a_truth_is_placed_by_its_affine():
    ct = spine_ct(3, **AT).image
    real, mask = onto_made_grid(grown(ct), ct)
    assert real.shape == ct.shape and mask.any() and score_ct(ct, real, mask)["mae_hu"] < 60
    shifted = grown(ct).affine.copy()
    shifted[0, 3] += 18
    moved, moved_mask = onto_made_grid(Volume(grown(ct).voxels, shifted), ct)
    assert (
        score_ct(ct, moved, moved_mask)["mae_hu"] > 2 * score_ct(ct, real, mask)["mae_hu"]
    ), "index is not place"
    with pytest.raises(ValueError, match="check their affines"):
        onto_made_grid(
            Volume(ct.voxels, ct.affine + np.array([[0, 0, 0, 0]] * 2 + [[0, 0, 0, 900], [0] * 4])),
            ct,
        )


@pytest.mark.parametrize(
    "rows, word",
    [
        ("a,a.nii.gz,train,MR,t.nii.gz", "row marked test"),
        ("a,a.nii.gz,,MR,t.nii.gz", "row marked test"),
        ("a,a.nii.gz,validation,MR,t.nii.gz", "row marked test"),
        ("a,a.nii.gz,test,MR,b.nii.gz\nb,b.nii.gz,train,CT,", "image of subject b"),
        ("a,a.nii.gz,test,MR,link.nii.gz\nb,b.nii.gz,train,CT,", "image of subject b"),
        ("a,a.nii.gz,test,MR,hard.nii.gz\nb,b.nii.gz,train,CT,", "image of subject b"),
        ("a,a.nii.gz,test,MR,t.nii.gz\nb,b.nii.gz,test,MR,./t.nii.gz", "truth of subject a"),
        ("a,a.nii.gz,test,MR,none.nii.gz", "no file"),
        ("a,a.nii.gz,test,MR,t.nii.gz\na,b.nii.gz,train,CT,", "subjects a in train and in test"),
    ],
)
def test_a_truth_that_training_could_see_is_refused(tmp_path, rows, word):
    for name in "abt":
        (tmp_path / f"{name}.nii.gz").touch()
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "b.nii.gz")
    os.link(tmp_path / "b.nii.gz", tmp_path / "hard.nii.gz")
    (tmp_path / "m.csv").write_text("subject,image,split,modality,truth\n" + rows + "\n")
    with pytest.raises(InputError, match=word):
        read_manifest(tmp_path / "m.csv")


WATCH = """
import os, sys
def seen(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)) and "truth_ct" in os.fsdecode(args[0]):
        with open(os.environ["OPENED"], "a") as f:
            f.write(f"{os.path.exists(os.environ['MODEL'])}\\n")
sys.addaudithook(seen)
"""


@pytest.fixture(scope="module")
def field_run(tmp_path_factory):
    """Eight people with MR, two with CT, five tested.

    Every MR of the test is called mr.nii.gz, four true CTs lie beside, one of them a copy of a
    training CT, one the CT of somebody far away.
    """
    top = tmp_path_factory.mktemp("field")
    items = [
        Item(f"m{k}", top / f"m{k}" / "mr.nii.gz", split="train", modality="MR") for k in range(8)
    ] + [Item(f"c{k}", top / f"c{k}" / "ct.nii.gz", split="train", modality="CT") for k in (0, 1)]
    for i in items:
        write_volume(
            i.image,
            (spine_mr if i.modality == "MR" else spine_ct)(
                int(i.subject[1:]) + (50 if i.modality == "CT" else 0), **AT
            ).image,
        )
    for k, who in enumerate(("t/1", "t_1", "T_1", "t2", "t3")):
        folder = top / f"test{k}"
        write_volume(folder / "mr.nii.gz", spine_mr(100 + k, **AT).image)
        truth = [
            grown(spine_ct(100, **AT).image),
            spine_ct(101, **AT).image,
            read_volume(items[8].image),
            Volume(
                spine_ct(103, **AT).image.voxels,
                np.diag([6.0, 6.0, 6.0, 1.0])
                + np.array([[0] * 4] * 2 + [[0, 0, 0, 5000.0], [0] * 4]),
            ),
            None,
        ][k]
        if truth:
            write_volume(folder / "truth_ct.nii.gz", truth)
        items.append(
            Item(
                who,
                folder / "mr.nii.gz",
                split="test",
                modality="MR",
                truth=folder / "truth_ct.nii.gz" if truth else None,
            )
        )
    write_manifest(top / "m.csv", items)
    (top / "hook").mkdir()
    (top / "hook" / "sitecustomize.py").write_text(WATCH)
    words = [
        "run",
        "translate",
        "-p",
        "manifest",
        "m.csv",
        "-p",
        "spacing_mm",
        "0",
        "-p",
        "patch",
        "8",
        "-p",
        "steps",
        "4",
        "-p",
        "alarm_every",
        "2",
        "-p",
        "picture_every",
        "2",
        "-p",
        "threads",
        "1",
        "--out",
        "run",
    ]
    path = os.pathsep.join([str(top / "hook"), str(TOP), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "medseg", *words],
        cwd=top,
        env=os.environ
        | dict(
            PYTHONPATH=path,
            OPENED=str(top / "opened"),
            MODEL=str(top / "run" / "model.safetensors"),
        ),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return top, json.loads((top / "run" / "result.json").read_text())


def test_true_ct_are_opened_after_training_and_scored(field_run):
    top, told = field_run
    opened = (top / "opened").read_text().split()
    assert len(opened) >= 4 and set(opened) == {
        "True"
    }, "not one truth was opened before the trained model was saved"
    rows = dict(zip(("t/1", "t_1", "T_1", "t2", "t3"), told["table"]))
    assert [who for who, r in rows.items() if np.isfinite(r.get("mae_hu", np.nan))] == [
        "t/1",
        "t_1",
    ]
    assert all(
        r["map_mae_hu"] < 150 for who, r in rows.items() if "mae_hu" in r
    ), "placed by its affine, a table comes near it"
    notes = " ".join(told["notes"])
    assert (
        "CT of c0, which was trained on" in notes
        and "check their affines" in notes
        and "2 of 5 test scans" in notes
    ), told["notes"]


def test_every_made_ct_is_there_and_belongs_to_its_person(field_run):
    top, told = field_run
    files = sorted(p.name.removesuffix("_ct.nii.gz") for p in (top / "run" / "made").iterdir())
    assert (
        files == sorted(r["scan"] for r in told["table"])
        and len({f.lower() for f in files}) == 5 == told["headline"]["test subjects"]
    )


def test_the_alarm_looks_at_people_who_are_not_tested(field_run):
    top, told = field_run
    said = next(n for n in told["notes"] if "held out" in n)
    held = set(said.rstrip(".").split(": ")[-1].split(", "))
    assert len(held) == 4 and held <= {f"m{k}" for k in range(8)}, said
    assert [r["step"] for r in read_rows(top / "run" / "rows.jsonl") if r["kind"] == "panel"] == [
        2,
        4,
    ]
    caption = json.loads((top / "run" / "figures" / "captions.json").read_text())[
        "step_000002_seed_0.png"
    ]
    assert "validation people" in caption and not any(f"t{k}" in caption for k in (2, 3))


# --- 5: validation people, and a claim that can fail
# ------------------------------------------------------------------------------


def test_a_cohort_has_validation_people_of_its_own(tmp_path):
    cohort = make_spine_cohort(
        tmp_path,
        1,
        1,
        1,
        spacing_mr=(8.0,) * 3,
        spacing_ct=(8.0,) * 3,
        extent_mm=(56.0,) * 3,
        workers=1,
        validation=2,
    )
    items = read_manifest(cohort)
    train, test = split_items(items)
    left, held, said = hold_validation(items, train, "MR", 2)
    assert left == train and subjects(held) == {"spine_1500", "spine_1501"} and "as marked" in said
    assert not subjects(held) & subjects(train) and not subjects(held) & subjects(test)


@pytest.mark.parametrize(
    "text, word",
    [
        ("a,a.nii.gz,validation,\na,b.nii.gz,test,", "validation and in test"),
        ("a,a.nii.gz,train,\na,b.nii.gz,val,", "train and in validation"),
        ("a,a.nii.gz,train,\nb,b.nii.gz,validation,a.nii.gz", "belongs to subject a"),
        ("a,a.nii.gz,train,gone.nii.gz\nb,b.nii.gz,test,gone.nii.gz", "belongs to subject a"),
        ("a,a.nii.gz,valid,", "train, validation, test or nothing"),
    ],
)
def test_people_stand_on_one_side(tmp_path, text, word):
    for name in "ab":
        (tmp_path / f"{name}.nii.gz").touch()
    (tmp_path / "m.csv").write_text("subject,image,split,parent\n" + text + "\n")
    with pytest.raises(InputError, match=word):
        read_manifest(tmp_path / "m.csv")


@pytest.mark.parametrize(
    "marked, train, fine", [(0, 8, True), (0, 7, False), (3, 20, False), (4, 1, True)]
)
def test_too_few_validation_people_are_an_error_and_never_test_people(marked, train, fine):
    items = [
        Item(f"{side}{k}", f"{side}{k}", split=side, modality="MR")
        for side, n in (("train", train), ("validation", marked), ("test", 9))
        for k in range(n)
    ]
    if not fine:
        with pytest.raises(InputError, match="validation people"):
            hold_validation(items, split_items(items)[0], "MR", 4)
        return
    left, held, _ = hold_validation(items, split_items(items)[0], "MR", 4)
    assert (
        len(subjects(held)) == 4
        and left
        and not subjects(left) & subjects(held)
        and not any(s.startswith("test") for s in subjects(held) | subjects(left))
    )


def test_a_sound_set_never_shows_that_all_are_alike():
    """The kept trainings of the note.

    B33 in small is alike only where the true CTs are alike too, so B34 is not confirmed by them;
    one CT for all would be.
    """
    rows = [
        r
        for r in read_rows(TOP / "log" / "symptoms-note-ce98d2" / "rows.jsonl")
        if r["kind"] == "marks"
    ]

    def last(label, folder):
        of = [r for r in rows if r["label"] == label and r["folder"] == folder]
        return [r for r in of if r["step"] == max(q["step"] for q in of)]

    for folder in ("people", "noisy", "turned"):
        truth = last("the true CT", folder)
        assert not shows_sameness(
            truth, truth
        ), "a rule that the right answer passes proves nothing"
    assert not any(
        shows_sameness(last("B33", f), last("the true CT", f))
        for f in ("people", "noisy", "turned")
    )
    assert shows_sameness(
        last("one CT for all", "people"), last("the true CT", "people")
    ), "and it can be passed"
