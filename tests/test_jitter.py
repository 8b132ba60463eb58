"""Jitter between slices grows with what is wrong and with nothing else.

Doubt is worth what it finds.
"""

import json

import numpy as np
import pytest
from command import experiment, medseg
from scipy.ndimage import gaussian_filter

from medseg.bone.threshold import bone_mask, bone_uncertainty
from medseg.bone.uncertainty import (
    risk_coverage_area,
    vote_uncertainty,
    error_auroc,
    score_uncertainty,
    risk_coverage,
)
from medseg.bone.jitter import bone_jitter, flicker, slice_jitter, reversal_share
from medseg.phantoms.spine_scanner import spine_ct
from medseg.phantoms.vertebra import BONE
from medseg.io.volume import Volume

RNG = np.random.default_rng(0)
SMOOTH = Volume(
    300 * gaussian_filter(RNG.normal(size=(40, 40, 40)), 4) / 0.02, np.diag([2, 2, 2, 1.0])
)
ALL = np.ones(SMOOTH.shape, bool)


def shifted(v, voxels, axis=2):
    "Each slice across the axis rolled by a whole number of voxels."
    push = np.rint(np.random.default_rng(1).normal(0, 1, v.shape[axis]) * voxels).astype(int)
    other = 0 if axis else 1
    slices = [
        np.roll(np.take(v.voxels, k, axis), p, other if other < axis else other - 1)
        for k, p in enumerate(push)
    ]
    return Volume(np.stack(slices, axis), v.affine)


@pytest.mark.parametrize("axis", range(3))
def test_jitter_grows_with_the_shift_along_each_axis(axis):
    found = [
        slice_jitter(shifted(SMOOTH, k, axis), SMOOTH, ALL, axis)["jitter_hu"] for k in (0, 1, 2, 3)
    ]
    assert found[0] == 0 and (np.diff(found) > 0).all()
    across = slice_jitter(shifted(SMOOTH, 3, axis), SMOOTH, ALL, (axis + 1) % 3)["jitter_hu"]
    assert across < 0.7 * found[-1], "a shift is seen across the slices that were shifted"


def test_neither_noise_nor_blur_nor_units_are_jitter():
    rough = slice_jitter(shifted(SMOOTH, 2), SMOOTH, ALL)["jitter_hu"]
    noisy = Volume(SMOOTH.voxels + RNG.normal(0, 50, SMOOTH.shape), SMOOTH.affine)
    soft = Volume(gaussian_filter(SMOOTH.voxels, 2), SMOOTH.affine)
    assert max(slice_jitter(v, SMOOTH, ALL)["jitter_hu"] for v in (noisy, soft)) < 0.1 * rough
    double = Volume(2 * shifted(SMOOTH, 2).voxels, SMOOTH.affine)
    assert slice_jitter(double, Volume(2 * SMOOTH.voxels, SMOOTH.affine), ALL)[
        "jitter_hu"
    ] == pytest.approx(2 * rough, rel=1e-3)


def test_thick_slices_are_compared_with_equally_coarse_steps():
    """A smooth volume with every third slice kept has no jitter, though it changes three times as
    much between slices.
    """
    thick = Volume(SMOOTH.voxels[:, :, ::3], np.diag([2, 2, 6, 1.0]))
    there = np.ones(thick.shape, bool)
    assert slice_jitter(thick, None, there)["ratio"] == pytest.approx(1, abs=0.15)
    assert (
        slice_jitter(shifted(thick, 3), thick, there)["jitter_hu"]
        > 2 * slice_jitter(thick, None, there)["jitter_hu"]
    )


def test_flicker_is_the_size_of_whole_slices():
    flat = Volume(np.zeros((9, 9, 400)), np.eye(4))
    bright = Volume(flat.voxels + RNG.normal(0, 30, 400), np.eye(4))
    assert flicker(flat, flat.voxels == 0) == 0 and flicker(
        bright, flat.voxels == 0
    ) == pytest.approx(30 * np.sqrt(1.5), rel=0.1)


def test_a_mask_that_flickers_is_told_from_one_that_is_ragged():
    true = SMOOTH.voxels > 0
    moved, ragged = shifted(Volume(true, SMOOTH.affine), 2), Volume(
        true ^ (RNG.random(true.shape) < 0.02), SMOOTH.affine
    )
    own, jittery, rough = (
        bone_jitter(v, Volume(true, SMOOTH.affine))
        for v in (Volume(true, SMOOTH.affine), moved, ragged)
    )
    assert (
        own["excess"] == own["own_excess"]
        and jittery["excess"] > 0.1 > abs(rough["excess"])
        and rough["across"] > jittery["across"] / 2
    )
    assert reversal_share(np.ones((3, 3, 3), bool)) != reversal_share(
        np.ones((3, 3, 3), bool)
    ), "nan: nothing changes"


