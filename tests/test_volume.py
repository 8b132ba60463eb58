"A Volume is compared, printed and refused as a reader expects, and an array in its place is named."

import ast
import importlib
from pathlib import Path

import numpy as np
import pytest
from conftest import TOP

from medseg.io.volume import Volume, check_volume, reorient
from medseg.view.show import montage, overlay, scroller
from medseg.view.side import panels

AFFINE = np.diag([-0.8, 0.8, 5, 1])


@pytest.fixture
def scan():
    voxels = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    voxels[0, 0, 0] = np.nan
    return Volume(voxels, AFFINE)


def test_equal_means_the_same_numbers_in_the_same_places(scan, tmp_path):
    copied = Volume(scan.voxels.copy(), scan.affine.copy())
    assert (scan == copied) is True and (scan != copied) is False
    assert scan == Volume(scan.voxels.astype(np.float64), AFFINE), "the dtype does not count"
    copied.voxels[1, 2, 3] += 1
    assert (scan == copied) is False
    assert scan != Volume(np.nan_to_num(scan.voxels), AFFINE)
    assert scan != Volume(scan.voxels, np.eye(4))
    assert scan != Volume(scan.voxels[:, :, :3], AFFINE)
    assert scan != scan.voxels.tolist() and scan != "a scan" and scan is not None
    whole = Volume(np.zeros((2, 3, 4), np.uint8), AFFINE)
    assert whole == Volume(np.zeros((2, 3, 4)), AFFINE) and whole != scan


def test_views_and_memmaps_are_equal_to_what_they_show(scan, tmp_path):
    there_and_back = reorient(reorient(scan, "LPI"), scan.axcodes)
    assert there_and_back.voxels.base is not None and there_and_back == scan
    assert Volume(scan.voxels[::-1], AFFINE) != scan
    np.save(tmp_path / "voxels.npy", scan.voxels)
    mapped = Volume(np.load(tmp_path / "voxels.npy", mmap_mode="r"), AFFINE)
    assert isinstance(mapped.voxels, np.memmap) and mapped == scan and scan == mapped
    assert repr(mapped) == repr(scan)
    assert Volume(np.broadcast_to(np.int16(7), (2, 3, 4)), AFFINE) == Volume(
        np.full((2, 3, 4), 7), AFFINE
    )


def test_it_has_no_hash_for_its_voxels_can_change(scan):
    with pytest.raises(TypeError, match="unhashable type: 'Volume'"):
        hash(scan)


def test_it_prints_as_one_line_without_voxels(scan):
    assert repr(scan) == str(scan) == "Volume((2, 3, 4), (0.8, 0.8, 5) mm, LAS, float32)"
    assert "\n" not in repr([scan] * 3)


def functions():
    "Public functions of the first five parts with arguments that must be a Volume."
    for path in sorted((TOP / "medseg").glob("[!_]*/*.py")):
        if path.parent.name not in ("io", "phantoms", "view", "zdepth", "data"):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            args = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            said = {a.arg: ast.unparse(a.annotation) for a in args if a.annotation}
            if "Volume" in said.values():
                required = args[: len(args) - len(node.args.defaults)]
                yield f"{path.parent.name}.{path.stem}.{node.name}", {
                    a.arg: np.zeros((2, 3, 4)) if said.get(a.arg) == "Volume" else None
                    for a in required
                }


FUNCTIONS = dict(functions())


def test_there_are_functions_on_volumes():
    assert len(FUNCTIONS) > 35


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_array_in_place_of_a_volume_is_named(name):
    module, function = name.rsplit(".", 1)
    call = getattr(importlib.import_module(f"medseg.{module}"), function)
    with pytest.raises(TypeError, match=r"needs a Volume: got ndarray of shape \(2, 3, 4\); do"):
        result = call(**FUNCTIONS[name])
        list(result)  # where it is a generator


def test_what_is_no_array_is_named_too(scan):
    with pytest.raises(TypeError, match="needs a Volume: got PosixPath; do"):
        check_volume(Path("scan.nii"))
    with pytest.raises(TypeError, match="needs a Volume: got ndarray"):
        check_volume(scan, optional=scan.voxels)
    check_volume(scan, optional=None)
    for volumes in (scan.voxels, [scan, scan.voxels]):
        with pytest.raises(TypeError, match=r"got ndarray of shape \(2, 3, 4\)"):
            panels(volumes)
    with pytest.raises(ValueError, match="voxels must be"):
        Volume([[[1]]], AFFINE)


def test_stills_of_a_volume_in_any_orientation():
    rng = np.random.default_rng(0)
    scan = Volume(rng.normal(0, 300, (20, 24, 12)).astype(np.int16), np.diag([2, 2, 5, 1]))
    labels = Volume((scan.voxels > 200).astype(np.uint8), scan.affine)
    drawn = {}
    for codes in ("RAS", "LPS"):
        turned, map_ = reorient(scan, codes), reorient(labels, codes)
        assert len(montage(turned, n=4).axes) >= 4 and overlay(turned, map_, n=4)
        drawn[codes] = scroller(turned, map_, n=4).html
    assert drawn["RAS"] == drawn["LPS"], "a picture does not depend on how the array is stored"
    assert drawn["RAS"].startswith("<figure") and "<script" not in drawn["RAS"]
