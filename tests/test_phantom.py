"""What the phantom promises across chapters.

One patient at every spacing, honest partial volume, and no easy way out.
"""

import numpy as np
import pytest
from medseg.phantoms.scanner import abdomen
from medseg.phantoms.anatomy import ABDOMEN
from medseg.io.volume import world
from scipy.ndimage import gaussian_filter, label


def dice(a, b):
    return 2 * (a & b).sum() / max(a.sum() + b.sum(), 1)


def test_the_same_numbers_make_the_same_scan():
    a, b = abdomen(7, seed=3, spacing=(6, 6, 10)), abdomen(7, seed=3, spacing=(6, 6, 10))
    assert (
        np.array_equal(a.ct.voxels, b.ct.voxels)
        and np.array_equal(a.labels.voxels, b.labels.voxels)
        and a.facts == b.facts
    )
    for other in (abdomen(8, seed=3, spacing=(6, 6, 10)), abdomen(7, seed=4, spacing=(6, 6, 10))):
        assert other.ct.shape != a.ct.shape or not np.array_equal(other.ct.voxels, a.ct.voxels)


def test_types_and_grid():
    p = abdomen(1, spacing=(5, 4, 8), extent_mm=(300, 240, 160))
    assert p.ct.voxels.dtype == np.int16 and p.labels.voxels.dtype == np.uint8
    assert (
        p.ct.shape == (60, 60, 20) == p.labels.shape
        and p.ct.spacing == (5, 4, 8)
        and p.ct.axcodes == "RAS"
    )
    assert np.array_equal(p.ct.affine, p.labels.affine)
    assert ABDOMEN["liver"] == 1 and ABDOMEN["lesion"] == 2


@pytest.mark.parametrize("subject", [0, 5])
def test_one_patient_at_two_spacings(subject):
    fine, coarse = abdomen(subject, spacing=(2, 2, 3), thickness=1), abdomen(
        subject, spacing=(4.5, 4.5, 7), thickness=1
    )
    index = np.stack(np.meshgrid(*map(np.arange, coarse.labels.shape), indexing="ij"), -1)
    there = (world(coarse.labels.affine, index) - fine.labels.affine[:3, 3]) / fine.labels.spacing
    at = tuple(
        np.clip(np.rint(there[..., i]).astype(int), 0, n - 1)
        for i, n in enumerate(fine.labels.shape)
    )
    sampled = fine.labels.voxels[at]
    assert (sampled == coarse.labels.voxels).mean() > 0.95
    for organ in ("liver", "spleen", "kidney_right", "kidney_left", "stomach"):
        assert dice(sampled == ABDOMEN[organ], coarse.labels.voxels == ABDOMEN[organ]) > 0.9, organ


def test_the_field_of_view_leaves_the_patient_alone():
    small, large = (
        abdomen(2, spacing=(4, 4, 4), extent_mm=e, thickness=1).facts
        for e in ((400, 400, 240), (440, 440, 400))
    )
    assert abs(small["ml"]["liver"] - large["ml"]["liver"]) < 0.03 * large["ml"]["liver"]
    assert small["hu"] == large["hu"] and small["lesions"] == large["lesions"]


def test_lesions_can_be_left_out():
    subject = next(n for n in range(20) if abdomen(n, spacing=(8, 8, 12)).facts["lesions"] > 2)
    ill, well = abdomen(subject, spacing=(3, 3, 5)), abdomen(
        subject, spacing=(3, 3, 5), lesions=False
    )
    a, b = ill.labels.voxels, well.labels.voxels
    assert (a == 2).any() and not (b == 2).any()
    assert np.isin(b[a == 2], 1).all() and np.array_equal(a[a != 2], b[a != 2])


def test_a_thick_slice_is_the_mean_of_thin_ones():
    extent = (360, 360, 72)
    thin, thick = abdomen(4, spacing=(3, 3, 1.5), extent_mm=extent), abdomen(
        4, spacing=(3, 3, 6), extent_mm=extent
    )
    mean = thin.ct.voxels.astype(np.float32).reshape(120, 120, 12, 4).mean(3)
    body = thick.labels.voxels > 0
    off = (thick.ct.voxels - mean)[body]
    expected = np.hypot(thick.facts["noise"], thin.facts["noise"] / 2)
    assert abs(off.mean()) < 0.5 and np.median(np.abs(off)) / 0.6745 < 1.15 * expected


def test_no_global_window_finds_the_liver():
    cohort = [abdomen(n, seed=1, spacing=(4, 4, 5)) for n in range(6)]
    assert len({p.facts["phase"] for p in cohort}) > 1
    truths = [np.isin(p.labels.voxels, (1, 2)) for p in cohort]
    for smooth in (0, 3):
        scans = [
            (
                gaussian_filter(p.ct.voxels.astype(np.float32), smooth / np.array(p.ct.spacing))
                if smooth
                else p.ct.voxels
            )
            for p in cohort
        ]
        best = 0
        for low in range(0, 111, 10):
            for width in (30, 50, 80):
                scores = []
                for hu, truth in zip(scans, truths):
                    pieces, count = label((hu >= low) & (hu <= low + width))
                    sizes = np.bincount(pieces.reshape(-1))
                    largest = 1 + np.argmax(sizes[1:]) if count else 0
                    scores.append(
                        2 * (pieces[truth] == largest).sum() / (sizes[largest] + truth.sum())
                        if count
                        else 0
                    )
                best = max(best, np.mean(scores))
        assert 0.2 < best < 0.75, (smooth, best)
