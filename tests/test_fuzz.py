"""Headers and files that nobody thought of: refused by our own error, fast and small, or read to the bit as nibabel, SimpleITK and pydicom read them.

The examples are drawn from fixed seeds, so a failure comes back on every machine."""
import gzip
import logging
import struct
import warnings

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from limits import small
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medseg.volumes.files import InputError, RepairWarning
from medseg.volumes.oddfile import PLACE, SCAN, nifti_bytes
from medseg.volumes.oddseries import _itk, write_stack
from medseg.volumes.read import read_header, read_volume

logging.getLogger("nibabel.global").setLevel(100)
COUNTS = {"accepted": 0, "refused": 0}


def attempt(path):
    "The volume, or None if it was refused; anything else than InputError, or too much time or memory, is an error."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", RepairWarning)
        try:
            with small(): v = read_volume(path)
        except InputError as error:
            assert len(str(error).splitlines()) == 1 and str(path.name) in str(error)
            COUNTS["refused"] += 1
            return None
    COUNTS["accepted"] += 1
    return v


def same(v, voxels, affine=None):
    "Voxels to the bit, NaN excluded since no volume has one; and the affine."
    assert v.voxels.shape == voxels.shape and np.array_equal(v.voxels, voxels)
    if affine is not None: assert np.array_equal(v.affine, affine)


def by_nibabel(path):
    "Voxels and affine as nibabel has them, axes of length 1 behind the third dropped."
    image = nib.load(path)
    voxels = np.asanyarray(image.dataobj)
    return voxels.reshape(voxels.shape[:3]), image.affine


# --- 10,000 headers

ints = lambda bits: st.integers(-2**(bits - 1), 2**(bits - 1) - 1)
reals = lambda width: st.one_of(st.sampled_from([0., 1., -1., 2., 3., -3., .5, 1e-30, 1e30, float("nan"), float("inf"), float("-inf")]), st.floats(width=width))
text = lambda n: st.binary(max_size=n)


def fields(wide: bool) -> dict:
    "A strategy for each field of a NIfTI header; `wide` is NIfTI-2."
    index, real = (ints(64), reals(64)) if wide else (ints(16), reals(32))
    likely = st.sampled_from([1, 2, 3, 12, 20, 24, 0, -1, 5, 7, 1000, 32767])
    length = st.one_of(likely, likely, index)
    code = st.one_of(st.integers(0, 6), ints(32) if wide else ints(16))
    row = st.one_of(st.sampled_from([[-2., 0, 0, 22], [0, 2., 0, -20], [0, 0, 3., 100], [0, 0, 0, 0], [1., 1, 1, 1], [2., 0, 0, 22], [0, 0, -3, 0]]), st.lists(real, min_size=4, max_size=4))
    return dict(
        dim=st.one_of(st.tuples(st.just(3), length, length, length, *[st.just(1)]*4), st.tuples(st.integers(0, 8), *[length]*7), st.permutations([3, 24, 20, 12, 1, 1, 1, 1]), st.sampled_from([(4, 24, 20, 12, 1, 1, 1, 1), (4, 24, 20, 6, 2, 1, 1, 1), (3, 12, 20, 24, 1, 1, 1, 1), (3, 24, 20, 6, 1, 1, 1, 1)])),
        datatype=st.one_of(st.sampled_from([2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536]), ints(16)), bitpix=st.one_of(st.sampled_from([8, 16, 32, 64, 24]), ints(16)),
        pixdim=st.one_of(st.tuples(st.sampled_from([1., -1., 0.]), *[st.sampled_from([2., 2., 3., -3., 0.])]*3, *[st.just(0.)]*4), st.lists(real, min_size=8, max_size=8)),
        vox_offset=st.one_of(st.sampled_from([352, 540, 544, 348, 0, 368, 1000]), index if wide else real), scl_slope=real, scl_inter=real, qform_code=code, sform_code=code, srow_x=row, srow_y=row, srow_z=row,
        quatern_b=real, quatern_c=real, quatern_d=real, qoffset_x=real, qoffset_y=real, qoffset_z=real, xyzt_units=st.integers(0, 127), magic=st.one_of(st.sampled_from([b"n+1", b"ni1", b"n+2", b"ni2", b"\0", b"XXX"]), text(4)),
        sizeof_hdr=st.one_of(st.sampled_from([348, 540, 0, 1543569408, 469893120]), ints(32)), intent_code=code, intent_name=text(16), descrip=text(80), aux_file=text(24), cal_max=real, cal_min=real, slice_code=st.integers(0, 127), slice_duration=real, toffset=real,
        dim_info=st.integers(0, 127), slice_start=index, slice_end=index, intent_p1=real, intent_p2=real, intent_p3=real, **(dict(eol_check=st.lists(st.integers(-128, 127), min_size=4, max_size=4)) if wide else dict(db_name=text(18), data_type=text(10), extents=ints(32), session_error=ints(16), regular=text(1), glmax=ints(32), glmin=ints(32))))


KINDS = {1: nib.Nifti1Image, 2: nib.Nifti2Image}
PARTS = {n: fields(n == 2) for n in KINDS}
BASES = {(n, e, kind): nifti_bytes(SCAN.astype(kind), kind=KINDS[n], endian=e) for n in KINDS for e in "<>" for kind in ("i2", "u1", "f4")}


