"""Fields that change what voxels or millimetres mean.

Obeyed, told or refused by name, in every format. Made here; no real scan is needed.
"""

import gzip
import struct
import zlib
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from oddfile import PLACE, SCAN, nifti_bytes
from oddseries import write_slice, write_stack
from outcome import outcome as told

from medseg.data.cases import align_labels
from medseg.segment.metrics import evaluate
from medseg.io.check import check_pair
from medseg.io.dicom import find_series
from medseg.view.draw import ready
from medseg.io.files import InputError
from medseg.io.read import read_header, read_volume
from medseg.io.volume import SAME_GRID, Volume, grid_gap, same_grid
from medseg.io.write import write_labels, write_volume

outcome = partial(told, read_volume)


# ---- two grids are one, or not: the same rule everywhere


def turned(rad, shape=(240, 200, 60), mm=(1.5, 1.5, 1.5), about=0.32):
    c, s = np.cos(about + rad), np.sin(about + rad)
    affine = np.array([[c, s, 0, -180], [-s, c, 0, -120], [0, 0, 1, -300], [0, 0, 0, 1]])
    labels = np.zeros(shape, np.uint8)
    labels[60:90, 50:80, 20:40] = 1
    return Volume(labels, affine @ np.diag([*mm, 1]))


@pytest.mark.parametrize("rad, one", [(1e-6, True), (1e-5, True), (1e-4, True), (1e-3, False)])
# at 45 degrees noise decides which axis is called which
@pytest.mark.parametrize("about", [0.32, np.pi / 4, 0])
def test_direction_noise(rad, one, about):
    image, labels = turned(0, about=about), turned(rad, about=about)
    assert same_grid(image, labels) == one
    if one:
        check_pair(image, labels)
        assert evaluate(labels, image, (1,))["1"]["dice"] == 1
        assert np.array_equal(*(v.voxels for v in ready(image, labels)))
        assert (
            align_labels(image, labels).affine is not None
            and align_labels(image, labels).axcodes == image.axcodes
        )
    else:
        for use in (
            lambda: check_pair(image, labels),
            lambda: evaluate(labels, image, (1,)),
            lambda: ready(image, labels),
        ):
            with pytest.raises(ValueError):
                use()


def test_a_real_shift_is_still_one():
    image = turned(0)
    for mm, one in ((0.1, True), (0.5, False), (1.5, False)):
        labels = Volume(image.voxels, image.affine + np.eye(4)[:, [2]] @ [[0, 0, 0, mm]])
        assert (
            same_grid(image, labels)
            == one
            == (grid_gap(image.affine, labels.affine, image.shape) <= SAME_GRID)
        )
        if not one:
            with pytest.raises(InputError) as caught:
                check_pair(image, labels)
            assert caught.value.code == "pair_origin"
    # a quarter of a voxel at the far end
    wide = Volume(image.voxels, image.affine @ np.diag([1.001, 1, 1, 1]))
    with pytest.raises(InputError) as caught:
        check_pair(image, wide)
    assert caught.value.code == "pair_spacing"


def test_rounded_headers_of_files(tmp_path):
    image, labels = turned(0), turned(1e-4)
    ct = read_volume(
        write_volume(tmp_path / "ct.nii.gz", Volume(image.voxels * np.int16(100), image.affine))
    )
    check_pair(ct, read_volume(write_labels(tmp_path / "label.nii.gz", labels), "labels"))


# ---- NIfTI, Analyze, MGH

HEART = np.diag([-1.5, -1.5, 8.0, 1])
UNIT = np.diag([-1.0, -1, 1, 1])


def heart(
    tmp_path,
    sform=UNIT,
    sizes=(1.5, 1.5, 8),
    sform_code=1,
    qform_code=1,
    name="a.nii.gz",
    kind=nib.Nifti1Image,
    **more,
):
    rows = {f"srow_{r}": sform[i] for i, r in enumerate("xyz")}
    fields = (
        dict(pixdim=[1, *sizes, 0, 0, 0, 0], sform_code=sform_code, qform_code=qform_code)
        | rows
        | more
    )
    data = nifti_bytes(affine=HEART, fields=fields, kind=kind)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    return tmp_path / name


