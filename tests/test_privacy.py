"""Names of patients stay where they are.

Planted in every field of a header that can hold text, they are in no file that is written and in
no message.
"""

import gzip
import json
import subprocess
import sys
import warnings

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pytest
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset
from oddfile import SCAN, nifti_bytes
from oddseries import write_itk, write_stack

from medseg.data.manifest import Item, write_manifest
from medseg.runs.listing import log_page
from medseg.runs.page import write_page
from medseg.runs.folder import finish_run, start_run
from medseg.segment.metrics import evaluate
from medseg.segment.predict import SegmentRecipe, save_model
from medseg.segment.report import best_slice, dice_figure, overlay_figure
from medseg.io.check import check_path
from medseg.io.files import InputError, digest, write_json
from medseg.io.read import read_header, read_volume
from medseg.zdepth.survey import plot_survey, survey
from medseg.io.volume import Volume
from medseg.io.write import write_labels, write_volume

# shorter than the shortest field it must fit whole: fields of fewer bytes get its beginning
NAME = "ZZPATIENTZZ"
TEXT = ("AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT").split()


def nifti_files(folder):
    """A file for each field, in NIfTI-1 and NIfTI-2, and one with all fields and three kinds of
    extension.
    """
    for n, kind in enumerate((nib.Nifti1Image, nib.Nifti2Image)):
        fields = [
            name
            for name in ("data_type", "db_name", "descrip", "aux_file", "intent_name", "unused_str")
            if name in kind.header_class.template_dtype.names
        ]
        for name in fields:
            yield put(
                folder / f"{n}_{name}.nii", nifti_bytes(kind=kind, fields={name: NAME.encode()})
            )
        whole = nib.Nifti1Image.from_bytes(
            nifti_bytes(
                fields={name: NAME.encode() for name in fields if n == 0}, text=NAME.encode()
            )
        )
        whole.header.extensions.append(nib.nifti1.Nifti1Extension("ignore", NAME.encode()))
        whole.header.extensions.append(nib.nifti1.Nifti1DicomExtension(2, dicom_text()))
        nib.save(whole, folder / f"{n}_all.nii.gz")
        yield folder / f"{n}_all.nii.gz"
    yield put(folder / "tail.nii", nifti_bytes() + NAME.encode())


def dicom_text() -> Dataset:
    d = Dataset()
    d.PatientName = NAME
    d.PatientID = NAME
    return d


def put(path, data):
    path.write_bytes(data)
    return path


def dicom_tags() -> dict:
    "The name in every tag of the standard that holds text and that the stack does not need."
    needed = {
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "Rows",
        "Columns",
        "RescaleSlope",
        "RescaleIntercept",
        "PhotometricInterpretation",
        "TransferSyntaxUID",
        "NumberOfFrames",
        "Modality",
        "SpecificCharacterSet",
    }
    out = {}
    for tag, (vr, *_) in DicomDictionary.items():
        word = keyword_for_tag(tag)
        if (
            word
            and vr in ("LO", "LT", "PN", "SH", "ST", "UC", "UT", "UI", "CS", "AE")
            and word not in needed
            and tag >> 16 >= 8
            and tag >> 16 != 0x28
            and not word.startswith(("SOP", "Media"))
        ):
            out[word] = NAME
    return out


def text_files(folder):
    "NRRD and MetaImage with the name in keys, comments and fields of text."
    for key in (b"PatientName:=", b"# ", b"content: ", b"0008_0010:="):
        yield write_itk(
            folder / f"{len(list(folder.iterdir()))}.nrrd",
            lambda b, key=key: b.replace(b"type:", key + NAME.encode() + b"\ntype:", 1),
        )
    for key in (b"Comment", b"Name", b"PatientName", b"AcquisitionDate", b"Modality"):
        yield write_itk(
            folder / f"{len(list(folder.iterdir()))}.mha",
            lambda b, key=key: b.replace(b"NDims", key + b" = " + NAME.encode() + b"\nNDims", 1),
        )
    image = nib.MGHImage(SCAN, None)
    image.to_filename(folder / "a.mgh")
    yield put(folder / "b.mgh", (folder / "a.mgh").read_bytes() + NAME.encode())


def bad_files(folder):
    "Files that are refused, with the name where the fault is: the message must not quote it."
    name = NAME.encode()
    yield put(folder / "magic.nii", nifti_bytes(fields=dict(magic=name[:3])))
    yield put(folder / "text.nii", name * 4)
    yield put(folder / "page.nii.gz", b"<html>" + name)
    for n, (old, new) in enumerate(
        (
            (b"encoding: gzip", b"encoding: " + name),
            (b"type: short", b"type: " + name),
            (b"space: left", b"space: " + name),
            (b"kinds: domain", b"kinds: " + name),
            (b"sizes: 24", b"sizes: " + name),
            (b"endian: little", b"endian: " + name),
            (b"type:", name + b": 1\ntype:"),
        )
    ):
        yield write_itk(folder / f"{n}.nrrd", lambda b, old=old, new=new: b.replace(old, new, 1))
    for n, (old, new) in enumerate(
        (
            (b"= MET_SHORT", b"= " + name),
            (b"DimSize = 24", b"DimSize = " + name),
            (b"ElementSpacing = 2", b"ElementSpacing = " + name),
            (b"ObjectType = Image", b"ObjectType = " + name),
        )
    ):
        yield write_itk(folder / f"{n}.mha", lambda b, old=old, new=new: b.replace(old, new, 1))
    for n, tags in enumerate(
        (
            dict(Modality=NAME, ImagePositionPatient=None),
            dict(PhotometricInterpretation=NAME),
            dict(Modality=NAME, Rows=None, Columns=None),
            dict(Modality="SEG", SeriesDescription=NAME),
        )
    ):
        yield write_stack(folder / f"d{n}", tags=tags)
    two = write_stack(folder / "two", tags=dict(SeriesInstanceUID=NAME, SeriesDescription=NAME))
    write_stack(two, tags=dict(SeriesInstanceUID=NAME + "2"), stem="B")
    yield two
    slope = folder / "slope"
    write_stack(slope)
    file = slope / "IM000"
    file.write_bytes(file.read_bytes().replace(b"-1024 ", b"ZZPATI"))
    yield slope