@st.composite
def headers(draw):
    "A well formed file, up to five odd header fields or none but noise, and whether it is packed."
    base = draw(st.sampled_from([1, 1, 1, 2])), draw(st.sampled_from("<<<>")), draw(st.sampled_from(["i2", "i2", "u1", "f4"]))
    names = draw(st.lists(st.sampled_from(sorted(PARTS[base[0]])), min_size=1, max_size=5, unique=True))
    odd = {name: draw(PARTS[base[0]][name]) for name in names}
    size = (344, 536)[base[0] - 1]
    return base, odd, draw(st.binary(min_size=size, max_size=size)) if draw(st.integers(0, 40)) == 0 else b"", draw(st.booleans())


def build(base, odd: dict, noise: bytes) -> bytes:
    "The bytes of such a file."
    data, size = BASES[base], (348, 540)[base[0] - 1]
    if noise: return data[:4] + noise + data[size:]
    h = KINDS[base[0]].header_class(data[:size], endianness=base[1], check=False)
    for name, value in odd.items(): h[name] = value
    return h.binaryblock + data[size:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tmp_path_factory.mktemp("fuzz")


def test_ten_thousand_headers(folder):
    "Each is refused by InputError within 1 s and 64 MB, or agrees with nibabel to the bit in voxels and affine."
    read_volume(_written(folder/"warm.nii.gz", nifti_bytes()))
    seen = COUNTS.copy()

    @settings(max_examples=1_250, derandomize=True, deadline=None, database=None, phases=[Phase.explicit, Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck))
    @given(st.lists(headers(), min_size=8, max_size=8))   # eight in one example: hypothesis needs longer for an example than the test
    def check(made):
        for header in made: one(*header)

    def one(*header):
        *parts, packed = header
        path = _written(folder/("a.nii.gz" if packed else "a.nii"), build(*parts))
        v = attempt(path)
        if v is None: return
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            same(v, *by_nibabel(path))
            assert np.array_equal(read_header(path).affine, v.affine)

    check()
    done = {k: COUNTS[k] - seen[k] for k in seen}
    assert sum(done.values()) >= 10_000 and done["accepted"] > 1_000 and done["refused"] > 4_000, done


def _written(path, data):
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
        if "TransferSyntaxUID" not in d.file_meta: d.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if d.original_encoding[0] else ExplicitVRLittleEndian
    found.sort(key=lambda d: -float(d.ImagePositionPatient[2]))   # the normal of this series points down
    return np.stack([d.pixel_array.T*float(d.get("RescaleSlope") or 1) + float(d.get("RescaleIntercept") or 0) for d in found], -1), None


def mutated(data: bytes, pick) -> bytes:
    "`data` with a few bytes changed, inserted, dropped, doubled or cut off; half of the time near the beginning."
    data = bytearray(data)
    for _ in range(pick.integers(1, 5)):
        at = int(pick.integers(min(len(data), 400) if pick.random() < .5 else len(data)))
        how = pick.integers(7)
        if how <= 2: data[at] = int(pick.integers(256))
        elif how == 3: data[at] ^= 1 << int(pick.integers(8))
        elif how == 4: data[at:at] = bytes(pick.integers(0, 256, int(pick.integers(1, 9)), dtype=np.uint8))
        elif how == 5: del data[at:at + int(pick.integers(1, 9))]
        elif pick.random() < .3: del data[at:]
        else: data[at:at + 8] = struct.pack("<q", int(pick.integers(-2**40, 2**40)))[:len(data) - at]
        if not data: return b"\0"
    return bytes(data)


def _mgh(folder): nib.MGHImage(SCAN, PLACE).to_filename(folder/"b.mgh"); return folder/"b.mgh"


FORMATS = {
    "nii": (lambda f: _written(f/"b.nii", nifti_bytes()), by_nibabel), "nii.gz": (lambda f: _written(f/"b.nii.gz", nifti_bytes()), by_nibabel), "mgh": (_mgh, by_nibabel),
    "nrrd": (lambda f: _itk(f/"b.nrrd", None, False), by_itk), "mha": (lambda f: _itk(f/"b.mha", None, False), by_itk), "dcm": (lambda f: write_stack(f/"s", (0, 3, 6))/"IM005", by_pydicom)}


@pytest.mark.parametrize("name", FORMATS)
def test_changed_bytes(name, tmp_path):
    "170 files of each format with a few bytes changed: our own error, or the same numbers as the format's own library."
    path, reader = FORMATS[name][0](tmp_path), FORMATS[name][1]
    base, pick, target = path.read_bytes(), np.random.default_rng(sum(name.encode())), path.parent if name == "dcm" else path
    read_volume(target)
    seen = COUNTS.copy()
    for n in range(170):
        path.write_bytes(mutated(base, pick))
        v = attempt(target)
        if v is None: continue
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            same(v, *reader(path))
    done = {k: COUNTS[k] - seen[k] for k in seen}
    assert sum(done.values()) == 170 and done["refused"] > 30 and (done["accepted"] > 30 or name == "nii.gz"), done
