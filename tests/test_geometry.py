"""What resampling, orientation and files promise together.

Every voxel keeps its place in the patient.
"""

import tracemalloc

import numpy as np
import pytest

from medseg.io.read import read_volume
from medseg.io.resample import resample, resample_to
from medseg.io.volume import ORIENTATIONS, Volume, reorient, world
from medseg.io.write import write_labels, write_volume


def turn(rng, most=40):
    "A random rotation of at most `most` degrees about each axis."
    whole = np.eye(3)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        angle, one = np.deg2rad(rng.uniform(-most, most)), np.eye(3)
        one[[a, a, b, b], [a, b, a, b]] = (
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        )
        whole = whole @ one
    return whole


def grid(rng, oblique, shape=None, spacing=None, centre=None):
    "A random grid: shape, spacing, angle, orientation and place."
    shape = rng.integers(12, 28, 3) if shape is None else np.array(shape)
    spacing = rng.uniform(0.6, 6, 3) if spacing is None else np.array(spacing)
    affine = np.eye(4)
    affine[:3, :3] = (turn(rng) if oblique else np.eye(3)) @ np.diag(spacing)
    affine[:3, 3] = (rng.uniform(-200, 200, 3) if centre is None else centre) - affine[:3, :3] @ (
        (shape - 1) / 2
    )
    return reorient(Volume(np.zeros(shape, np.int16), affine), str(rng.choice(ORIENTATIONS)))


def places(v):
    return world(v.affine, np.moveaxis(np.indices(v.shape), 0, -1))


def middle(v):
    return world(v.affine, (np.array(v.shape) - 1) / 2)


def inner(v, cut):
    return v.voxels[tuple(slice(c, n - c) for c, n in zip(cut, v.shape))]


@pytest.mark.parametrize("oblique", (False, True))
@pytest.mark.parametrize("seed", range(20))
def test_resample_keeps_the_field_of_view(seed, oblique):
    rng = np.random.default_rng([seed, oblique])
    v, spacing = grid(rng, oblique), rng.uniform(0.5, 9, 3)
    new = resample(v, spacing)
    assert new.axcodes == v.axcodes and new.voxels.dtype == v.voxels.dtype
    np.testing.assert_allclose(new.spacing, spacing, atol=1e-5)
    np.testing.assert_allclose(middle(new), middle(v), atol=1e-9)
    off = np.abs(np.array(new.extent_mm) - v.extent_mm) / 2  # each outer face, mm
    assert (off <= spacing / 4 + 1e-5).all()
    directions = [a[:3, :3] / np.linalg.norm(a[:3, :3], axis=0) for a in (new.affine, v.affine)]
    np.testing.assert_allclose(*directions, atol=1e-12)


