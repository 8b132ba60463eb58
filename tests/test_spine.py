"""What the spine phantoms promise across chapters.

One anatomy for both scanners, no table of grey values that solves them, and a hidden answer.
"""

import inspect
from pathlib import Path

import numpy as np
import pytest
from conftest import TOP
from medseg.data.cohort import is_phantom
from medseg.data.manifest import read_manifest, subjects
from medseg.data.spine_cohort import make_spine_cohort
from medseg.io.read import read_volume
from medseg.phantoms.spine_scanner import spine_ct, spine_mr
from medseg.phantoms.vertebra import BONE, SPINE
from scipy.ndimage import binary_erosion

COARSE = dict(spacing=(2.0, 2.0, 2.0))  # up to 2 mm nothing is split, so this is quick


def dice(a, b):
    return 2 * (a & b).sum() / max(a.sum() + b.sum(), 1)


def mean_of(scan, *regions, erode=1):
    "The mean inside some regions, a voxel away from their border."
    inside = np.isin(scan.labels.voxels, [SPINE[r] for r in regions])
    return float(
        scan.image.voxels[binary_erosion(inside, iterations=erode) if erode else inside].mean()
    )


@pytest.fixture(scope="module")
def pair():
    return (
        spine_ct(1, spacing=(2, 2, 2)),
        spine_mr(1, spacing=(2, 2, 2), weighting="t2"),
        spine_mr(1, spacing=(2, 2, 2), weighting="t1"),
    )


def test_the_same_numbers_make_the_same_scan():
    for scan in (spine_ct, spine_mr):
        a, b = scan(4, seed=2, spacing=(4, 4, 4)), scan(4, seed=2, spacing=(4, 4, 4))
        assert (
            np.array_equal(a.image.voxels, b.image.voxels)
            and np.array_equal(a.labels.voxels, b.labels.voxels)
            and a.facts == b.facts
        )
        for other in (scan(5, seed=2, spacing=(4, 4, 4)), scan(4, seed=3, spacing=(4, 4, 4))):
            assert not np.array_equal(a.labels.voxels, other.labels.voxels)


def test_types_and_grid():
    ct, mr = spine_ct(0, spacing=(4, 3, 6), extent_mm=(80, 90, 120)), spine_mr(
        0, spacing=(4, 3, 6), extent_mm=(80, 90, 120)
    )
    for scan in (ct, mr):
        assert scan.image.voxels.dtype == np.int16 and scan.labels.voxels.dtype == np.uint8
        assert (
            scan.image.shape == (20, 30, 20) == scan.labels.shape
            and scan.image.spacing == (4, 3, 6)
            and scan.image.axcodes == "RAS"
        )
    assert np.array_equal(ct.image.affine, mr.image.affine) and np.array_equal(
        ct.image.affine, ct.labels.affine
    )
    assert ct.image.voxels.min() >= -1024 and mr.image.voxels.min() >= 0
    assert BONE == tuple(
        SPINE[n] for n in ("body", "pedicle", "lamina", "facet", "spinous", "transverse")
    )


def test_both_scanners_see_one_anatomy(pair):
    ct, t2, t1 = pair
    assert np.array_equal(ct.labels.voxels, t2.labels.voxels) and np.array_equal(
        ct.labels.voxels, t1.labels.voxels
    )
    assert ct.facts["levels"] == t2.facts["levels"]


