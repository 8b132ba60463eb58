"""Headers and files that nobody thought of: refused by our own error, fast and small, or read to
the bit as nibabel, SimpleITK and pydicom read them.

The examples are drawn from fixed seeds, so a failure comes back on every machine."""

import gzip
import logging
import random
import struct
import warnings

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from limits import small
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from oddfile import PLACE, SCAN, nifti_bytes
from oddseries import write_itk, write_stack

from medseg.io.files import InputError, RepairWarning
from medseg.io.read import read_header, read_volume

logging.getLogger("nibabel.global").setLevel(100)
COUNTS = {"accepted": 0, "refused": 0}


def attempt(path):
    """The volume, or None if it was refused.

    Anything else than InputError, or too much time or memory, is an error.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", RepairWarning)
        try:
            with small():
                v = read_volume(path)
        except InputError as error:
            assert len(str(error).splitlines()) == 1 and str(path.name) in str(error)
            COUNTS["refused"] += 1
            return None
    COUNTS["accepted"] += 1
    return v


def same(v, voxels, affine=None):
    "Voxels to the bit, NaN excluded since no volume has one; and the affine."
    assert v.voxels.shape == voxels.shape and np.array_equal(v.voxels, voxels)
    if affine is not None:
        assert np.array_equal(v.affine, affine)


def by_nibabel(path):
    "Voxels and affine as nibabel has them, axes of length 1 behind the third dropped."
    image = nib.load(path)
    voxels = np.asanyarray(image.dataobj)
    return voxels.reshape(voxels.shape[:3]), image.affine


# --- 10,000 headers


class Source:
    """Decisions of dice that hypothesis seeds.

    It would need longer for a hundred small draws than the reader for the file.
    """

    def __init__(self, dice: random.Random):
        self.bytes = dice.randbytes

    def number(self, code: str):
        "As struct reads it: any bits at all."
        return struct.unpack("<" + code, self.bytes(struct.calcsize(code)))[0]

    def below(self, n: int) -> int:
        return self.number("H") % n

    def pick(self, *options):
        return options[self.below(len(options))]

    def text(self, most: int) -> bytes:
        return self.bytes(self.below(most + 1))

    def whole(self, code: str) -> int:
        "An integer: near nothing, at an end of what its bits hold, or anything."
        last = 2 ** (8 * struct.calcsize(code) - 1) - 1
        return self.pick(
            self.below(33) - 16,
            self.pick(last, -last - 1, -last),
            self.number(code),
            self.number(code),
        )

    def real(self, code: str) -> float:
        return self.pick(
            self.pick(
                0.0,
                1.0,
                -1.0,
                2.0,
                3.0,
                -3.0,
                0.5,
                1e-30,
                1e30,
                float("nan"),
                float("inf"),
                float("-inf"),
            ),
            self.number(code),
        )


def fields(wide: bool) -> dict:
    "For each field of a NIfTI header a function of a source; `wide` is NIfTI-2."
    index, real = (lambda s: s.whole("q" if wide else "h")), (
        lambda s: s.real("d" if wide else "f")
    )
    short, long = (lambda s: s.whole("h")), (lambda s: s.whole("i"))

    def length(s):
        return s.pick(*[1, 2, 3, 12, 20, 24, 0, -1, 5, 7, 1000, 32767] * 2, *[index(s)] * 12)

    def code(s):
        return s.pick(s.below(7), long(s) if wide else short(s))

    def row(s):
        return s.pick(
            [-2.0, 0, 0, 22],
            [0, 2.0, 0, -20],
            [0, 0, 3.0, 100],
            [0, 0, 0, 0],
            [1.0, 1, 1, 1],
            [2.0, 0, 0, 22],
            [0, 0, -3, 0],
            *[[real(s) for _ in range(4)]] * 7,
        )

    def sizes(s):
        return [
            s.pick(1.0, -1.0, 0.0),
            *(s.pick(2.0, 2.0, 3.0, -3.0, 0.0) for _ in range(3)),
            0.0,
            0.0,
            0.0,
            0.0,
        ]

    dims = (
        lambda s: [3, *(length(s) for _ in range(3)), 1, 1, 1, 1],
        lambda s: [s.below(9), *(length(s) for _ in range(7))],
        lambda s: sorted([3, 24, 20, 12, 1, 1, 1, 1], key=lambda _: s.below(1000)),
        lambda s: s.pick(
            [4, 24, 20, 12, 1, 1, 1, 1],
            [4, 24, 20, 6, 2, 1, 1, 1],
            [3, 12, 20, 24, 1, 1, 1, 1],
            [3, 24, 20, 6, 1, 1, 1, 1],
        ),
    )
    made = dict(
        dim=lambda s: s.pick(*dims)(s),
        datatype=lambda s: s.pick(
            s.pick(2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536), short(s)
        ),
        bitpix=lambda s: s.pick(s.pick(8, 16, 32, 64, 24), short(s)),
        pixdim=lambda s: s.pick(sizes, lambda s: [real(s) for _ in range(8)])(s),
        vox_offset=lambda s: s.pick(
            s.pick(352, 540, 544, 348, 0, 368, 1000), index(s) if wide else real(s)
        ),
        magic=lambda s: s.pick(s.pick(b"n+1", b"ni1", b"n+2", b"ni2", b"\0", b"XXX"), s.text(4)),
        sizeof_hdr=lambda s: s.pick(s.pick(348, 540, 0, 1543569408, 469893120), long(s)),
    )
    made |= dict.fromkeys(
        [
            "scl_slope",
            "scl_inter",
            "quatern_b",
            "quatern_c",
            "quatern_d",
            "qoffset_x",
            "qoffset_y",
            "qoffset_z",
            "cal_max",
            "cal_min",
            "slice_duration",
            "toffset",
            "intent_p1",
            "intent_p2",
            "intent_p3",
        ],
        real,
    )
    made |= (
        dict.fromkeys(["qform_code", "sform_code", "intent_code"], code)
        | dict.fromkeys(["srow_x", "srow_y", "srow_z"], row)
        | dict.fromkeys(["slice_start", "slice_end"], index)
    )
    made |= dict.fromkeys(["xyzt_units", "slice_code", "dim_info"], lambda s: s.below(128)) | {
        name: lambda s, n=n: s.text(n)
        for name, n in (("intent_name", 16), ("descrip", 80), ("aux_file", 24))
    }
    if wide:
        return made | dict(eol_check=lambda s: [s.number("b") for _ in range(4)])
    return (
        made
        | {
            name: lambda s, n=n: s.text(n)
            for name, n in (("db_name", 18), ("data_type", 10), ("regular", 1))
        }
        | dict.fromkeys(["extents", "glmax", "glmin"], long)
        | dict(session_error=short)
    )


KINDS = {1: nib.Nifti1Image, 2: nib.Nifti2Image}
PARTS = {n: fields(n == 2) for n in KINDS}
BASES = {
    (n, e, kind): nifti_bytes(SCAN.astype(kind), kind=KINDS[n], endian=e)
    for n in KINDS
    for e in "<>"
    for kind in ("i2", "u1", "f4")
}


def header(s: Source):
    "A well formed file, up to five odd header fields or none but noise, and whether it is packed."
    base = s.pick(1, 1, 1, 2), s.pick(*"<<<>"), s.pick("i2", "i2", "u1", "f4")
    names = {s.pick(*sorted(PARTS[base[0]])) for _ in range(1 + s.below(5))}
    odd = {name: PARTS[base[0]][name](s) for name in sorted(names)}
    return (
        base,
        odd,
        s.bytes((344, 536)[base[0] - 1]) if s.below(41) == 40 else b"",
        bool(s.below(2)),
    )


def build(base, odd: dict, noise: bytes) -> bytes:
    "The bytes of such a file."
    data, size = BASES[base], (348, 540)[base[0] - 1]
    if noise:
        return data[:4] + noise + data[size:]
    h = KINDS[base[0]].header_class(data[:size], endianness=base[1], check=False)
    for name, value in odd.items():
        h[name] = value
    return h.binaryblock + data[size:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def test_ten_thousand_headers(folder):
    """Each is refused by InputError within 1 s and 64 MB, or agrees with nibabel to the bit in
    voxels and affine.
    """
    read_volume(_written(folder / "warm.nii.gz", nifti_bytes()))
    seen = COUNTS.copy()

    @settings(
        max_examples=1_250,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=True))
    def check(dice):
        # eight headers in one example
        for _ in range(8):
            made = header(Source(dice))
            note(f"{made}")
            one(*made)

    def one(*header):
        *parts, packed = header
        path = _written(folder / ("a.nii.gz" if packed else "a.nii"), build(*parts))
        v = attempt(path)
        if v is None:
            return
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            same(v, *by_nibabel(path))
            assert np.array_equal(read_header(path).affine, v.affine)

    check()
    done = {k: COUNTS[k] - seen[k] for k in seen}
    assert (
        sum(done.values()) >= 10_000 and done["accepted"] > 1_000 and done["refused"] > 4_000
    ), done


def _written(path, data):
    # a new file is made in a third of the time that it takes to empty an old one
    path.unlink(missing_ok=True)
    path.write_bytes(gzip.compress(data, 1, mtime=0) if path.name.endswith(".gz") else data)
    return path


# --- 1,000 files with changed bytes


def by_itk(path):
    "Voxels as SimpleITK has them."
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T, None


def by_pydicom(path):
    "Voxels of the series beside the changed slice."
    found = [pydicom.dcmread(p, force=True) for p in path.parent.iterdir()]
    for d in found:
        if "TransferSyntaxUID" not in d.file_meta:
            d.file_meta.TransferSyntaxUID = (
                ImplicitVRLittleEndian if d.original_encoding[0] else ExplicitVRLittleEndian
            )
    # the normal of this series points down
    found.sort(key=lambda d: -float(d.ImagePositionPatient[2]))
    return (
        np.stack(
            [
                d.pixel_array.T * float(d.get("RescaleSlope") or 1)
                + float(d.get("RescaleIntercept") or 0)
                for d in found
            ],
            -1,
        ),
        None,
    )


def mutated(data: bytes, pick) -> bytes:
    """`data` with a few bytes changed, inserted, dropped, doubled or cut off.

    Half of the time near the beginning.
    """
    data = bytearray(data)
    for _ in range(pick.integers(1, 5)):
        at = int(pick.integers(min(len(data), 400) if pick.random() < 0.5 else len(data)))
        how = pick.integers(7)
        if how <= 2:
            data[at] = int(pick.integers(256))
        elif how == 3:
            data[at] ^= 1 << int(pick.integers(8))
        elif how == 4:
            data[at:at] = bytes(pick.integers(0, 256, int(pick.integers(1, 9)), dtype=np.uint8))
        elif how == 5:
            del data[at : at + int(pick.integers(1, 9))]
        elif pick.random() < 0.3:
            del data[at:]
        else:
            data[at : at + 8] = struct.pack("<q", int(pick.integers(-(2**40), 2**40)))[
                : len(data) - at
            ]
        if not data:
            return b"\0"
    return bytes(data)


def _mgh(folder):
    nib.MGHImage(SCAN, PLACE).to_filename(folder / "b.mgh")
    return folder / "b.mgh"


FORMATS = {
    "nii": (lambda f: _written(f / "b.nii", nifti_bytes()), by_nibabel),
    "nii.gz": (lambda f: _written(f / "b.nii.gz", nifti_bytes()), by_nibabel),
    "mgh": (_mgh, by_nibabel),
    "nrrd": (lambda f: write_itk(f / "b.nrrd", None, False), by_itk),
    "mha": (lambda f: write_itk(f / "b.mha", None, False), by_itk),
    "dcm": (lambda f: write_stack(f / "s", (0, 3, 6)) / "IM005", by_pydicom),
}


@pytest.mark.parametrize("name", FORMATS)
def test_changed_bytes(name, tmp_path):
    """170 files of each format with a few bytes changed.

    Our own error, or the same numbers as the format's own library.
    """
    path, reader = FORMATS[name][0](tmp_path), FORMATS[name][1]
    base, pick, target = (
        path.read_bytes(),
        np.random.default_rng(sum(name.encode())),
        path.parent if name == "dcm" else path,
    )
    read_volume(target)
    seen = COUNTS.copy()
    for n in range(170):
        path.write_bytes(mutated(base, pick))
        v = attempt(target)
        if v is None:
            continue
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            same(v, *reader(path))
    done = {k: COUNTS[k] - seen[k] for k in seen}
    assert (
        sum(done.values()) == 170
        and done["refused"] > 30
        and (done["accepted"] > 30 or name == "nii.gz")
    ), done