@pytest.mark.parametrize("oblique", (False, True))
@pytest.mark.parametrize("seed", range(20))
def test_a_ramp_in_mm_survives(seed, oblique):
    """Linear interpolation is exact on a ramp, away from the rim, with and without blur, there and
    back.
    """
    rng = np.random.default_rng([seed, oblique, 1])
    slope = rng.uniform(-3, 3, 3)
    bare = grid(rng, oblique, shape=(40, 40, 40))
    v = Volume(places(bare) @ slope, bare.affine)
    like = grid(
        rng,
        oblique,
        shape=rng.integers(4, 9, 3),
        spacing=np.array(v.spacing).min() * rng.uniform(0.5, 1.4, 3),
        centre=middle(v),
    )
    np.testing.assert_allclose(resample_to(v, like).voxels, places(like) @ slope, atol=1e-6)
    new = resample(v, np.array(v.spacing) * rng.uniform(0.6, 1.7, 3))
    cut = [6] * 3
    np.testing.assert_allclose(
        inner(new, cut), inner(Volume(places(new) @ slope, new.affine), cut), atol=1e-6
    )
    back = resample_to(new, v)
    np.testing.assert_allclose(inner(back, [13] * 3), inner(v, [13] * 3), atol=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_a_landmark_stays(seed):
    "The centre of mass of a soft spot moves by less than a fiftieth of a millimetre."
    rng = np.random.default_rng([seed, 2])
    bare = grid(rng, seed % 2, shape=(48, 44, 40), spacing=rng.uniform(1, 2, 3))
    at = middle(bare) + rng.uniform(-3, 3, 3)
    v = Volume(np.exp(-((places(bare) - at) ** 2).sum(-1) / (2 * 4.5**2)), bare.affine)

    def centre(w):
        return (places(w) * w.voxels[..., None]).sum((0, 1, 2)) / w.voxels.sum()

    for new in (
        resample(v, rng.uniform(0.8, 5, 3)),
        resample_to(v, grid(rng, True, (60, 60, 60), rng.uniform(1.3, 2, 3), middle(v)), outside=0),
    ):
        assert np.linalg.norm(centre(new) - centre(v)) < 0.02


@pytest.mark.parametrize("seed", range(20))
def test_labels_come_back(seed):
    "A whole finer grid and back: bit for bit. Any grid: no new value, and a block keeps its size."
    rng = np.random.default_rng([seed, 3])
    v = grid(rng, seed % 2)
    values = rng.choice([0, 3, 200, 65535], v.shape).astype(np.uint16)
    v = Volume(values, v.affine)
    finer = resample(v, np.array(v.spacing) / rng.integers(1, 4, 3), labels=True)
    assert finer.voxels.dtype == np.uint16
    np.testing.assert_array_equal(resample_to(finer, v, labels=True).voxels, values)
    other = resample_to(v, grid(rng, True, centre=middle(v)), labels=True)
    assert set(np.unique(other.voxels)) <= {0, 3, 200, 65535}


@pytest.mark.parametrize("seed", range(10))
def test_the_order_of_axes_does_not_matter(seed):
    "Resampling a scan stored in any of 48 ways gives the same world."
    rng = np.random.default_rng([seed, 4])
    v = grid(rng, seed % 2)
    v = Volume(rng.normal(0, 300, v.shape).astype(np.float32), v.affine)
    like = grid(rng, seed % 3 == 0, centre=middle(v))
    home = resample_to(v, like)
    for codes in rng.choice(ORIENTATIONS, 12, replace=False):
        stored = reorient(v, str(codes))
        np.testing.assert_allclose(resample_to(stored, like).voxels, home.voxels, atol=2e-3)
        there = resample_to(v, reorient(like, str(codes)))
        np.testing.assert_allclose(reorient(there, like.axcodes).voxels, home.voxels, atol=2e-3)


@pytest.mark.parametrize("spacing", (3, (1.6, 1.6, 4), (0.8, 0.8, 1)))
def test_memory_stays_small(spacing):
    "Beside the result: well under the float copy of the scan, which is 168 MB here."
    v = Volume(np.zeros((512, 512, 160), np.int16, order="F"), np.diag([0.8, 0.8, 1.5, 1]))
    tracemalloc.start()
    new = resample(v, spacing)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < new.voxels.nbytes + 100e6


def test_the_48_orientations_hold_one_world(tmp_path):
    "Written, read, resampled: the same values at the same millimetres."
    rng = np.random.default_rng(5)
    v = Volume(
        rng.integers(-1000, 1500, (9, 11, 7)).astype(np.int16), np.diag([0.8, 0.9, 3.0, 1.0])
    )
    mask = Volume((v.voxels > 0).astype(np.uint8), v.affine)
    coarse = resample(v, (1.6, 1.8, 3))
    for codes in ORIENTATIONS:
        stored, path = reorient(v, codes), tmp_path / f"{codes}.nii"
        write_volume(path, stored)
        got = read_volume(path)
        assert got.axcodes == codes and got.voxels.dtype == np.int16
        np.testing.assert_allclose(got.affine, stored.affine, atol=1e-5)
        np.testing.assert_array_equal(reorient(got).voxels, v.voxels)
        np.testing.assert_array_equal(
            reorient(resample_to(got, reorient(coarse, codes))).voxels, coarse.voxels
        )
        write_labels(tmp_path / f"{codes}_labels.nii.gz", reorient(mask, codes))
        np.testing.assert_array_equal(
            reorient(read_volume(tmp_path / f"{codes}_labels.nii.gz", role="labels")).voxels,
            mask.voxels,
        )