@pytest.mark.parametrize("subject", [0, 3])
def test_one_anatomy_at_two_spacings(subject):
    fine, coarse = (
        spine_ct(subject, spacing=(1.5, 1.5, 1.5)).labels.voxels,
        spine_ct(subject, spacing=(4.5, 4.5, 4.5), extent_mm=(94.5, 94.5, 144)).labels.voxels,
    )
    # the middle moves by half the difference in extent: compare by share instead
    n = [min(a // 3, b) for a, b in zip(fine.shape, coarse.shape)]
    for name in ("body", "disc", "csf", "psoas", "back_muscle"):
        a, b = (fine == SPINE[name]).mean(), (coarse == SPINE[name]).mean()
        assert abs(a - b) < 0.12 * a + 0.002, (name, a, b, n)
    third = spine_ct(subject, spacing=(4.5, 4.5, 4.5), extent_mm=(90, 90, 135)).labels.voxels
    same = spine_ct(subject, spacing=(1.5, 1.5, 1.5), extent_mm=(90, 90, 135)).labels.voxels[
        1::3, 1::3, 1::3
    ]
    assert (same == third).mean() > 0.999


@pytest.mark.parametrize("subject", range(3))
def test_every_region_is_there(subject):
    ml = spine_ct(subject, **COARSE).facts["ml"]
    assert all(
        ml[name] > 0 for name in SPINE if name not in ("metal", "organ", "vessel", "skin", "cord")
    ), ml
    assert all(
        ml[name] > 4
        for name in ("body", "pedicle", "lamina", "facet", "spinous", "transverse", "disc", "csf")
    ), ml
    assert ml["metal"] == 0 and ml["body"] > ml["lamina"]


def test_hu_of_bone(pair):
    ct = pair[0]
    labels, hu = ct.labels.voxels, ct.image.voxels
    marrow = hu[binary_erosion(labels == SPINE["body"], iterations=2)]
    assert 100 < np.median(marrow) < 250
    shell = np.isin(labels, BONE) & ~binary_erosion(np.isin(labels, BONE))
    assert np.percentile(
        spine_ct(1, spacing=(1, 1, 1), extent_mm=(70, 70, 40)).image.voxels, 99.5
    ) > 600 and np.median(hu[shell]) > np.median(marrow)


def test_mr_orders_the_tissues_as_mr_does(pair):
    _, t2, t1 = pair
    for scan, order in ((t2, ("csf", "fat", "psoas")), (t1, ("fat", "psoas", "csf"))):
        values = [mean_of(scan, r) for r in order]
        assert values == sorted(values, reverse=True), (order, values)
    assert mean_of(t1, "body", erode=2) > 1.2 * mean_of(t1, "psoas")  # marrow shines
    flat = spine_mr(
        1, spacing=(1, 1, 1), extent_mm=(60, 96, 40), weighting="t1", bias=0.0, noise=0.0
    )
    dark = flat.image.voxels[flat.labels.voxels == SPINE["lamina"]]
    # cortex is dark
    assert np.percentile(dark, 10) < 0.35 * mean_of(flat, "fat")


def test_no_table_of_grey_values_makes_the_ct():
    """The best table for a pair, made from that very pair with the truth in hand, misses much of
    the bone.
    """
    for weighting in ("t1", "t2"):
        ct, mr = spine_ct(2, **COARSE), spine_mr(2, weighting=weighting, bias=0.0, **COARSE)
        bins = np.digitize(mr.image.voxels, np.percentile(mr.image.voxels, np.arange(0, 100, 1)))
        table = np.bincount(
            bins.reshape(-1), ct.image.voxels.reshape(-1).astype(float)
        ) / np.maximum(np.bincount(bins.reshape(-1)), 1)
        guess, bone = table[bins], ct.image.voxels > 200
        best = max(dice(guess > t, bone) for t in range(-50, 400, 10))
        assert best < 0.7, best


def test_laminae_can_be_gone():
    whole, bare = spine_ct(3, **COARSE), spine_ct(3, laminae=False, **COARSE)
    assert (
        whole.facts["ml"]["lamina"] > 1
        and bare.facts["ml"]["lamina"] == 0
        and not bare.facts["laminae"]
    )
    assert dice(whole.labels.voxels == SPINE["body"], bare.labels.voxels == SPINE["body"]) > 0.99
    gone = spine_mr(3, laminae=False, **COARSE)
    assert np.array_equal(gone.labels.voxels, bare.labels.voxels)


@pytest.mark.parametrize("cobb", [0.0, 20.0, 40.0])
def test_cobb_angle_is_the_one_asked_for(cobb):
    scan = spine_ct(6, scoliosis_deg=cobb, spacing=(4, 4, 4), extent_mm=(140, 100, 300))
    at = np.array(list(scan.facts["levels"].values()))
    slope = np.rad2deg(np.arctan2(np.diff(at[:, 0]), np.diff(at[:, 2])))
    assert abs(np.ptp(slope) - cobb) < 2 + 0.15 * cobb and scan.facts["scoliosis_deg"] == cobb


def test_metal_and_contrast():
    ct, plain, mr = (
        spine_ct(2, metal=True, **COARSE),
        spine_ct(2, **COARSE),
        spine_mr(2, metal=True, **COARSE),
    )
    where = ct.labels.voxels == SPINE["metal"]
    assert (
        where.any()
        and ct.image.voxels[where].max() > 2000
        and np.median(mr.image.voxels[where]) < 0.2 * np.median(mr.image.voxels[~where])
    )
    beside = ~where & (np.abs(ct.image.voxels.astype(int) - plain.image.voxels) > 60)
    # bands reach further than the metal
    assert beside.sum() > where.sum()
    wide = dict(spacing=(2, 2, 2), extent_mm=(96, 130, 96))
    assert (
        mean_of(spine_ct(2, contrast=True, **wide), "vessel")
        > mean_of(spine_ct(2, **wide), "vessel") + 120
    )


def test_noise_and_bias_are_switches():
    quiet, loud = spine_mr(0, noise=0.0, bias=0.0, **COARSE), spine_mr(
        0, noise=0.1, bias=0.0, **COARSE
    )
    assert np.array_equal(quiet.labels.voxels, loud.labels.voxels) and not np.array_equal(
        quiet.image.voxels, loud.image.voxels
    )
    assert not np.array_equal(
        spine_ct(0, noise=False, **COARSE).image.voxels, spine_ct(0, **COARSE).image.voxels
    )
    assert set(inspect.signature(spine_ct).parameters) == {
        "subject",
        "seed",
        "spacing",
        "extent_mm",
        "scoliosis_deg",
        "metal",
        "contrast",
        "laminae",
        "noise",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        dict(spacing=(2, 2)),
        dict(spacing=(2, 2, 0)),
        dict(extent_mm=(90, -1, 90)),
        dict(scoliosis_deg=-3),
        dict(scoliosis_deg=float("nan")),
    ],
)
def test_bad_asks_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        spine_ct(0, **wrong)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        spine_mr(0, **wrong)


def test_bad_mr_asks_are_named():
    for wrong in (dict(weighting="pd"), dict(bias=-1.0), dict(noise=float("nan"))):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            spine_mr(0, **wrong)


SMALL = dict(
    mr=2,
    ct=2,
    test=2,
    spacing_mr=(2.0, 2.0, 2.0),
    spacing_ct=(2.0, 1.5, 2.0),
    extent_mm=(64.0, 80.0, 48.0),
)


def test_cohort_is_unpaired_and_the_answer_hidden(tmp_path):
    manifest = make_spine_cohort(tmp_path / "a", **SMALL, workers=1)
    items = read_manifest(manifest)
    assert is_phantom(manifest) and all(i.label is None for i in items)
    mr, ct = (
        {i.subject for i in items if i.split == "train" and i.modality == m} for m in ("MR", "CT")
    )
    test = subjects(items, "test")
    assert len(mr) == len(ct) == len(test) == 2 and not (mr & ct or mr & test or ct & test)
    assert {i.modality for i in items if i.split == "test"} == {"MR"}
    hidden = tmp_path / "a" / "hidden"
    assert (
        not any(hidden in i.image.parents for i in items) and "hidden" not in manifest.read_text()
    )
    for i in items:
        if i.split != "test":
            continue
        scan, answer, labels = (
            read_volume(i.image),
            read_volume(hidden / f"{i.subject}_ct.nii.gz"),
            read_volume(hidden / f"{i.subject}_labels.nii.gz", "labels"),
        )
        assert scan.shape == answer.shape == labels.shape and np.allclose(
            scan.affine, answer.affine
        )
    again = make_spine_cohort(tmp_path / "b", **SMALL, workers=2)
    for path in sorted((tmp_path / "a").rglob("*.*")):
        if path.suffix != ".csv":
            assert (
                again.parent / path.relative_to(tmp_path / "a")
            ).read_bytes() == path.read_bytes(), path.name


def test_only_scoring_names_the_hidden_folder():
    """Besides the module that writes the answers and the one that scores by them, only the
    reader of scans knows the name of their folder: to refuse it.
    """
    named = {
        p.stem
        for p in Path(TOP / "medseg").rglob("*.py")
        if '"hidden"' in p.read_text() or "hidden/" in p.read_text()
    }
    assert named <= {"spine_cohort", "scores", "scans"}, named
