"""An output never takes the place of what a command reads, under any name of it, nor of another
output, a folder or a file of another kind.
"""

import os

import command
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from oddseries import write_stack

from medseg.data.manifest import Item, write_manifest
from medseg.segment.predict import SegmentRecipe, save_model
from medseg.io.files import digest


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A CT in four formats, its labels, a network, a page, and a run. Every file keeps its bytes."
    top = tmp_path_factory.mktemp("field")
    rng = np.random.default_rng(0)
    hu = np.clip(rng.normal(0, 200, (24, 24, 8)), -1000, 1500).astype(np.int16)
    hu[:3], hu[8:14, 8:14] = -1000, 1200
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    for name, other in (("scan.nii.gz", 0), ("plain.nii", 1)):  # two people
        nib.save(nib.Nifti1Image(hu + np.int16(other), affine), top / name)
    nib.save(nib.Nifti1Pair(hu, affine), top / "pair.hdr")
    sitk.WriteImage(sitk.GetImageFromArray(hu.T), str(top / "meta.mhd"))
    nib.save(nib.Nifti1Image((hu > 900).astype(np.uint8), affine), top / "label.nii.gz")
    nib.save(nib.Nifti1Image((hu > 950).astype(np.uint8)[::-1].copy(), affine), top / "mine.nii.gz")
    write_stack(top / "series")
    recipe = SegmentRecipe(depth=3, width=4, levels=2, inplane_mm=8.0)
    save_model(top / "model.safetensors", recipe.net().eval(), recipe, {})
    (top / "run").mkdir()
    for name in ("config.json", "result.json"):
        (top / "run" / name).write_text('{"experiment": "toy", "state": "finished"}')
    (top / "run" / "page.html").write_text("<html>kept</html>")
    items = [
        Item(f"anna{k}", top / f"{name}", top / ("label.nii.gz" if k else "mine.nii.gz"))
        for k, name in enumerate(("scan.nii.gz", "plain.nii"))
    ]
    write_manifest(top / "manifest.csv", items)
    (top / "away").mkdir()
    os.symlink("scan.nii.gz", top / "link.nii.gz")
    slices = sorted((top / "series").iterdir())
    for new, old in (
        ("hard.nii.gz", "scan.nii.gz"),
        ("img.nii", "pair.img"),
        ("raw.nii", "meta.raw"),
        ("net.nii", "model.safetensors"),
        ("hard.html", "plain.nii"),
    ):
        os.link(top / old, top / new)
    os.link(slices[0], top / "slice.nii.gz")
    return top


def kept(top):
    return {p: digest(p) for p in sorted(top.rglob("*")) if p.is_file()}


def refused(top, *words) -> str:
    "The one line of a command that must change nothing."
    before = kept(top)
    done = command.medseg(*words, cwd=top)
    lines = done.stderr.strip().splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (1, "", 1), done
    assert lines[0].startswith("error: ") and kept(top) == before, lines
    return lines[0]


PREDICT = "scan.nii.gz", "link.nii.gz", "hard.nii.gz", "away/../scan.nii.gz"


@pytest.mark.parametrize("out", PREDICT)
def test_a_scan_is_not_written_over_under_any_of_its_names(place, out):
    assert "another name of scan.nii.gz" in refused(
        place, "predict", "model.safetensors", "scan.nii.gz", "-o", out
    )


PARTS = (
    ("pair.hdr", "img.nii"),
    ("pair.img", "img.nii"),
    ("meta.mhd", "raw.nii"),
    ("series", "slice.nii.gz"),
    ("scan.nii.gz", "net.nii"),
)


@pytest.mark.parametrize("image, out", PARTS)
def test_nor_any_file_that_its_voxels_come_from(place, image, out):
    told = refused(place, "predict", "model.safetensors", image, "-o", out)
    assert "another name of" in told or "of another kind" in told


def test_bone_takes_neither_its_scan_nor_one_name_twice(place):
    assert "another name of plain.nii" in refused(place, "bone", "plain.nii", "-o", "plain.nii")
    os.link(place / "label.nii.gz", place / "twin.stl")
    assert "another name of" in refused(
        place, "bone", "plain.nii", "-o", "label.nii.gz", "--mesh", "twin.stl"
    )
    (place / "twin.stl").unlink()


def test_a_folder_a_device_and_a_place_below_a_file(place):
    (place / "mask.nii.gz").mkdir()
    for out, told in (
        ("mask.nii.gz", "found a folder"),
        ("scan.nii.gz/mask.nii.gz", "which is no folder"),
    ):
        assert told in refused(place, "predict", "model.safetensors", "scan.nii.gz", "-o", out)
    (place / "mask.nii.gz").rmdir()
    os.mkfifo(place / "pipe.html")
    assert "a device or a pipe" in refused(place, "survey", "scan.nii.gz", "--html", "pipe.html")
    (place / "pipe.html").unlink()


@pytest.mark.parametrize(
    "words",
    (
        ("survey", ".", "--html", "hard.html"),
        ("compare", "run", "--html", "run/page.html"),
        ("compare", "run", "--html", "hard.html"),
        ("collapse", "--inputs", "series", "--outputs", "series", "--html", "hard.html"),
    ),
)
def test_pages_replace_pages_only(place, words):
    assert "--html" in refused(place, *words)


def test_results_do_not_go_among_the_scans(place):
    for words in (
        ("cache", "manifest.csv", "--folder", "."),
        ("cache", "manifest.csv", "--folder", "runs/cache"),
        ("related", ".", "--cache", "."),
        ("run", "segment", "-p", "manifest", "manifest.csv", "--out", "runs/new"),
        ("demo", "--data", "manifest.csv", "--out", "demo"),
        ("run", "segment", "-p", "manifest", "manifest.csv", "-p", "cache", "."),
    ):
        told = refused(place, *words)
        assert "which is read" in told, told


def test_a_folder_that_is_there_is_no_run(place):
    for words in (
        ("run", "segment", "--out", "away"),
        ("demo", "--out", "run"),
        ("demo", "--data", "manifest.csv", "--out", "manifest.csv"),
    ):
        told = refused(place, *words)
        assert "a new name" in told or "which is read" in told


def test_an_older_mask_and_an_older_page_are_replaced(place, tmp_path):
    for out in (tmp_path / "mask.nii.gz", tmp_path / "new" / "mask.nii"):
        for _ in range(2):
            assert (
                command.medseg(
                    "predict", place / "model.safetensors", place / "scan.nii.gz", "-o", out
                ).returncode
                == 0
            )
        assert nib.load(out).shape == (24, 24, 8)
    (tmp_path / "page.html").write_text("<html>old</html>")
    assert (
        command.medseg("survey", place / "scan.nii.gz", "--html", tmp_path / "page.html").returncode
        == 0
    )
    assert "old" not in (tmp_path / "page.html").read_text()[:200]
