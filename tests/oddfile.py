"""Files broken in every way that was met in real collections.

A toy scan, its labels, and a list of cases.
"""

import gzip
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

_X, _Y, _Z = np.meshgrid(np.arange(24), np.arange(20), np.arange(12), indexing="ij")
_FAR = np.hypot(np.hypot(_X - 11, _Y - 10), 1.5 * (_Z - 6))
SCAN = (np.where(_FAR < 8, 60, -1000) + (7 * _X + 5 * _Y + 3 * _Z) % 13).astype(
    np.int16
)  # (x, y, z), HU
ORGAN = (1 * (_FAR < 8) + (_FAR < 3)).astype(np.uint8)  # 1 organ, 2 lesion
PLACE = np.array([[-2.0, 0, 0, 22], [0, 2, 0, -20], [0, 0, 3, 100], [0, 0, 0, 1]])


def nifti_bytes(
    voxels: np.ndarray = SCAN,
    affine: np.ndarray = PLACE,
    fields: dict | None = None,
    text: bytes = b"",
    kind: type = nib.Nifti1Image,
    endian: str = "<",
) -> bytes:
    """A scan as the bytes of a NIfTI file, well formed but for `fields`.

    Parameters
    ----------
    affine
        becomes both sform and qform
    fields
        header fields that are overwritten after the fact: that is how odd files come about
    text
        of a comment extension
    kind
        or Nifti2Image
    endian
        of header and voxels

    Returns
    -------
    bytes
        a single-file NIfTI, not packed
    """
    image = kind(voxels, affine, kind.header_class(endianness=endian), dtype=voxels.dtype)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    if text:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", text))
    data, size = bytearray(image.to_bytes()), image.header.sizeof_hdr
    header = type(image.header)(bytes(data[:size]), endianness=endian, check=False)
    for name, value in (fields or {}).items():
        header[name] = value
    return header.binaryblock + bytes(data[size:])


class Odd(NamedTuple):
    """A bad or odd input, and what a reader should do with it.

    Parameters
    ----------
    path
        the scan: a file, or the folder of a DICOM series
    label
        its label map, where the case is about a pair
    kind
        what is wrong, in a word
    expected
        "refuse", "repair" or "accept"
    code
        that medseg gives; "" for accept
    """

    path: Path
    label: Path | None
    kind: str
    expected: str
    code: str


CLASSES = (0, 1, 2)  # the labels that may occur in a case with a label map

_HEADERS = dict(  # kind: (expected, code, fields)
    magic=("refuse", "magic_unknown", dict(magic=b"XXX")),
    dim_negative=("refuse", "dim_not_positive", dict(dim=[3, -24, 20, 12, 1, 1, 1, 1])),
    dim_zero=("refuse", "dim_not_positive", dict(dim=[3, 24, 0, 12, 1, 1, 1, 1])),
    dim0_is_9=("refuse", "dim_count", dict(dim=[9, 24, 20, 12, 1, 1, 1, 1])),
    bomb_1e12=("refuse", "declared_size", dict(dim=[3, 10000, 10000, 10000, 1, 1, 1, 1])),
    bomb_12GB=("refuse", "declared_size", dict(dim=[3, 2000, 2000, 1500, 1, 1, 1, 1])),
    pixdim_zero=(
        "refuse",
        "pixdim_bad",
        dict(pixdim=[1, 2, 2, 0, 0, 0, 0, 0], srow_z=[0, 0, 0, 100]),
    ),
    pixdim_nan=("refuse", "pixdim_bad", dict(sform_code=0, pixdim=[1, 2, 2, np.nan, 0, 0, 0, 0])),
    datatype_unknown=("refuse", "datatype_unknown", dict(datatype=999)),
    bitpix=("refuse", "bitpix_mismatch", dict(bitpix=8)),
    offset_in_header=("refuse", "offset_bad", dict(vox_offset=100)),
    slope_inf=("refuse", "scale_not_finite", dict(scl_slope=np.inf)),
    units_micrometre=("refuse", "units_not_mm", dict(xyzt_units=3)),
    slope_nan=("accept", "", dict(scl_slope=np.nan)),
    script_in_descrip=("accept", "", dict(descrip=b"<script>alert(1)</script>")),
)

