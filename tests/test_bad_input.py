"""Bad and odd inputs of every kind.

Refused in one line with a stable code, or mended with one warning; no other exception.
"""

import gzip
import os
import tarfile
import warnings
import zipfile
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLosslessSV1

from medseg.io.check import check_labels, check_pair, check_path
from medseg.io.files import InputError, RepairWarning
from medseg.io.read import read_header, read_volume
from medseg.io.write import write_labels, write_volume
from medseg.zdepth.survey import survey
from medseg.io.volume import Volume, reorient

X, Y, Z = np.meshgrid(np.arange(24), np.arange(20), np.arange(12), indexing="ij")
SCAN = (np.where(np.hypot(X - 9, Y - 8) < 6, 60, -1000) + (7 * X + 5 * Y + 3 * Z) % 13).astype(
    np.int16
)
ORGAN = (np.hypot(X - 9, Y - 8) < 6).astype(np.uint8)
PLACE = np.array([[-2.0, 0, 0, 30], [0, 2, 0, -25], [0, 0, 3, 100], [0, 0, 0, 1]])


def nifti(
    path,
    voxels=SCAN,
    sform=PLACE,
    qform=PLACE,
    change=None,
    level=6,
    kind=nib.Nifti1Image,
    extension=None,
    **fields,
):
    "A NIfTI file with header fields overwritten after the fact and bytes changed by `change`."
    image = kind(voxels, PLACE)
    image.set_qform(qform, int(qform is not None))
    image.set_sform(sform, int(sform is not None))
    if extension:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", extension))
    data = bytearray(image.to_bytes())
    size = 348 if kind is nib.Nifti1Image else 540
    header = (nib.Nifti1Header if size == 348 else nib.Nifti2Header)(
        bytes(data[:size]), check=False
    )
    for name, value in fields.items():
        header[name] = value
    data[:size] = header.binaryblock
    data = gzip.compress(bytes(data), level, mtime=0) if str(path).endswith(".gz") else bytes(data)
    Path(path).write_bytes(change(data) if change else data)
    return Path(path)


def affine(**entries):
    "PLACE with some entries changed, named like z3 (row z, column 3)."
    out = PLACE.copy()
    for name, value in entries.items():
        out["xyz".index(name[0]), int(name[1])] = value
    return out


def flip(data, at):
    data = bytearray(data)
    data[at] ^= 1
    return bytes(data)


def put(path, data):
    path.write_bytes(data)
    return path


def nan(value, dtype=np.float32):
    out = SCAN.astype(dtype)
    out[3, 4, 5] = value
    return out


def itk(path, change=None, packed=True, voxels=SCAN, **kw):
    image = sitk.GetImageFromArray(voxels.T, **kw)
    image.SetSpacing((2, 2, 3))
    sitk.WriteImage(image, str(path), packed)
    if change:
        path.write_bytes(change(path.read_bytes()))
    return path


def dicom(
    folder,
    heights=range(0, 24, 3),
    series="1.2.3",
    turn=(1, 0, 0, 0, 1, 0),
    aside=0.0,
    change=None,
    stem="IM",
    **tags,
):
    "A series whose file names are not in the order of its heights."
    folder.mkdir(exist_ok=True)
    for n, z in enumerate(heights):
        d = Dataset()
        d.SOPClassUID, d.SeriesInstanceUID, d.SOPInstanceUID, d.Modality = (
            CTImageStorage,
            series,
            f"{series}.{n + 1}",
            "CT",
        )
        d.ImagePositionPatient, d.ImageOrientationPatient, d.PixelSpacing = (
            [0, aside * z, z],
            list(turn),
            [2, 2],
        )
        d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation, d.PixelRepresentation = (
            20,
            24,
            1,
            "MONOCHROME2",
            0,
        )
        (
            d.BitsAllocated,
            d.BitsStored,
            d.HighBit,
            d.RescaleSlope,
            d.RescaleIntercept,
            d.SliceThickness,
        ) = (16, 12, 11, "1", "-1024", "")
        d.PixelData = (SCAN[:, :, n % 12].T.astype(int) + 1024).astype("<u2").tobytes()
        for name, value in tags.items():
            setattr(d, name, value)
        d.file_meta = FileMetaDataset()
        (
            d.file_meta.MediaStorageSOPClassUID,
            d.file_meta.MediaStorageSOPInstanceUID,
            d.file_meta.TransferSyntaxUID,
        ) = (CTImageStorage, d.SOPInstanceUID, ExplicitVRLittleEndian)
        file = folder / f"{stem}{(n*5) % 97:03d}"
        d.save_as(file, enforce_file_format=True)
        if change:
            change(file)
    return folder


