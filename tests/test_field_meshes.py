"""A mesh keeps the volume of its mask, however thick the slices and whatever axis they lie along,
or says by how much not.
"""

import warnings

import numpy as np
import pytest

from medseg.bone.mesh import KEPT, bone_mesh, unlike
from medseg.io.files import RepairWarning
from medseg.io.volume import Volume


def ribs(steps):
    "Plates of 4 mm and a tube with a free channel."
    n = [int(48 / s) + 2 for s in steps]
    x, y, z = (np.indices(n).T * np.array(steps) - 24).T
    r = np.hypot(x, y)
    return ((r > 8) & (r < 12) | (abs(x - 18) < 2)) & (abs(z) < 20)


@pytest.mark.parametrize(
    "steps", [(1, 1, 1), (1, 1, 5), (1, 1, 8), (1, 1, 10), (8, 1, 1), (1, 8, 1)], ids=str
)
def test_thick_slices(steps):
    mask = ribs(steps)
    mesh = bone_mesh(mask, steps)
    want = mask.sum() * np.prod(steps) / 1000
    assert (
        mesh.closed
        and mesh.volume_ml == pytest.approx(want, rel=KEPT)
        and mesh.overlap > 0.95
        and mesh.mask_ml == pytest.approx(want)
        and unlike(mesh) == ""
    )


def test_an_oblique_grid():
    turn = np.array([[np.cos(0.4), -np.sin(0.4), 0], [np.sin(0.4), np.cos(0.4), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1, 1, -7])
    mesh = bone_mesh(Volume(ribs((1, 1, 7)).astype(np.uint8), affine))
    assert abs(mesh.gained) < KEPT and mesh.closed


@pytest.mark.parametrize("name", ["one voxel", "one slice", "a slice of many", "hollow", "crumbs"])
def test_thin_things(name):
    mask = np.zeros((20, 20, 1 if name == "one slice" else 9), bool)
    if name == "one voxel":
        mask[9, 9, 4] = True
    elif name == "one slice":
        mask[4:14, 5:9] = True
    elif name == "a slice of many":
        mask[4:14, 5:9, 4] = True
    elif name == "hollow":
        mask[3:17, 3:17, 1:8] = True
        mask[4:16, 4:16, 2:7] = False
    else:
        mask[::4, ::4, ::4] = True
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        mesh = bone_mesh(mask, (1, 1, 6))
    told = [str(w.message) for w in heard if isinstance(w.message, RepairWarning)]
    assert abs(mesh.gained) <= KEPT and mesh.overlap >= 0.9 or "of the two agree" in told[0]


def test_a_smoothing_that_changes_the_thing_says_so():
    with pytest.warns(RepairWarning, match="agree"):
        mesh = bone_mesh(ribs((1, 1, 8)), (1, 1, 8), smooth_mm=4)
    assert mesh.overlap < 0.8