_PLACES = dict(
    affine_singular=("refuse", "affine_singular", dict(srow_y=[-2, 0, 0, 22])),
    affine_nan=("refuse", "affine_nan", dict(srow_z=[0, 0, 3, np.nan])),
    affine_absurd=("refuse", "spacing_absurd", dict(srow_z=[0, 0, 1e30, 0])),
    affine_sheared=("refuse", "affine_sheared", dict(qform_code=0, srow_y=[0, 2, 0.8, -20])),
    orientations_disagree=("refuse", "orientation_conflict", dict(srow_x=[2, 0, 0, -24])),
    no_rotation=("refuse", "qform_bad", dict(sform_code=0, quatern_b=3)),
    xform_code=("refuse", "xform_code_unknown", dict(sform_code=99)),
    pixdim_negative=("repair", "negative_pixdim", dict(pixdim=[-1, 2, 2, -3, 0, 0, 0, 0])),
    no_orientation=("repair", "orientation_unknown", dict(sform_code=0, qform_code=0)),
    origins_disagree=("repair", "sform_qform", dict(srow_z=[0, 0, 3, 148])),
    pixdim_disagrees=(
        "repair",
        "pixdim_differs",
        dict(qform_code=0, pixdim=[1, 1, 1, 1, 0, 0, 0, 0]),
    ),
)


def _put(path: Path, data: bytes) -> Path:
    "A file with these bytes, packed if its name ends in .gz; its folder is made."
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)
    return path


