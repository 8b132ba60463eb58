"Unpaired training: what it draws, that a stop changes nothing, and that it cannot see the answers."

import ast
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TOP
from medseg.data.manifest import Item, read_manifest, subjects
from medseg.data.split import split_items
from medseg.data.spine_cohort import make_spine_cohort
from medseg.data.unpaired import PatchSampling, make_patch, unpaired_batch, unpaired_batches
from medseg.data.scans import HIDDEN, load_scan, load_sides, make_scan, scale_ct, unscale_ct
from medseg.translate.scores import hidden_ct
from medseg.io.files import InputError
from medseg.io.volume import ORIENTATIONS, Volume, reorient

OPENED = []  # paths that Python opened, while `watching` holds something


def _watch(event, args):
    if WATCHING and event == "open" and isinstance(args[0], (str, bytes)):
        OPENED.append(str(args[0]))


WATCHING = []
sys.addaudithook(_watch)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_spine_cohort(
        tmp_path_factory.mktemp("spine"),
        mr=2,
        ct=2,
        test=1,
        spacing_mr=(6.0, 6.0, 6.0),
        spacing_ct=(5.0, 5.0, 5.0),
        extent_mm=(60.0, 60.0, 72.0),
        workers=1,
    )


@pytest.fixture(scope="module")
def sides(cohort):
    return load_sides(split_items(read_manifest(cohort))[0], 5.0)


EVERYTHING = PatchSampling(
    (12, 10, 14),
    batch=2,
    seed=3,
    turn_sd=10.0,
    noise_sd=(0.01, 0.05, 0.1),
    noise_mean=0.1,
    flip=True,
    elastic=3.0,
    contrast=0.1,
)


def test_training_opens_no_hidden_answer(cohort):
    folder = cohort.parent
    assert len(list((folder / HIDDEN).iterdir())) == 2, "there is something to be hidden"
    OPENED.clear()
    WATCHING.append(1)
    try:
        items = read_manifest(cohort)
        mr, ct = load_sides(items, 6.0)
        for _ in unpaired_batches(mr, ct, EVERYTHING, 3):
            pass
    finally:
        WATCHING.clear()
    assert sum(path.endswith(".nii.gz") for path in OPENED) >= len(items), "the watch works"
    assert not [path for path in OPENED if HIDDEN in path]


def test_no_manifest_names_an_answer_and_none_can(cohort):
    folder = cohort.parent
    items = read_manifest(cohort)
    assert all(HIDDEN not in i.image.parts and i.label is None for i in items)
    train, test = split_items(items)
    assert {i.modality for i in test} == {"MR"} and not subjects(train) & subjects(test)
    assert not subjects([i for i in train if i.modality == "MR"]) & subjects(
        [i for i in train if i.modality == "CT"]
    ), "unpaired"
    answer = next((folder / HIDDEN).glob("*_ct.nii.gz"))
    with pytest.raises(InputError, match="leave answers to the scoring"):
        load_scan(Item("x", answer, modality="CT"))
    (folder / "harmless.nii.gz").symlink_to(answer)
    with pytest.raises(InputError, match="leave answers to the scoring"):
        load_scan(Item("x", folder / "harmless.nii.gz", modality="CT"))
    (folder / "harmless.nii.gz").unlink()


def test_only_scoring_has_a_way_to_the_answers():
    """The name of the folder stands in three modules.

    Who writes it, who refuses it, who scores by it.
    """
    named = set()
    for path in (TOP / "medseg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Constant)
                and node.value == HIDDEN
                or isinstance(node, ast.Name)
                and node.id == "HIDDEN"
            ):
                named.add(f"{path.parent.name}.{path.stem}")
    assert {"data.scans", "data.spine_cohort", "translate.scores"} == named
    using = [
        p.stem
        for p in (TOP / "medseg").rglob("*.py")
        if "hidden_ct" in p.read_text() and p.stem != "_modidx"
    ]
    assert not {"unpaired", "pool", "cyclegan", "step", "state", "loop", "predict"} & set(using)


def test_scoring_can_read_them(cohort):
    subject = next(i.subject for i in read_manifest(cohort) if i.split == "test")
    ct, labels = hidden_ct(cohort.parent, subject)
    assert ct.shape == labels.shape and ct.voxels.dtype == np.int16 and labels.voxels.max() > 1