def test_chances_equal_those_of_counting_pairs():
    doubt, wrong = RNG.integers(0, 4, 200), RNG.random(200) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in doubt[wrong] for b in doubt[~wrong]]
    assert error_auroc(doubt, wrong) == pytest.approx(np.mean(pairs))
    coverage, risk = risk_coverage(doubt, wrong, 50)
    assert risk[-1] == pytest.approx(wrong.mean()) and coverage[-1] == 1
    sure = doubt == 0
    assert np.interp(sure.mean(), coverage, risk) == pytest.approx(wrong[sure].mean(), abs=0.01)
    order = (
        risk_coverage_area(wrong, wrong),
        risk_coverage_area(doubt, wrong),
        risk_coverage_area(~wrong, wrong),
    )
    assert (
        order[0]["gain"] == pytest.approx(1)
        and order[0]["area"] < order[1]["area"] < order[2]["area"]
    )


def test_the_doubt_of_thresholds_finds_errors_on_phantoms():
    "Better than by lot, on people that no number was set for."
    for person in (31, 32):
        scan = spine_ct(person, spacing=(4.0, 4.0, 4.0), extent_mm=(88.0, 96.0, 96.0))
        true = np.isin(scan.labels.voxels, BONE)
        share, _ = bone_uncertainty(scan.image)
        told = score_uncertainty(share, true)
        assert (
            told["found"] > 0.6
            and told["gain"] > 0.1
            and told["left_error"] < told["error"]
            and told["area"] < told["chance"]
        )
        near = RNG.permutation(vote_uncertainty(share.voxels).ravel())
        wrong = ((share.voxels > 0.5) != true).ravel()
        assert abs(error_auroc(near, wrong) - 0.5) < 0.05
        assert (
            score_uncertainty(
                Volume(bone_mask(scan.image)[0].voxels.astype(float), share.affine), true
            )["found"]
            == 0.5
        ), "one vote doubts nothing"


def test_the_experiment_on_dimensions_trains_none_twice(tmp_path):
    told = experiment("dimensions", tmp_path, "a", dims=2, spacing_mm=5)
    models = sorted((tmp_path / "a" / "models").iterdir())
    assert told["state"] == "finished" and [m.name for m in models] == [
        f"dims_2_seed_{s}.safetensors" for s in (0, 1, 2)
    ]
    assert {(r["dims"], r["seed"]) for r in told["table"]} == {(2.0, s) for s in (0, 1, 2)} and all(
        r["jitter_hu"] >= 0 and r["mae_hu"] > 0 for r in told["table"]
    )
    assert (
        sum("there is nothing to compare it with" in n for n in told["notes"]) == 7
    ), "one setting is compared with nothing"
    made = {m: m.stat().st_mtime_ns for m in models}
    models[-1].unlink()
    (tmp_path / "a" / "result.json").unlink()
    again = medseg("run", "dimensions", "--resume", "a", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (
        all(m.stat().st_mtime_ns == t for m, t in made.items() if m != models[-1])
        and models[-1].exists()
    )
    assert json.dumps(json.loads(again.stdout)["table"]) == json.dumps(
        told["table"]
    ), "a training done again is the same training"


def test_two_seeds_are_refused(tmp_path):
    done = medseg("run", "dimensions", "-p", "seeds", "0,1", "--out", "a", "--json", cwd=tmp_path)
    assert done.returncode == 1 and "three or more" in done.stderr


def test_the_experiment_on_laminae_says_who_is_to_blame(tmp_path):
    done = medseg("run", "laminae", "-p", "scan_mm", "2", "--out", "a", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    taught = {
        f"CT made of MR {mr}, taught by CTs {ct} laminae"
        for mr in ("with laminae", "without")
        for ct in ("with", "without")
    }
    assert {r["bone_of"] for r in told["table"]} == {"measured CT", "measured CT, 6 mm"} | taught
    assert (
        any(n.startswith("Recall of the lamina") for n in told["notes"])
        and told["headline"]["recall of the lamina, by the CTs that taught"] == "unresolved"
    ), "one seed resolves nothing"
    best = [
        r["recall"]
        for r in told["table"]
        if r["bone_of"] == "measured CT" and r["part"] == "lamina"
    ]
    assert (
        best
        and min(best) > 0.8
        and any(n.startswith("laminae missing from") for n in told["notes"])
    )