def header_cases(folder: Path) -> list[Odd]:
    """Files whose header is odd.

    Parameters
    ----------
    folder
        each case gets a folder of its own in it
    """
    table = _HEADERS | _PLACES
    return [
        Odd(
            _put(folder / kind / "scan.nii.gz", nifti_bytes(fields=fields)),
            None,
            kind,
            expected,
            code,
        )
        for kind, (expected, code, fields) in table.items()
    ]


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _containers() -> dict:  # kind: (expected, code, name, bytes)
    "Good voxels in bad wrapping, and wrapping without voxels."
    good, refuse = nifti_bytes(), "refuse"
    packed, stored = gzip.compress(good, mtime=0), gzip.compress(good, 0, mtime=0)
    whole = dict(
        gz_truncated=(refuse, "gzip_truncated", "gz", packed[: len(packed) * 2 // 3]),
        gz_no_checksum=(refuse, "gzip_truncated", "gz", packed[:-3]),
        gz_bitflip=(refuse, "gzip_corrupt", "gz", _flip(stored, -900)),
        raw_truncated=(refuse, "file_truncated", "", good[:-500]),
        gz_of_truncated=(refuse, "file_truncated", "gz", gzip.compress(good[:-500])),
        header_truncated=(refuse, "header_truncated", "", good[:200]),
        packed_twice=(refuse, "format_unsupported", "gz", gzip.compress(packed)),
        tail_bomb=(refuse, "size_mismatch", "gz", gzip.compress(good + bytes(5_000_000))),
        bomb_raw=(
            refuse,
            "file_truncated",
            "",
            nifti_bytes(fields=dict(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])),
        ),
        trailing_bytes=("repair", "trailing_bytes", "", good + b"more"),
        raw_named_gz=("repair", "container_name", "gz", good),
        gz_named_nii=("repair", "container_name", "", packed),
    )
    other = dict(
        empty=(refuse, "empty_file", "gz", b""),
        html_page=(
            refuse,
            "html_page",
            "gz",
            b"<!DOCTYPE html><html><body>Please log in</body></html>",
        ),
        text=(refuse, "text_file", "", b"see the other folder\n"),
        lfs_pointer=(
            refuse,
            "lfs_pointer",
            "gz",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        ),
        picture=(refuse, "format_unsupported", "", b"\x89PNG\r\n\x1a\n" + bytes(400)),
        noise=(refuse, "format_unknown", "", bytes(range(255, 0, -1)) * 4),
    )
    return whole | other


def container_cases(folder: Path) -> list[Odd]:
    """Files whose wrapping is odd, a folder that is called like a file, and no file at all.

    Parameters
    ----------
    folder
        each case gets a folder of its own in it
    """
    cases = []
    for kind, (expected, code, ending, data) in _containers().items():
        path = folder / kind / ("scan.nii" + "." * bool(ending) + ending)
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        cases.append(Odd(path, None, kind, expected, code))
    (folder / "directory" / "scan.nii.gz").mkdir(parents=True)
    return cases + [
        Odd(folder / "directory" / "scan.nii.gz", None, "directory", "refuse", "no_images"),
        Odd(folder / "missing" / "scan.nii.gz", None, "missing", "refuse", "not_found"),
    ]


def _voxels() -> dict:  # kind: (expected, code, bytes)
    "Whole files with unfit voxels, and some that look unfit and are not."

    def one(value):
        out = SCAN.astype(np.float32)
        out[3, 4, 5] = value
        return nifti_bytes(out)

    colours = np.stack([ORGAN * 100] * 3, -1).view([(c, "u1") for c in "RGB"])[..., 0]
    name = dict(descrip=b"DOE^JANE", db_name=b"DOE^JANE", aux_file=b"DOE^JANE")
    return dict(
        rgb=("refuse", "rgb", nifti_bytes(colours)),
        voxel_nan=("refuse", "voxel_nan", one(np.nan)),
        voxel_inf=("refuse", "voxel_inf", one(np.inf)),
        constant=("refuse", "constant", nifti_bytes(SCAN * 0 + 7)),
        complex=("refuse", "complex", nifti_bytes(SCAN.astype(np.complex64))),
        four_d=("refuse", "four_d", nifti_bytes(np.stack([SCAN] * 3, -1))),
        two_d=("refuse", "two_d", nifti_bytes(SCAN[:, :, 0])),
        negative_wrapped=("repair", "wrapped", nifti_bytes(SCAN.astype(np.uint16))),
        name_in_header=("repair", "header_text", nifti_bytes(fields=name, text=b"DOE^JANE")),
        good=("accept", "", nifti_bytes()),
        nifti2=("accept", "", nifti_bytes(kind=nib.Nifti2Image)),
        big_endian=("accept", "", nifti_bytes(SCAN.astype(np.float32), endian=">")),
        singleton=("accept", "", nifti_bytes(SCAN[..., None])),
        one_slice=("accept", "", nifti_bytes(SCAN[:, :, 6:7])),
        scaled=(
            "accept",
            "",
            nifti_bytes((SCAN + 1024).astype(np.uint16), fields=dict(scl_slope=1, scl_inter=-1024)),
        ),
    )


def voxel_cases(folder: Path) -> list[Odd]:
    """Files whose voxels are odd, and well formed files that look odd.

    Parameters
    ----------
    folder
        each case gets a folder of its own in it
    """
    return [
        Odd(_put(folder / kind / "scan.nii.gz", data), None, kind, expected, code)
        for kind, (expected, code, data) in _voxels().items()
    ]


def _labels() -> dict:  # kind: (expected, code, bytes)
    "Label maps that do not fit the toy scan, and two that do."

    def at(row, column, value):
        affine = PLACE.copy()
        affine[row, column] = value
        return nifti_bytes(ORGAN, affine)

    return dict(
        label_half=("refuse", "label_fractional", nifti_bytes(ORGAN * 0.5)),
        label_negative=("refuse", "label_negative", nifti_bytes(ORGAN.astype(np.int16) - 1)),
        label_scaled=("refuse", "label_scaled", nifti_bytes(ORGAN, fields=dict(scl_slope=0.5))),
        label_nan=("refuse", "label_nan", nifti_bytes(np.where(ORGAN, np.nan, 0.0))),
        label_huge=("refuse", "label_too_large", nifti_bytes(ORGAN.astype(np.int32) * 100000)),
        label_undeclared=(
            "refuse",
            "label_undeclared",
            nifti_bytes(np.where(ORGAN == 2, 37, ORGAN).astype(np.uint8)),
        ),
        label_short=("refuse", "pair_shape", nifti_bytes(ORGAN[:, :, :-1])),
        label_origin=("refuse", "pair_origin", at(2, 3, 130)),
        label_spacing=("refuse", "pair_spacing", at(2, 2, 2.5)),
        label_flipped=(
            "refuse",
            "pair_orientation",
            nifti_bytes(ORGAN, PLACE @ np.diag([-1, 1, 1, 1])),
        ),
        label_axes=(
            "repair",
            "pair_axes",
            nifti_bytes(ORGAN.transpose(2, 0, 1), PLACE[:, [2, 0, 1, 3]]),
        ),
        label_empty=("repair", "label_empty", nifti_bytes(ORGAN * 0)),
        label_float=("accept", "", nifti_bytes(ORGAN.astype(np.float64))),
        label_noise=("accept", "", at(2, 3, 100.00001)),
    )


def label_cases(folder: Path) -> list[Odd]:
    """Pairs of a good scan and an odd label map.

    Parameters
    ----------
    folder
        each case gets a folder of its own in it
    """
    scan, cases = nifti_bytes(), []
    for kind, (expected, code, data) in _labels().items():
        image = _put(folder / kind / "scan.nii.gz", scan)
        label = image.with_name("label.nii.gz")
        label.write_bytes(gzip.compress(data, mtime=0))
        cases.append(Odd(image, label, kind, expected, code))
    return cases