def test_a_step_is_a_function_of_seed_and_step(sides):
    whole = list(unpaired_batches(*sides, EVERYTHING, 6))
    for (a, b, who), (c, d, other) in zip(
        whole[4:], unpaired_batches(*sides, EVERYTHING, 6, first=4)
    ):
        assert torch.equal(a, c) and torch.equal(b, d) and who == other
    assert not torch.equal(whole[0][0], whole[1][0])
    again = unpaired_batch(*sides, replace(EVERYTHING, seed=4), 0)
    assert not torch.equal(whole[0][0], again[0])
    larger = unpaired_batch(*sides, replace(EVERYTHING, batch=5), 2)
    assert torch.equal(larger[0][:2], whole[2][0]) and torch.equal(larger[1][:2], whole[2][1])
    alone = unpaired_batch(sides[0], sides[1][:1], EVERYTHING, 2)
    assert torch.equal(alone[0], whole[2][0]), "the MR patches do not depend on which CT there is"


def test_every_patch_can_be_made_again_from_its_record(sides):
    scans = {s.name: s for side in sides for s in side}
    for mr, ct, who in unpaired_batches(*sides, EVERYTHING, 4):
        who = json.loads(json.dumps(who))
        for tensor, records in ((mr, who["mr"]), (ct, who["ct"])):
            for x, record in zip(tensor, records):
                assert np.array_equal(make_patch(scans[record["scan"]], record), x[0].numpy())


def test_any_patch_of_any_scan():
    rng = np.random.default_rng(0)
    for _ in range(40):
        shape, size = rng.integers(1, 20, 3), tuple(int(k) for k in rng.integers(1, 24, 3))
        voxels = rng.integers(-1000, 2000, shape).astype(np.int16)
        voxels.ravel()[0] = 4000
        scan = make_scan("s", Volume(voxels, np.diag([*rng.uniform(0.5, 4, 3), 1])), "CT")
        how = PatchSampling(
            size,
            seed=int(rng.integers(100)),
            turn_sd=float(rng.choice([0, 20])),
            elastic=float(rng.choice([0, 4])),
            flip=True,
            noise_sd=0.05,
        )
        x, y, _ = unpaired_batch([scan], [scan], how, 0)
        assert tuple(x.shape) == (1, 1, *size) == tuple(y.shape) and x.dtype == torch.float32
        assert x.isfinite().all() and -1 <= x.min() and x.max() <= 1


def test_the_whole_scan_lies_in_a_patch_that_is_larger():
    voxels = np.random.default_rng(0).integers(-900, 1900, (9, 8, 5)).astype(np.int16)
    scan = make_scan("s", Volume(voxels, np.eye(4)), "CT")
    for step in range(20):
        x = unpaired_batch([scan], [scan], PatchSampling((16, 16, 16)), step)[1][0, 0].numpy()
        first = np.argwhere(x > -1).min(0)
        assert np.allclose(
            unscale_ct(x[tuple(slice(a, a + n) for a, n in zip(first, voxels.shape))]),
            voxels,
            atol=0.01,
        )
        assert (x > -1).sum() == voxels.size


def test_orientation_does_not_matter():
    rng = np.random.default_rng(1)
    v = Volume(
        rng.integers(-1000, 1000, (9, 10, 11)).astype(np.int16), np.diag([1.0, 2.0, 3.0, 1.0])
    )
    home = make_scan("s", v, "CT")
    for codes in ORIENTATIONS[::3]:
        scan = make_scan("s", reorient(v, codes), "CT")
        assert np.array_equal(scan.voxels, home.voxels) and scan.spacing == home.spacing


def test_the_numbers_of_the_note_are_drawn():
    scan = make_scan(
        "s", Volume(np.random.default_rng(0).normal(500, 200, (30, 30, 30)), np.eye(4)), "MR"
    )
    draw = PatchSampling(
        (4, 4, 4), batch=1, turn_sd=10.0, noise_sd=(0.01, 0.05, 0.1), noise_mean=0.1, flip=True
    )
    records = [unpaired_batch([scan], [scan], draw, step)[2]["mr"][0] for step in range(600)]
    angles = [r["turn"]["degrees"] for r in records]
    assert abs(np.mean(angles)) < 1.5 and 9 < np.std(angles) < 11
    assert {r["turn"]["plane"] for r in records} == {0, 1, 2}
    assert all(
        abs(np.mean([r["sd"] == s for r in records]) - 1 / 3) < 0.06 for s in (0.01, 0.05, 0.1)
    )
    assert (
        max(abs(r["mean"]) for r in records) <= 0.1
        and abs(np.mean([r["mean"] for r in records])) < 0.01
    )
    assert 0.4 < np.mean([r["flip"] for r in records]) < 0.6


def test_noise_has_the_spread_that_was_asked_for():
    scan = make_scan("s", Volume(np.full((32, 32, 32), 500, np.int16), np.eye(4)), "CT")
    for sd in (0.01, 0.05, 0.1):
        x = unpaired_batch([scan], [scan], PatchSampling((32, 32, 32), noise_sd=sd), 0)[1]
        assert (
            abs(x.std().item() / 2 - sd) < 0.02 * sd
            and abs(x.mean().item() - scale_ct(np.array(500.0)).item()) < 0.01
        )