@pytest.mark.parametrize(
    "more",
    [{}, dict(qform_code=0), dict(kind=nib.Nifti2Image), dict(name="a.nii"), dict(sform_code=2)],
)
def test_an_sform_that_lost_the_size(tmp_path, more):
    v, said = outcome(heart(tmp_path, **more))
    assert said == ["sform_lost_size"] and v.spacing == (1.5, 1.5, 8)
    assert read_header(tmp_path / more.get("name", "a.nii.gz")).flags == ("sform_lost_size",)


@pytest.mark.parametrize(
    "sform, sizes",
    [
        (np.diag([-1.5, -1.5, 1, 1]), (1.5, 1.5, 8)),
        (np.diag([-1.5, -1.5, 8, 1]), (1.5, 1.5, 5)),
        (np.diag([-2.0, -2, 2, 1]), (1.5, 1.5, 8)),
    ],
)
@pytest.mark.parametrize("qform_code", [0, 1])
def test_two_sizes_are_refused(tmp_path, sform, sizes, qform_code):
    code, words = outcome(heart(tmp_path, sform, sizes, qform_code=qform_code))
    assert code == "spacing_conflict" and "pixdim" in words


@pytest.mark.parametrize(
    "fields, code, word",
    [
        (dict(xyzt_units=1), "units_not_mm", "metres"),
        (dict(xyzt_units=3), "units_not_mm", "micrometres"),
        (dict(xyzt_units=5), "units_not_mm", "xyzt_units"),
        (dict(intent_code=1007), "intent_not_scalar", "vectors"),
        (dict(intent_code=2003), "intent_not_scalar", "colours"),
        (dict(intent_code=1006), "intent_not_scalar", "displacements"),
        (dict(pixdim=[5, 1.5, 1.5, 8, 0, 0, 0, 0], sform_code=0), "qform_bad", "qfac"),
        (dict(scl_slope=np.inf), "scale_not_finite", "scl_slope"),
    ],
)
def test_nifti_fields_that_are_refused_by_name(tmp_path, fields, code, word):
    found, words = outcome(heart(tmp_path, HEART, **fields))
    assert found == code and word in words


@pytest.mark.parametrize(
    "fields",
    [
        dict(xyzt_units=8),
        dict(xyzt_units=0),
        dict(intent_code=1002),
        dict(dim_info=57),
        dict(cal_max=5, cal_min=1),
        dict(slice_duration=9, toffset=7),
        dict(scl_slope=0, scl_inter=5),
        dict(scl_slope=np.nan, scl_inter=5),
    ],
)
def test_nifti_fields_that_change_nothing(tmp_path, fields):
    v, said = outcome(heart(tmp_path, HEART, **fields))
    assert not said and np.array_equal(v.voxels, SCAN) and np.allclose(v.affine, HEART)


def test_qfac_turns_the_third_axis(tmp_path):
    v, said = outcome(heart(tmp_path, HEART, sform_code=0, pixdim=[-1, 1.5, 1.5, 8, 0, 0, 0, 0]))
    assert v.axcodes[2] == "I" and not said


@pytest.mark.parametrize(
    "unit, code", [(b"cm\0\0", "units_not_mm"), (b"mm\0\0", None), (b"\0\0\0\0", None)]
)
def test_analyze_has_a_unit_of_its_own(tmp_path, unit, code):
    nib.AnalyzeImage(SCAN, np.diag([2, 2, 3, 1])).to_filename(tmp_path / "a.img")
    data = bytearray((tmp_path / "a.hdr").read_bytes())
    data[56:60] = unit
    (tmp_path / "a.hdr").write_bytes(data)
    found, said = outcome(tmp_path / "a.hdr")
    assert (
        found == code if code else (said == ["orientation_unknown"] and found.spacing == (2, 2, 3))
    )