def cut(file):
    file.write_bytes(file.read_bytes()[:-400])


def pack(file):
    d = pydicom.dcmread(file)
    d.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    d.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8" + bytes(100)])
    d["PixelData"].VR = "OB"
    d.save_as(file)


def archive(path):
    with tarfile.open(path, "w:gz") as tar:
        tar.add(__file__, "x")
    return path


def zipped(path):
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("a", "b")
    return path


def lone(path, keep):
    "One file of a pair."
    nib.save(nib.Nifti1Pair(SCAN, PLACE), path.with_suffix(".hdr"))
    path.with_suffix(".img" if keep == ".hdr" else ".hdr").unlink()
    return path.with_suffix(keep)


def mgh(path, **fields):
    image = nib.MGHImage(SCAN, PLACE)
    data = bytearray(image.to_bytes())
    h = nib.freesurfer.mghformat.MGHHeader(bytes(data[:90]), check=False)
    for name, value in fields.items():
        h[name] = value
    data[:90] = h.binaryblock[:90]
    return put(path, bytes(data))


REFUSED = {  # name: (code, make(folder))
    "gz_truncated": (
        "gzip_truncated",
        lambda f: nifti(f / "a.nii.gz", change=lambda b: b[: len(b) * 2 // 3]),
    ),
    "gz_cut_in_checksum": (
        "gzip_truncated",
        lambda f: nifti(f / "a.nii.gz", change=lambda b: b[:-3]),
    ),
    "gz_cut_to_head": ("gzip_truncated", lambda f: nifti(f / "a.nii.gz", change=lambda b: b[:8])),
    "gz_bitflip_stored": (
        "gzip_corrupt",
        lambda f: nifti(f / "a.nii.gz", level=0, change=lambda b: flip(b, -900)),
    ),
    "gz_bitflip_checksum": (
        "gzip_corrupt",
        lambda f: nifti(f / "a.nii.gz", change=lambda b: flip(b, -6)),
    ),
    "raw_truncated": ("file_truncated", lambda f: nifti(f / "a.nii", change=lambda b: b[:-500])),
    "gz_of_truncated": (
        "file_truncated",
        lambda f: put(f / "a.nii.gz", gzip.compress(nifti(f / "b.nii").read_bytes()[:-500])),
    ),
    "header_truncated": (
        "header_truncated",
        lambda f: nifti(f / "a.nii", change=lambda b: b[:200]),
    ),
    "empty": ("empty_file", lambda f: put(f / "a.nii.gz", b"")),
    "directory": ("no_images", lambda f: (f / "a.nii.gz").mkdir() or f / "a.nii.gz"),
    "missing": ("not_found", lambda f: f / "a.nii.gz"),
    "html": (
        "html_page",
        lambda f: put(f / "a.nii.gz", b"\n<!DOCTYPE html><html><body>log in</body></html>"),
    ),
    "html_packed": (
        "html_page",
        lambda f: put(f / "a.nii.gz", gzip.compress(b"<html>log in</html>")),
    ),
    "lfs_pointer": (
        "lfs_pointer",
        lambda f: put(
            f / "a.nii.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
        ),
    ),
    "text": ("text_file", lambda f: put(f / "a.nii", b"see the other folder\n")),
    "zip": ("format_unsupported", lambda f: zipped(f / "a.nii.gz")),
    "tar": ("format_unsupported", lambda f: archive(f / "a.nii.gz")),
    "packed_twice": ("format_unsupported", lambda f: nifti(f / "a.nii.gz", change=gzip.compress)),
    "fifo": ("not_a_file", lambda f: os.mkfifo(f / "a.nii") or f / "a.nii"),
    "png": ("format_unsupported", lambda f: put(f / "a.nii", b"\x89PNG\r\n\x1a\n" + bytes(400))),
    "numpy": ("format_unsupported", lambda f: np.save(f / "a.npy", SCAN) or f / "a.npy"),
    "noise": ("format_unknown", lambda f: put(f / "a.nii", bytes(range(255, 0, -1)) * 4)),
    "magic": ("magic_unknown", lambda f: nifti(f / "a.nii.gz", magic=b"XXX")),
    "bomb_1e12": (
        "declared_size",
        lambda f: nifti(f / "a.nii.gz", dim=[3, 10000, 10000, 10000, 1, 1, 1, 1]),
    ),
    "bomb_12GB": (
        "declared_size",
        lambda f: nifti(f / "a.nii.gz", dim=[3, 2000, 2000, 1500, 1, 1, 1, 1]),
    ),
    "bomb_raw": (
        "file_truncated",
        lambda f: nifti(f / "a.nii", dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]),
    ),
    "bomb_nifti2": (
        "declared_size",
        lambda f: nifti(
            f / "a.nii.gz", kind=nib.Nifti2Image, dim=[3, 2**40, 2**40, 2**40, 1, 1, 1, 1]
        ),
    ),
    "tail_bomb": (
        "size_mismatch",
        lambda f: nifti(
            f / "a.nii.gz", change=lambda b: gzip.compress(gzip.decompress(b) + bytes(5_000_000))
        ),
    ),
    "dim_negative": (
        "dim_not_positive",
        lambda f: nifti(f / "a.nii", dim=[3, -24, 20, 12, 1, 1, 1, 1]),
    ),
    "dim_zero": ("dim_not_positive", lambda f: nifti(f / "a.nii", dim=[3, 24, 0, 12, 1, 1, 1, 1])),
    "dim0_9": ("dim_count", lambda f: nifti(f / "a.nii", dim=[9, 24, 20, 12, 1, 1, 1, 1])),
    "pixdim_zero": ("pixdim_bad", lambda f: nifti(f / "a.nii", pixdim=[1, 2, 2, 0, 0, 0, 0, 0])),
    "pixdim_nan": (
        "pixdim_bad",
        lambda f: nifti(f / "a.nii", sform=None, pixdim=[1, 2, 2, np.nan, 0, 0, 0, 0]),
    ),
    "pixdim_inf": (
        "pixdim_bad",
        lambda f: nifti(f / "a.nii", pixdim=[1, 2, np.inf, 3, 0, 0, 0, 0]),
    ),
    "affine_singular": ("affine_singular", lambda f: nifti(f / "a.nii", srow_y=[-2, 0, 0, 30])),
    "affine_zero": ("affine_singular", lambda f: nifti(f / "a.nii", srow_x=0, srow_y=0, srow_z=0)),
    "affine_nan": ("affine_nan", lambda f: nifti(f / "a.nii", srow_z=[0, 0, 3, np.nan])),
    "affine_absurd": ("spacing_absurd", lambda f: nifti(f / "a.nii", srow_z=[0, 0, 1e30, 0])),
    "affine_sheared": (
        "affine_sheared",
        lambda f: nifti(f / "a.nii", sform=affine(y2=0.8), qform=None),
    ),
    "orientation_conflict": (
        "orientation_conflict",
        lambda f: nifti(f / "a.nii", qform=affine(x0=2, x3=-30)),
    ),
    "quaternion": ("qform_bad", lambda f: nifti(f / "a.nii", sform=None, quatern_b=3)),
    "xform_code": ("xform_code_unknown", lambda f: nifti(f / "a.nii", sform_code=99)),
    "units": ("units_not_mm", lambda f: nifti(f / "a.nii", xyzt_units=3)),
    "datatype": ("datatype_unknown", lambda f: nifti(f / "a.nii", datatype=999)),
    "bitpix": ("bitpix_mismatch", lambda f: nifti(f / "a.nii", bitpix=8)),
    "rgb": ("rgb", lambda f: nifti(f / "a.nii", datatype=128, bitpix=24)),
    "complex": ("complex", lambda f: nifti(f / "a.nii", SCAN.astype(np.complex64))),
    "offset": ("offset_bad", lambda f: nifti(f / "a.nii", vox_offset=100)),
    "offset_nan": ("offset_bad", lambda f: nifti(f / "a.nii", vox_offset=np.nan)),
    "slope_inf": ("scale_not_finite", lambda f: nifti(f / "a.nii", scl_slope=np.inf)),
    "intercept_nan": (
        "scale_not_finite",
        lambda f: nifti(f / "a.nii", scl_slope=2, scl_inter=np.nan),
    ),
    "eol": (
        "eol_changed",
        lambda f: nifti(f / "a.nii", kind=nib.Nifti2Image, eol_check=[10, 26, 10, 0]),
    ),
    "voxel_nan": ("voxel_nan", lambda f: nifti(f / "a.nii", nan(np.nan))),
    "voxel_inf": ("voxel_inf", lambda f: nifti(f / "a.nii.gz", nan(np.inf, np.float64))),
    "scaled_to_inf": (
        "voxel_inf",
        lambda f: nifti(f / "a.nii", nan(1e308, np.float64), scl_slope=1e30),
    ),
    "constant": ("constant", lambda f: nifti(f / "a.nii", SCAN * 0 + 7)),
    "four_d": ("four_d", lambda f: nifti(f / "a.nii", np.stack([SCAN] * 3, -1))),
    "two_d": ("two_d", lambda f: nifti(f / "a.nii", SCAN[:, :, 0])),
    "hdr_without_img": ("image_part_missing", lambda f: lone(f / "a", ".hdr")),
    "img_without_hdr": ("header_part_missing", lambda f: lone(f / "a", ".img")),
    "mgh_dims": ("dim_not_positive", lambda f: mgh(f / "a.mgh", dims=[24, 0, 12, 1])),
    "mgh_frames": ("four_d", lambda f: mgh(f / "a.mgh", dims=[24, 20, 12, 2])),
    "mgh_type": ("datatype_unknown", lambda f: mgh(f / "a.mgh", type=77)),
    "mgh_delta": ("pixdim_bad", lambda f: mgh(f / "a.mgh", delta=[0, 2, 2])),
    "mgh_cut": ("file_truncated", lambda f: put(f / "a.mgh", mgh(f / "b.mgh").read_bytes()[:900])),
    "mha_truncated": (
        "file_truncated",
        lambda f: itk(f / "a.mha", lambda b: b[:-100], packed=False),
    ),
    "mha_packed_truncated": ("gzip_truncated", lambda f: itk(f / "a.mha", lambda b: b[:-100])),
    "mha_bitflip": ("gzip_corrupt", lambda f: itk(f / "a.mha", lambda b: flip(b, -2))),
    "mhd_without_raw": (
        "image_part_missing",
        lambda f: [itk(f / "a.mhd", packed=False), (f / "a.raw").unlink()][0],
    ),
    "mhd_outside": (
        "data_file_unsupported",
        lambda f: itk(
            f / "a.mhd", lambda b: b.replace(b"a.raw", b"../../etc/passwd"), packed=False
        ),
    ),
    "mha_no_spacing": (
        "pixdim_bad",
        lambda f: itk(
            f / "a.mha", lambda b: b.replace(b"ElementSpacing", b"ElementSpacink"), packed=False
        ),
    ),
    "mha_rgb": (
        "rgb",
        lambda f: itk(f / "a.mha", voxels=np.stack([SCAN] * 3, 0).astype(np.uint8), isVector=True),
    ),
    "nrrd_bitflip": ("gzip_corrupt", lambda f: itk(f / "a.nrrd", lambda b: flip(b, -6))),
    "nrrd_cut": ("gzip_truncated", lambda f: itk(f / "a.nrrd", lambda b: b[:-30])),
    "nrrd_encoding": (
        "encoding_unsupported",
        lambda f: itk(f / "a.nrrd", lambda b: b.replace(b"encoding: gzip", b"encoding: bz2!")),
    ),
    "nrrd_garbled": (
        "header_unreadable",
        lambda f: itk(f / "a.nrrd", lambda b: b.replace(b"sizes:", b"sizes: x")),
    ),
    "dicom_gap": ("dicom_gap", lambda f: dicom(f / "s", (0, 3, 6, 12, 15))),
    "dicom_duplicate": ("dicom_duplicate_slice", lambda f: dicom(f / "s", (0, 3, 6, 6, 9))),
    "dicom_uneven": ("dicom_uneven_steps", lambda f: dicom(f / "s", (9, 0, 3.5, 6))),
    "dicom_one_place": ("dicom_same_position", lambda f: dicom(f / "s", (5, 5, 5))),
    "dicom_single": ("dicom_single_slice", lambda f: dicom(f / "s", (5,))),
    "dicom_single_file": ("dicom_single_slice", lambda f: dicom(f / "s", (5,)) / "IM000"),
    "dicom_two_slices": ("dicom_too_few_slices", lambda f: dicom(f / "s", (5, 8))),
    "dicom_two_series": (
        "dicom_two_series",
        lambda f: [dicom(f / "s"), dicom(f / "s", series="1.2.4", stem="B")][0],
    ),
    "dicom_tilt": ("dicom_gantry_tilt", lambda f: dicom(f / "s", aside=0.3)),
    "dicom_mixed_size": (
        "dicom_mixed_size",
        lambda f: [dicom(f / "s"), dicom(f / "s", (30, 33), stem="B", Rows=10)][0],
    ),
    "dicom_mixed_turn": (
        "dicom_mixed_orientation",
        lambda f: [dicom(f / "s"), dicom(f / "s", (30,), stem="B", turn=(0, 1, 0, 0, 0, -1))][0],
    ),
    "dicom_seg": ("dicom_not_image", lambda f: dicom(f / "s", Modality="SEG")),
    "dicom_rtstruct": (
        "dicom_not_image",
        lambda f: dicom(f / "s", (0,), Modality="RTSTRUCT") / "IM000",
    ),
    "dicom_no_place": ("dicom_no_geometry", lambda f: dicom(f / "s", ImagePositionPatient=None)),
    "dicom_zero_pixel": ("dicom_bad_geometry", lambda f: dicom(f / "s", PixelSpacing=[0, 2])),
    "dicom_colour": ("dicom_colour", lambda f: dicom(f / "s", PhotometricInterpretation="RGB")),
    "dicom_cut": ("dicom_truncated", lambda f: dicom(f / "s", change=cut)),
    "dicom_no_decoder": ("dicom_no_decoder", lambda f: dicom(f / "s", change=pack)),
}

LABELS_REFUSED = {
    "half": ("label_fractional", lambda f: nifti(f / "a.nii.gz", ORGAN * 0.5)),
    "negative": ("label_negative", lambda f: nifti(f / "a.nii", ORGAN.astype(np.int16) - 1)),
    "slope": ("label_scaled", lambda f: nifti(f / "a.nii", ORGAN, scl_slope=0.5)),
    "nan": ("label_nan", lambda f: nifti(f / "a.nii", np.where(ORGAN, np.nan, 0))),
    "huge": ("label_too_large", lambda f: nifti(f / "a.nii", ORGAN.astype(np.int32) * 100000)),
}

MENDED = {  # name: (codes, role, make)
    "raw_named_gz": (
        "container_name",
        "image",
        lambda f: nifti(f / "a.nii").rename(f / "a.nii.gz"),
    ),
    "gz_named_nii": (
        "container_name",
        "image",
        lambda f: nifti(f / "a.nii.gz").rename(f / "a.nii"),
    ),
    "pixdim_negative": (
        "negative_pixdim",
        "image",
        lambda f: nifti(f / "a.nii", pixdim=[-1, 2, 2, -3, 0, 0, 0, 0]),
    ),
    "no_orientation": (
        "orientation_unknown",
        "image",
        lambda f: nifti(f / "a.nii", sform=None, qform=None),
    ),
    "sform_elsewhere": ("sform_qform", "image", lambda f: nifti(f / "a.nii", sform=affine(z3=148))),
    "pixdim_differs": (
        "pixdim_differs",
        "image",
        lambda f: nifti(f / "a.nii", qform=None, pixdim=[1, 1, 1, 1, 0, 0, 0, 0]),
    ),
    "trailing": (
        "trailing_bytes",
        "image",
        lambda f: nifti(f / "a.nii", change=lambda b: b + b"more"),
    ),
    "wrapped": ("wrapped", "image", lambda f: nifti(f / "a.nii", SCAN.astype(np.uint16))),
    "two_at_once": (
        "negative_pixdim,orientation_unknown",
        "labels",
        lambda f: nifti(f / "a.nii", ORGAN, None, None, pixdim=[1, 2, 2, -3, 0, 0, 0, 0]),
    ),
}

GOOD = {
    "plain": ("image", lambda f: nifti(f / "a.nii.gz")),
    "nifti2": ("image", lambda f: nifti(f / "a.nii", kind=nib.Nifti2Image)),
    "slope_nan": ("image", lambda f: nifti(f / "a.nii", scl_slope=np.nan)),
    "singleton": ("image", lambda f: nifti(f / "a.nii", SCAN[..., None])),
    "one_slice": ("image", lambda f: nifti(f / "a.nii", SCAN[:, :, :1])),
    "float_labels": ("labels", lambda f: nifti(f / "a.nii.gz", ORGAN.astype(np.float64))),
    "script_in_descrip": (
        "image",
        lambda f: nifti(f / "a.nii", descrip=b"<script>alert(1)</script>"),
    ),
    "noise": ("image", lambda f: nifti(f / "a.nii", sform=affine(z3=100.00001))),
    "big_endian": ("image", lambda f: nifti(f / "a.nii", SCAN.astype(">f4"))),
    "two_members": (
        "image",
        lambda f: nifti(
            f / "a.nii.gz",
            change=lambda b: gzip.compress(gzip.decompress(b)[:999])
            + gzip.compress(gzip.decompress(b)[999:]),
        ),
    ),
    "dicom": ("image", lambda f: dicom(f / "s")),
    "nrrd": ("image", lambda f: itk(f / "a.nrrd")),
    "mhd": ("image", lambda f: itk(f / "a.mhd", packed=False)),
    "mgh": ("image", lambda f: mgh(f / "a.mgh")),
    "empty_labels": ("labels", lambda f: nifti(f / "a.nii", ORGAN * 0)),
}


def refusal(call):
    """The InputError that `call` raises.

    Its message is one line that names field, found, needs and cure.
    """
    with pytest.raises(InputError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call()
    text = str(caught.value)
    assert (
        len(text.splitlines()) == 1
        and text.isprintable()
        and all(part in text for part in (": found ", "; needs ", "; do "))
    ), text
    return caught.value


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    code, make = REFUSED[name]
    path = make(tmp_path)
    error = refusal(lambda: read_volume(path))
    assert error.code == code and path.name in str(error), str(error)


@pytest.mark.parametrize("name", LABELS_REFUSED)
def test_labels_refused(name, tmp_path):
    code, make = LABELS_REFUSED[name]
    path = make(tmp_path)
    assert refusal(lambda: read_volume(path, "labels")).code == code


@pytest.mark.parametrize("name", MENDED)
def test_mended_with_one_warning(name, tmp_path):
    codes, role, make = MENDED[name]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        read_volume(make(tmp_path), role)
    assert [(w.category, ",".join(w.message.codes)) for w in heard] == [(RepairWarning, codes)]
    assert len(str(heard[0].message).splitlines()) == 1


@pytest.mark.parametrize("name", GOOD)
def test_good_is_accepted_in_silence(name, tmp_path):
    role, make = GOOD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = make(tmp_path)
        v, header = read_volume(path, role), read_header(path)
    assert (
        v.shape == header.shape
        and np.array_equal(v.affine, header.affine)
        and v.voxels.dtype.isnative
    )


def test_no_memory_for_a_lie(tmp_path):
    "Headers that claim 12 GB and more are refused without asking for it."
    import tracemalloc

    tracemalloc.start()
    for name in ("bomb_12GB", "bomb_1e12", "bomb_nifti2", "bomb_raw", "tail_bomb"):
        path = REFUSED[name][1](tmp_path)
        tracemalloc.reset_peak()
        refusal(partial(read_volume, path))
        assert tracemalloc.get_traced_memory()[1] < 32e6, name
    tracemalloc.stop()


PAIRS = {
    "shape": ("pair_shape", Volume(ORGAN[:, :, :-1], PLACE)),
    "origin": ("pair_origin", Volume(ORGAN, affine(z3=130))),
    "spacing": ("pair_spacing", Volume(ORGAN, affine(z2=2.5))),
    "flipped": ("pair_orientation", Volume(ORGAN, affine(x0=2, x3=-16))),
    "undeclared": ("label_undeclared", Volume(ORGAN * 37, PLACE)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pair_refused(name):
    code, labels = PAIRS[name]
    assert refusal(lambda: check_pair(Volume(SCAN, PLACE), labels, classes=3)).code == code


def test_labels_along_other_axes_are_turned():
    "Stored along other axes and in the right place: one warning, whatever the shapes."
    for axes in ([2, 0, 1], [1, 0, 2]):
        with pytest.warns(RepairWarning, match="turned by the affine"):
            check_pair(
                Volume(SCAN, PLACE), Volume(ORGAN.transpose(axes), PLACE[:, [*axes, 3]]), classes=3
            )
    with pytest.warns(RepairWarning, match="turned by the affine"):
        check_pair(Volume(SCAN, PLACE), reorient(Volume(ORGAN, PLACE), "LPS"), classes=3)


def test_pair_with_noise_is_accepted():
    check_pair(Volume(SCAN, PLACE), Volume(ORGAN, affine(z3=100.00001, x0=-2.0000001)), classes=2)


def test_empty_labels_are_told():
    with pytest.warns(RepairWarning, match="no voxel is labelled"):
        check_labels(Volume(ORGAN * 0, PLACE))


def test_text_of_a_header_is_told_and_never_written(tmp_path):
    secret = b"DOE^JANE"
    path = nifti(
        tmp_path / "a.nii", descrip=secret, db_name=secret, aux_file=secret, extension=secret
    )
    row = check_path(path)
    assert (row["status"], row["code"]) == ("repaired", "header_text") and "JANE" not in str(row)
    out = [
        write_volume(tmp_path / "b.nii", read_volume(path)),
        write_labels(tmp_path / "c.nii", Volume(ORGAN, read_volume(path).affine)),
    ]
    assert all(b"JANE" not in file.read_bytes() for file in out)
    assert np.array_equal(read_volume(out[1], "labels").affine, read_volume(path).affine)


def test_survey_makes_a_row_of_everything(tmp_path):
    for name, (_, make) in (REFUSED | LABELS_REFUSED).items():
        (tmp_path / name).mkdir()
        make(tmp_path / name)
    for name, (_, make) in GOOD.items():
        (tmp_path / "good" / name).mkdir(parents=True)
        make(tmp_path / "good" / name)
    table = survey(tmp_path)
    assert "unexpected" not in [row["code"] for row in table["refused"]]
    assert sum("/good/" in row["path"] for row in table["volumes"]) == len(GOOD) and not any(
        "/good/" in row["path"] for row in table["refused"]
    )


@pytest.mark.parametrize("seed", range(4))
def test_changed_bytes_never_crash(seed, tmp_path):
    """Files with a few random bytes changed are read as nibabel reads them, or refused by our own
    error.
    """
    pick, base = np.random.default_rng(seed), nifti(tmp_path / "base.nii").read_bytes()
    for n in range(150):
        data = bytearray(base)
        for _ in range(pick.integers(1, 5)):
            data[pick.integers(352)] = pick.integers(256)
        path = put(tmp_path / f"{n}.nii", bytes(data))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                v = read_volume(path)
            except InputError:
                continue
            assert np.array_equal(v.voxels, np.asanyarray(nib.load(path).dataobj).reshape(v.shape))


def test_unreadable_file(tmp_path, monkeypatch):
    "A disk that says no is told like any other refusal."

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("medseg.io.read.peek", denied)
    path = nifti(tmp_path / "a.nii")
    assert (
        refusal(lambda: read_volume(path)).code
        == refusal(lambda: read_header(path)).code
        == "not_readable"
    )