def leaks(text) -> bool:
    return NAME[:6] in (text.decode("latin1") if isinstance(text, bytes) else text)


def no_name_in(folder):
    "Every file below `folder`, unpacked where it is packed, free of the name."
    files = [p for p in folder.rglob("*") if p.is_file()]
    for path in files:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        assert (
            not leaks(data)
            and NAME.encode("utf-16-le") not in data
            and NAME.encode("utf-16-be") not in data
        ), path
    return len(files)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    "Scans with the name in them, and the paths to read."
    top = tmp_path_factory.mktemp("source")
    folders = [top / n for n in ("nifti", "text", "bad")]
    for f in folders:
        f.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom knows that the name is no date
        series = write_stack(top / "series", tags=dicom_tags())
        for file in series.iterdir():
            import pydicom

            d = pydicom.dcmread(file)
            block = d.private_block(0x0011, NAME, create=True)
            block.add_new(1, "LO", NAME)
            block.add_new(2, "UN", NAME.encode())
            d.save_as(file)
        good = [*nifti_files(folders[0]), *text_files(folders[1]), series]
        bad = list(bad_files(folders[2]))
    return top, good, bad


def test_the_name_is_there(source):
    top, good, bad = source
    raw = [
        p.read_bytes()
        for path in good + bad
        for p in ([path] if path.is_file() else path.iterdir())
    ]
    assert (
        sum(leaks(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data) for data in raw) > 40
        and len(dicom_tags()) > 1000
    )


def test_masks_and_scans_are_written_without_it(source, tmp_path):
    top, good, bad = source
    for n, path in enumerate(good):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            v = read_volume(path)
        write_volume(tmp_path / f"{n}.nii", v)
        write_labels(tmp_path / f"{n}_mask.nii.gz", Volume((v.voxels > 0), v.affine))
    assert no_name_in(tmp_path) == 2 * len(good)


def test_messages_do_not_quote_it(source, capfd):
    top, good, bad = source
    for path in good + bad:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            said = [json.dumps(check_path(path))]
            for read in (read_volume, read_header):
                try:
                    said.append(repr(getattr(read(path), "modality", "")))
                except InputError as error:
                    said.append(str(error))
        assert not any(leaks(text) for text in said + [str(w.message) for w in heard]), (path, said)
    assert all(check_path(path)["status"] == "refused" for path in bad)
    assert not leaks("".join(capfd.readouterr()))


def test_free_text_is_told_where_a_format_has_room_for_it(source):
    top, good, bad = source
    quiet = [
        p.name
        for p in good
        if p.suffix != ".mgh" and p.is_file() and "header_text" not in read_header(p).flags
    ]
    # text behind the voxels, 15 bytes that no program uses, and the key Modality
    assert sorted(quiet) == ["1_unused_str.nii", "8.mha", "tail.nii"], quiet


def test_command_line_is_silent_about_it(source):
    top, good, bad = source
    for words in (
        ["survey", top, "--json"],
        ["survey", top],
        ["check", *good, *bad, "--json"],
        ["check", *good, *bad],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "medseg", *map(str, words)], capture_output=True, text=True
        )
        assert (
            len(done.stdout) > 500
            and "Traceback" not in done.stderr
            and not leaks(done.stdout + done.stderr)
        )


def test_a_run_and_its_pages_do_not_carry_it(source, tmp_path):
    "Survey, record, figures, masks, checkpoint, manifest and page of a run on such scans."
    top, good, bad = source
    run = start_run("segment", dict(name="private", manifest="m.csv", steps=1), tmp_path / "run")
    table = survey(top)
    write_json(run.folder / "survey.json", table)
    run.figure(plot_survey(table), "survey", "What the scans are.")
    recipe = SegmentRecipe(3, "middle", 2, "none", 4, 2, 2.0, 60.0, 400.0, True, ("organ",))
    save_model(run.folder / "model.safetensors", recipe.net(), recipe, dict(run="private", step=1))
    rows, shown, items = [], [], []
    for n, path in enumerate(good[:3] + good[-1:]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scan = read_volume(path)
        mask = Volume((scan.voxels > 0).astype(np.uint8), scan.affine)
        write_labels(run.folder / "masks" / f"s{n}.nii.gz", mask)
        rows.append(
            {
                "subject": f"s{n}",
                "class": "organ",
                "z_mm": scan.spacing[2],
                **evaluate(mask, mask, [1])["1"],
            }
        )
        run.row("subject", rows[-1])
        shown.append((f"s{n}", *best_slice(scan, mask, mask)))
        items.append(Item(f"s{n}", path))
    run.figure(overlay_figure(shown), "masks", "Masks.")
    run.figure(dice_figure(rows), "dice", "Dice.")
    plt.close("all")
    write_manifest(run.folder / "manifest.csv", items)
    finish_run(
        run,
        dict(dice=1.0),
        rows,
        dict(updates=1),
        "real",
        digest(*[p for p in good if p.is_file()]),
        ["made for a test"],
    )
    write_page(run.folder)
    (tmp_path / "log.html").write_text(log_page([run.folder]))
    assert no_name_in(tmp_path) > 12