def test_mgh_says_its_size_twice_or_not_at_all(tmp_path):
    data = nib.MGHImage(SCAN, PLACE).to_bytes()
    for name, at, new, expected in (
        ("long", 42, struct.pack(">f", 2.0), "spacing_conflict"),
        ("unknown", 28, b"\0\0", ["orientation_unknown"]),
    ):
        (tmp_path / f"{name}.mgh").write_bytes(data[:at] + new + data[at + len(new) :])
        found, said = outcome(tmp_path / f"{name}.mgh")
        assert expected in (found if isinstance(found, str) else None, said), (name, found, said)


# ---- gzip in many members


@pytest.mark.parametrize("sizes", [(1,), (7,), (348,), (40, 5000), (65280,)])
def test_gzip_of_many_members(tmp_path, sizes):
    data, parts, at = nifti_bytes(), [gzip.compress(b"")], 0
    while at < len(data):
        n = sizes[len(parts) % len(sizes)] if at < 2000 or sizes[-1] > 1000 else 5000
        parts.append(gzip.compress(data[at : at + n]))
        at += n
    (tmp_path / "a.nii.gz").write_bytes(b"".join(parts) + gzip.compress(b""))
    v, said = outcome(tmp_path / "a.nii.gz")
    assert not said and np.array_equal(v.voxels, SCAN)
    (tmp_path / "a.nii.gz").write_bytes(b"".join(parts[:-1]))  # the last one is missing
    assert outcome(tmp_path / "a.nii.gz")[0] == (
        "file_truncated" if len(parts) > 2 else "gzip_truncated"
    )


def test_two_scans_in_one_gzip_are_told(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti_bytes()) * 2)
    assert outcome(tmp_path / "a.nii.gz")[1] == ["trailing_bytes"]


def test_many_members_in_nrrd(tmp_path):
    head = (
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 24 20 12\nspace: LPS\nspace directions:"
        b" (2,0,0) (0,2,0) (0,0,3)\nspace origin: (0,0,0)\nkinds: domain domain domain\nendian:"
        b" little\nencoding: gzip\n\n"
    )
    raw = SCAN.tobytes(order="F")
    (tmp_path / "a.nrrd").write_bytes(
        head + b"".join(gzip.compress(raw[k : k + 3000]) for k in range(0, len(raw), 3000))
    )
    v, said = outcome(tmp_path / "a.nrrd")
    assert not said and np.array_equal(v.voxels, SCAN)


# ---- NRRD and MetaImage


def itk(tmp_path, name, *changes):
    image = sitk.GetImageFromArray(SCAN.T)
    image.SetSpacing((2, 2, 3))
    image.SetOrigin((-22, 20, 100))
    image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / name), False)
    data = (tmp_path / name).read_bytes()
    for old, new in changes:
        assert old in data, (old, data[:500])
        data = data.replace(old, new, 1)
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


def add(line, name):
    before = b"ElementType" if name.startswith("m") else b"type: short"
    return before, line + b"\n" + before


@pytest.mark.parametrize(
    "name, change, expected",
    [
        ("m.mha", add(b"DistanceUnits = cm", "m"), "units_not_mm"),
        ("m.mha", add(b"DistanceUnits = um", "m"), "units_not_mm"),
        ("m.mha", add(b"Position = 9 9 9", "m"), "header_unreadable"),
        ("m.mha", add(b"Rotation = 1 0 0 0 1 0 0 0 1", "m"), "header_unreadable"),
        ("m.mha", add(b"ElementNBits = 8", "m"), "header_unreadable"),
        ("m.mha", add(b"ElementByteOrderMSB = True", "m"), "header_unreadable"),
        ("m.mha", (b"CenterOfRotation = 0 0 0", b"CenterOfRotation = 5 0 0"), "header_unreadable"),
        (
            "m.mha",
            (b"TransformMatrix = 1 0 0 0 -1 0 0 0 1", b"TransformMatrix = 2 0 0 0 -2 0 0 0 2"),
            "header_unreadable",
        ),
        (
            "m.mha",
            (b"AnatomicalOrientation = RPI", b"AnatomicalOrientation = LAI"),
            ["anatomical_orientation"],
        ),
        ("m.mha", add(b"ElementToIntensityFunctionSlope = 0", "m"), "scale_not_finite"),
        ("m.mha", (b"CompressedData = False", b"CompressedData = maybe"), "header_unreadable"),
        ("m.mha", (b"TransformMatrix = 1 0 0 0 -1 0 0 0 1\n", b""), "orientation_conflict"),
        ("m.mha", add(b"DistanceUnits = mm", "m"), []),
        ("m.mha", add(b"ElementMin = -5\nElementMax = 7", "m"), []),
        ("m.mha", (b"BinaryDataByteOrderMSB = False", b"BinaryDataByteOrderMSB = 0"), []),
        ("n.nrrd", add(b'space units: "mm" "mm" "cm"', "n"), "units_not_mm"),
        (
            "n.nrrd",
            (b"kinds: domain domain domain", b"kinds: domain domain time"),
            "header_unreadable",
        ),
        (
            "n.nrrd",
            (b"kinds: domain domain domain", b"kinds: list domain domain"),
            "header_unreadable",
        ),
        ("n.nrrd", (b"endian: little\n", b""), "header_unreadable"),
        ("n.nrrd", add(b"spacings: 2 2 5", "n"), "header_unreadable"),
        ("n.nrrd", add(b"old min: -1\nold max: 1", "n"), ["quantized"]),
        ("n.nrrd", (b"space: left-posterior-superior", b"space: scanner-xyz"), "header_unreadable"),
        ("n.nrrd", add(b"byte skip: 4", "n"), "encoding_unsupported"),
        ("n.nrrd", (b"space origin: (-22,20,100)\n", b""), ["origin_unknown"]),
        ("n.nrrd", add(b"centers: cell cell cell", "n"), []),
        ("n.nrrd", add(b"thicknesses: 2 2 3", "n"), []),
        ("n.nrrd", add(b"sample units: HU", "n"), []),
    ],
)
def test_text_headers(tmp_path, name, change, expected):
    found, said = outcome(itk(tmp_path, name, change))
    if isinstance(expected, str):
        assert found == expected, said
    else:
        assert (
            said == expected and np.array_equal(found.voxels, SCAN) and found.spacing == (2, 2, 3)
        )


def test_meta_slope_is_applied(tmp_path):
    v, said = outcome(
        itk(
            tmp_path,
            "m.mha",
            add(b"ElementToIntensityFunctionSlope = 2\nElementToIntensityFunctionOffset = -7", "m"),
        )
    )
    assert not said and np.array_equal(v.voxels, 2 * SCAN.astype(int) - 7)


def test_meta_voxels_at_the_end_of_a_file(tmp_path):
    path = itk(tmp_path, "m.mhd", add(b"HeaderSize = -1", "m"))
    (tmp_path / "m.raw").write_bytes(bytes(77) + (tmp_path / "m.raw").read_bytes())
    v, said = outcome(path)
    assert not said and np.array_equal(v.voxels, SCAN)
    path.write_bytes(path.read_bytes().replace(b"HeaderSize = -1", b"HeaderSize = 77"))
    assert outcome(path)[0] == "encoding_unsupported"


def test_units_of_spacings(tmp_path):
    head = (
        b'NRRD0001\ntype: short\ndimension: 3\nsizes: 24 20 12\nspacings: .2 .2 .3\nunits: "cm"'
        b' "cm" "cm"\nendian: little\nencoding: raw\n\n'
    )
    (tmp_path / "a.nrrd").write_bytes(head + SCAN.tobytes(order="F"))
    assert outcome(tmp_path / "a.nrrd")[0] == "units_not_mm"


# ---- DICOM: slices of more than one scan

STACK = SCAN[:, :, ::-1]  # the toy series has its normal towards the feet


def two(folder, name, one, other, turn, **more):
    "A series of 12 slices in even steps, in which a tag has two values."
    folder.mkdir()
    for k in range(12):
        write_slice(folder / f"{k:02d}", k, 3.0 * k, k + 1, {name: (one, other)[turn(k)]} | more)
    return folder


@pytest.mark.parametrize(
    "name, one, other",
    [
        ("PatientID", "A", "B"),
        ("PatientName", "A^B", "C^D"),
        ("PatientBirthDate", "19500101", "19600101"),
        ("StudyInstanceUID", "1.2", "1.3"),
        ("FrameOfReferenceUID", "1.2", "1.3"),
        ("SeriesNumber", 1001, 1002),
        ("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "SECONDARY", "AXIAL"]),
        ("ConvolutionKernel", "B30f", "B70f"),
        ("KVP", 80, 140),
        ("SliceThickness", 3, 5),
        ("RescaleType", "HU", ""),
        ("EchoTime", 10, 90),
        ("EchoNumbers", 1, 2),
        ("InversionTime", 0, 900),
        ("FlipAngle", 5, 30),
        ("TemporalPositionIdentifier", 1, 2),
        ("DiffusionBValue", 0.0, 1000.0),
        ("Units", "BQML", "CNTS"),
        ("PatientPosition", "HFS", "FFS"),
        ("RescaleSlope", "1", None),
    ],
)
def test_slices_of_two_scans(tmp_path, name, one, other):
    # alternating, halves, the last one
    turn = (lambda k: k % 2, lambda k: k // 6, lambda k: int(k == 11))[len(name) % 3]
    more = (
        dict(Modality="MR")
        if name.startswith(("Echo", "Inv", "Flip", "Temp", "Diff", "RescaleS"))
        else {}
    )
    code, words = outcome(two(tmp_path / "s", name, one, other, turn, **more))
    assert (code, f": {name}: found 2 values" in words) == ("dicom_mixed", True), words
    assert "A^B" not in words and "19500101" not in words


@pytest.mark.parametrize(
    "name, one, other, turn, expected",
    [
        ("AcquisitionNumber", 1, 2, lambda k: k % 2, "dicom_mixed"),
        ("AcquisitionNumber", 1, 2, lambda k: k // 6, ["dicom_acquisitions"]),
        ("AcquisitionNumber", 3, 3, lambda k: 0, []),
        ("ContentTime", "120000", "120040", lambda k: k % 2, ["dicom_times"]),
        ("ContentTime", "120000", "120040", lambda k: k // 6, []),
        ("TriggerTime", 10, 500, lambda k: k % 2, ["dicom_times"]),
    ],
)
def test_acquisitions_and_times(tmp_path, name, one, other, turn, expected):
    found, said = outcome(two(tmp_path / "s", name, one, other, turn))
    if isinstance(expected, str):
        assert found == expected and name in said
    else:
        assert said == expected and np.array_equal(found.voxels, STACK)


def test_what_changes_along_a_sound_scan(tmp_path):
    "A number or a time for each slice, thickness rounded in other digits, private doses: silent."
    (tmp_path / "s").mkdir()
    for k in range(12):
        write_slice(
            tmp_path / "s" / f"{k:02d}",
            k,
            3.0 * k,
            k + 1,
            dict(
                AcquisitionNumber=k,
                ContentTime=f"1200{k:02d}",
                SliceThickness=f"{3 + 1e-4*k:.4f}",
                XRayTubeCurrent=100 + k,
                SliceLocation=str(k),
            ),
        )
    v, said = outcome(tmp_path / "s")
    assert not said and np.array_equal(v.voxels, STACK) and v.spacing == (2, 2, 3)


@pytest.mark.parametrize(
    "tags, code, word",
    [
        (dict(HighBit=15), "dicom_meaning", "HighBit"),
        (dict(ModalityLUTSequence=[Dataset()]), "dicom_meaning", "ModalityLUTSequence"),
        (dict(SpatialLocationsPreserved="NO"), "dicom_meaning", "SpatialLocationsPreserved"),
        (dict(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "dicom_meaning", "MOSAIC"),
        (dict(RescaleType="ED"), "dicom_not_hu", "RescaleType"),
        (dict(RescaleSlope="0"), "dicom_bad_scale", "RescaleSlope"),
        (dict(PhotometricInterpretation="MONOCHROME1"), "dicom_colour", "MONOCHROME1"),
        (dict(RescaleType="US"), None, "dicom_unit"),
        (dict(RescaleSlope=None, RescaleIntercept=None), None, "dicom_unit"),
    ],
)
def test_pixels_that_mean_something_else(tmp_path, tags, code, word):
    found, said = outcome(write_stack(tmp_path / "s", tags=tags))
    assert (found, word in said) == (code, True) if code else said == [word]


def test_real_world_values(tmp_path):
    item = Dataset()
    item.RealWorldValueSlope, item.RealWorldValueIntercept = 2.0, 0.0
    assert (
        outcome(write_stack(tmp_path / "ct", tags=dict(RealWorldValueMappingSequence=[item])))[0]
        == "dicom_not_hu"
    )
    assert outcome(
        write_stack(tmp_path / "mr", tags=dict(RealWorldValueMappingSequence=[item], Modality="MR"))
    )[1] == ["dicom_real_world"]
    item.RealWorldValueSlope, item.RealWorldValueIntercept = 1.0, -1024.0
    assert (
        outcome(write_stack(tmp_path / "same", tags=dict(RealWorldValueMappingSequence=[item])))[1]
        == []
    )


def test_padding_is_never_bright(tmp_path):
    stored = SCAN[:, :, 3].T.astype(int) + 1024
    stored[:3] = 4095
    tags = dict(PixelData=stored.astype("<u2").tobytes())
    v, said = outcome(write_stack(tmp_path / "bright", tags=tags | dict(PixelPaddingValue=4095)))
    assert (
        said == ["dicom_padding"]
        and v.voxels.max() < 3000
        and (v.voxels[:, :3] == v.voxels[:, 3:].min()).all()
    )
    v, said = outcome(write_stack(tmp_path / "dark", tags=dict(PixelPaddingValue=0)))
    assert not said and np.array_equal(v.voxels[:, :, 4], SCAN[:, :, 3])  # of 8 slices


def test_bits_above_those_stored_are_no_values(tmp_path):
    stored = (SCAN[:, :, 3].T.astype(int) + 1024) | 0x8000  # an overlay in the highest bit
    v, said = outcome(
        write_stack(tmp_path / "s", tags=dict(PixelData=stored.astype("<u2").tobytes()))
    )
    assert not said and np.array_equal(v.voxels[:, :, 0], SCAN[:, :, 3])


def test_wrapped_values_of_a_series(tmp_path):
    stored = SCAN[:, :, 3].T.astype("<i2").view("<u2")  # signed numbers, said to be unsigned
    tags = dict(PixelData=stored.tobytes(), BitsStored=16, HighBit=15, RescaleIntercept="0")
    assert outcome(write_stack(tmp_path / "s", tags=tags))[1] == ["wrapped"]


# ---- DICOM: places


@pytest.mark.parametrize(
    "step, told", [(0.625, True), (0.75, True), (0.33, True), (1.25, False), (3.27, False)]
)
def test_positions_rounded_to_a_tenth(tmp_path, step, told):
    v, said = outcome(write_stack(tmp_path / "s", [round(step * k, 1) for k in range(40)]))
    assert said == ["dicom_rounded"] * told and v.spacing[2] == pytest.approx(step, rel=0.005)


def test_rounding_excuses_no_gap(tmp_path):
    places = [round(0.625 * k, 1) for k in range(40)]
    assert outcome(write_stack(tmp_path / "gap", places[:20] + places[21:]))[0] == "dicom_gap"
    places[20] += 0.2
    assert outcome(write_stack(tmp_path / "moved", places))[0] == "dicom_uneven_steps"
    assert (
        outcome(write_stack(tmp_path / "fine", [0.625 * k + 0.09 * (k % 2) for k in range(40)]))[0]
        == "dicom_uneven_steps"
    )


def enhanced(file, heights, **tags):
    def item(**values):
        d = Dataset()
        for name, value in values.items():
            setattr(d, name, value)
        return d

    stacks = tags.pop("stacks", ["1"] * len(heights))
    frames = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[-22, 20, z])],
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, -1, 0])],
            FrameContentSequence=[item(StackID=s)],
        )
        for z, s in zip(heights, stacks)
    ]
    pixels = (
        (SCAN[:, :, [int(z // 3) for z in heights]].T.astype(int) + 1024).astype("<u2").tobytes()
    )
    file.parent.mkdir(exist_ok=True)
    write_slice(
        file,
        0,
        0,
        tags=dict(
            NumberOfFrames=len(heights),
            PerFrameFunctionalGroupsSequence=frames,
            ImagePositionPatient=None,
            PixelData=pixels,
        )
        | tags,
    )


def concatenated(folder, n, heights, total=2, before=0):
    told = dict(
        ConcatenationUID="1.2.9", InConcatenationNumber=n, ConcatenationFrameOffsetNumber=before
    )
    enhanced(
        folder / f"part{9 - n}",
        heights,
        **told | (dict(InConcatenationTotalNumber=total) if total else {}),
    )


def test_a_scan_in_two_files(tmp_path):
    folder = tmp_path / "s"
    concatenated(folder, 1, range(0, 18, 3))
    concatenated(folder, 2, range(18, 36, 3), before=6)
    v, said = outcome(folder)
    assert not said and np.array_equal(v.voxels, STACK) and len(find_series(folder)) == 1
    code, words = outcome(folder / "part8")
    assert (
        code == "dicom_part_missing" and "InConcatenationNumber" in words and "all files" in words
    )
    (folder / "part7").unlink()
    assert outcome(folder)[0] == "dicom_part_missing"


def test_parts_that_do_not_follow_each_other(tmp_path):
    concatenated(tmp_path / "s", 1, range(0, 18, 3), total=None)
    concatenated(tmp_path / "s", 2, range(18, 36, 3), total=None, before=8)
    code, words = outcome(tmp_path / "s")
    assert code == "dicom_part_missing" and "ConcatenationFrameOffsetNumber" in words


def test_two_files_of_many_slices_are_not_halved(tmp_path):
    enhanced(tmp_path / "s" / "a", range(0, 18, 3))
    enhanced(tmp_path / "s" / "b", range(18, 36, 3))
    code, words = outcome(tmp_path / "s")
    assert code == "dicom_two_series" and "ConcatenationUID" in words and "own folder" not in words


def test_two_stacks_in_one_file(tmp_path):
    enhanced(tmp_path / "s" / "a", range(0, 36, 3), stacks=["1"] * 6 + ["2"] * 6)
    code, words = outcome(tmp_path / "s")
    assert code == "dicom_mixed" and "StackID" in words
    enhanced(tmp_path / "s" / "a", range(0, 36, 3))
    assert np.array_equal(outcome(tmp_path / "s")[0].voxels, STACK)


def test_compressed_data_is_said_in_digits(tmp_path):
    path = itk(tmp_path, "m.mha", (b"CompressedData = False", b"CompressedData = 1"))
    head, raw = path.read_bytes().split(b"ElementDataFile = LOCAL\n", 1)
    path.write_bytes(head + b"ElementDataFile = LOCAL\n" + zlib.compress(raw))
    assert np.array_equal(outcome(path)[0].voxels, SCAN)
