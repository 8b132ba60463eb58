"DICOM series and files of other formats that are odd, made of the same toy scan."

from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.freesurfer.mghformat import MGHHeader
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLosslessSV1

from oddfile import ORGAN, PLACE, SCAN, Odd


def write_slice(
    file: Path, k: int, z: float, number: int = 1, tags: dict | None = None, packed: bool = False
):
    """One slice of the toy scan as a DICOM file.

    Parameters
    ----------
    file
        to make
    k
        slice of the toy scan, 0 to 11
    z
        where it lies, mm
    number
        of the slice; InstanceNumber and part of its UID
    tags
        by keyword, overwritten last
    packed
        claim a compression that nobody here can undo
    """
    d = Dataset()
    d.SOPClassUID, d.SeriesInstanceUID, d.SOPInstanceUID, d.Modality, d.InstanceNumber = (
        CTImageStorage,
        "1.2.3",
        f"1.2.3.{number}",
        "CT",
        number,
    )
    d.ImagePositionPatient, d.ImageOrientationPatient, d.PixelSpacing, d.SliceThickness = (
        [-22, 20, z],
        [1, 0, 0, 0, -1, 0],
        [2, 2],
        "",
    )
    d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation, d.PixelRepresentation = (
        20,
        24,
        1,
        "MONOCHROME2",
        0,
    )
    d.BitsAllocated, d.BitsStored, d.HighBit, d.RescaleSlope, d.RescaleIntercept = (
        16,
        12,
        11,
        "1",
        "-1024",
    )
    d.PixelData = (SCAN[:, :, k].T.astype(int) + 1024).astype("<u2").tobytes()
    for name, value in (tags or {}).items():
        setattr(d, name, value)
    d.file_meta = FileMetaDataset()
    (
        d.file_meta.MediaStorageSOPClassUID,
        d.file_meta.MediaStorageSOPInstanceUID,
        d.file_meta.TransferSyntaxUID,
    ) = (CTImageStorage, d.SOPInstanceUID, ExplicitVRLittleEndian)
    if packed:
        d.file_meta.TransferSyntaxUID, d.PixelData = JPEGLosslessSV1, encapsulate(
            [b"\xff\xd8" + bytes(100)]
        )
        d["PixelData"].VR = "OB"
    d.save_as(file, enforce_file_format=True)


def write_stack(
    folder: Path,
    heights=range(0, 24, 3),
    tags: dict | None = None,
    stem: str = "IM",
    slip: float = 0.0,
    packed: bool = False,
) -> Path:
    """The toy scan as a DICOM series.

    Parameters
    ----------
    folder
        made if it is not there
    heights
        mm, one a slice
    tags
        see `write_slice`
    stem
        of the file names, which are not in the order of the heights
    slip
        mm sideways for each mm up, as under a tilted gantry
    packed
        see `write_slice`

    Returns
    -------
    Path
        the folder
    """
    folder.mkdir(parents=True, exist_ok=True)
    for n, z in enumerate(heights):
        place = dict(ImagePositionPatient=[-22, 20 + slip * z, z]) if slip else {}
        write_slice(
            folder / f"{stem}{n*5 % 97:03d}", int(n % 12), z, n + 1, place | (tags or {}), packed
        )
    return folder


def _enhanced(folder: Path, heights) -> Path:
    "A file that holds all its slices."

    def item(**tags):
        d = Dataset()
        for name, value in tags.items():
            setattr(d, name, value)
        return d

    places = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[-22, 20, z])],
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, -1, 0])],
        )
        for z in heights
    ]
    pixels = (SCAN[:, :, : len(heights)].T.astype(int) + 1024).astype("<u2").tobytes()
    write_slice(
        folder / "IM000",
        0,
        0,
        tags=dict(
            NumberOfFrames=len(heights),
            PerFrameFunctionalGroupsSequence=places,
            ImagePositionPatient=None,
            PixelData=pixels,
        ),
    )
    return folder / "IM000"


def _both(first: Path, *then) -> Path:
    "A folder, after something was added to it."
    return first


_SPACE = dict(  # kind: (expected, code, fill the folder)
    dicom_gap=("refuse", "dicom_gap", lambda f: write_stack(f, (0, 3, 6, 12, 15))),
    dicom_duplicate=("refuse", "dicom_duplicate_slice", lambda f: write_stack(f, (0, 3, 6, 6, 9))),
    dicom_uneven=("refuse", "dicom_uneven_steps", lambda f: write_stack(f, (9, 0, 3.5, 6))),
    dicom_one_place=("refuse", "dicom_same_position", lambda f: write_stack(f, (5, 5, 5))),
    dicom_single=("refuse", "dicom_single_slice", lambda f: write_stack(f, (5,))),
    dicom_two_slices=("refuse", "dicom_too_few_slices", lambda f: write_stack(f, (5, 8))),
    dicom_tilt=("refuse", "dicom_gantry_tilt", lambda f: write_stack(f, slip=0.3)),
    dicom_enhanced_twice=(
        "refuse",
        "dicom_duplicate_slice",
        lambda f: _enhanced(f, (0, 3, 6, 0, 3, 6)),
    ),
    dicom_turned=(
        "refuse",
        "dicom_mixed_orientation",
        lambda f: _both(
            write_stack(f),
            write_stack(f, (30,), dict(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "B"),
        ),
    ),
    dicom_sizes=(
        "refuse",
        "dicom_mixed_size",
        lambda f: _both(write_stack(f), write_stack(f, (30, 33), dict(Rows=10), "B")),
    ),
    dicom_two_series=(
        "refuse",
        "dicom_two_series",
        lambda f: _both(
            write_stack(f), write_stack(f, tags=dict(SeriesInstanceUID="1.2.4"), stem="B")
        ),
    ),
)


def _cut(file: Path):
    file.write_bytes(file.read_bytes()[:-400])


_SLICES = dict(
    dicom_seg=("refuse", "dicom_not_image", lambda f: write_stack(f, tags=dict(Modality="SEG"))),
    dicom_contours=(
        "refuse",
        "dicom_not_image",
        lambda f: write_stack(f, (0,), dict(Modality="RTSTRUCT")) / "IM000",
    ),
    dicom_no_place=(
        "refuse",
        "dicom_no_geometry",
        lambda f: write_stack(f, tags=dict(ImagePositionPatient=None)),
    ),
    dicom_zero_pixel=(
        "refuse",
        "dicom_bad_geometry",
        lambda f: write_stack(f, tags=dict(PixelSpacing=[0, 2])),
    ),
    dicom_colour=(
        "refuse",
        "dicom_colour",
        lambda f: write_stack(f, tags=dict(PhotometricInterpretation="RGB")),
    ),
    dicom_cut=("refuse", "dicom_truncated", lambda f: _both(write_stack(f), _cut(f / "IM010"))),
    dicom_no_decoder=("refuse", "dicom_no_decoder", lambda f: write_stack(f, packed=True)),
    dicom_good=("accept", "", write_stack),
    dicom_pair_told=("accept", "", lambda f: write_stack(f, (5, 8), dict(SliceThickness="3"))),
    dicom_with_notes=(
        "accept",
        "",
        lambda f: _both(write_stack(f), (f / "README.txt").write_text("thank you")),
    ),
    dicom_enhanced=("accept", "", lambda f: _enhanced(f, (0, 3, 6, 9))),
)


def series_cases(folder: Path) -> list[Odd]:
    """DICOM series that make no volume, and some that do.

    Parameters
    ----------
    folder
        each case gets a folder of its own in it
    """
    return [
        Odd(make(_made(folder / kind)), None, kind, expected, code)
        for kind, (expected, code, make) in (_SPACE | _SLICES).items()
    ]


def _made(folder: Path) -> Path:
    "A new folder."
    folder.mkdir(parents=True)
    return folder


def write_itk(
    path: Path, change=None, packed: bool = True, voxels: np.ndarray = SCAN, vector: bool = False
) -> Path:
    "The toy scan as NRRD or MetaImage, its bytes changed by `change`."
    image = sitk.GetImageFromArray(voxels.T, isVector=vector)
    image.SetSpacing((2, 2, 3))
    image.SetOrigin((-22, 20, 100))
    image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(path), packed)
    if change:
        path.write_bytes(change(path.read_bytes()))
    return path


def _mgh(path: Path, fields: dict, keep: int | None = None, voxels: np.ndarray = SCAN) -> Path:
    "The toy scan as MGH with header fields overwritten, the file cut after `keep` bytes."
    data = nib.MGHImage(voxels, PLACE).to_bytes()
    header = MGHHeader(data[:90], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes((header.binaryblock[:90] + data[90:])[:keep])
    return path


def _swap(old: bytes, new: bytes):
    "A function that replaces some bytes."
    return lambda data: data.replace(old, new)


_TEXTS = dict(
    mha_truncated=(
        "refuse",
        "file_truncated",
        lambda f: write_itk(f / "scan.mha", lambda b: b[:-100], False),
    ),
    mha_packed_cut=(
        "refuse",
        "gzip_truncated",
        lambda f: write_itk(f / "scan.mha", lambda b: b[:-100]),
    ),
    mha_bitflip=(
        "refuse",
        "gzip_corrupt",
        lambda f: write_itk(f / "scan.mha", lambda b: b[:-2] + bytes([b[-2] ^ 1]) + b[-1:]),
    ),
    mha_no_spacing=(
        "refuse",
        "pixdim_bad",
        lambda f: write_itk(f / "scan.mha", _swap(b"ElementSpacing", b"ElementSpacink"), False),
    ),
    mhd_outside=(
        "refuse",
        "data_file_unsupported",
        lambda f: write_itk(f / "scan.mhd", _swap(b"scan.raw", b"../../etc/passwd"), False),
    ),
    mhd_alone=(
        "refuse",
        "image_part_missing",
        lambda f: _both(write_itk(f / "scan.mhd", None, False), (f / "scan.raw").unlink()),
    ),
    mha_colour=(
        "refuse",
        "rgb",
        lambda f: write_itk(f / "scan.mha", voxels=np.stack([ORGAN] * 3), vector=True),
    ),
    nrrd_bitflip=(
        "refuse",
        "gzip_corrupt",
        lambda f: write_itk(f / "scan.nrrd", lambda b: b[:-6] + bytes([b[-6] ^ 1]) + b[-5:]),
    ),
    nrrd_cut=("refuse", "gzip_truncated", lambda f: write_itk(f / "scan.nrrd", lambda b: b[:-30])),
    nrrd_encoding=(
        "refuse",
        "encoding_unsupported",
        lambda f: write_itk(f / "scan.nrrd", _swap(b"encoding: gzip", b"encoding: bz2!")),
    ),
    nrrd_garbled=(
        "refuse",
        "header_unreadable",
        lambda f: write_itk(f / "scan.nrrd", _swap(b"sizes:", b"sizes: x")),
    ),
    nrrd_name=(
        "repair",
        "header_text",
        lambda f: write_itk(f / "scan.nrrd", _swap(b"type:", b"PatientName:=DOE^JANE\ntype:")),
    ),
    nrrd_good=("accept", "", lambda f: write_itk(f / "scan.nrrd")),
    mha_good=("accept", "", lambda f: write_itk(f / "scan.mha")),
)


def _lone(folder: Path, keep: str) -> Path:
    "One file of a pair."
    nib.save(nib.Nifti1Pair(SCAN, PLACE), folder / "scan.hdr")
    (folder / ("scan.img" if keep == ".hdr" else "scan.hdr")).unlink()
    return folder / f"scan{keep}"


def _analyze(folder: Path) -> Path:
    "A pair of the older format, which knows no orientation."
    nib.AnalyzeImage(SCAN, None).to_filename(folder / "scan.img")
    return folder / "scan.hdr"


_BINARY = dict(
    mgh_dims=(
        "refuse",
        "dim_not_positive",
        lambda f: _mgh(f / "scan.mgh", dict(dims=[24, 0, 12, 1])),
    ),
    mgh_frames=(
        "refuse",
        "four_d",
        lambda f: _mgh(f / "scan.mgh", {}, voxels=np.stack([SCAN] * 2, -1)),
    ),
    mgh_type=("refuse", "datatype_unknown", lambda f: _mgh(f / "scan.mgh", dict(type=77))),
    mgh_delta=("refuse", "pixdim_bad", lambda f: _mgh(f / "scan.mgh", dict(delta=[0, 2, 2]))),
    mgh_cut=("refuse", "file_truncated", lambda f: _mgh(f / "scan.mgh", {}, 900)),
    mgh_good=("accept", "", lambda f: _mgh(f / "scan.mgh", {})),
    header_alone=("refuse", "image_part_missing", lambda f: _lone(f, ".hdr")),
    voxels_alone=("refuse", "header_part_missing", lambda f: _lone(f, ".img")),
    analyze=("repair", "orientation_unknown", _analyze),
)


def format_cases(folder: Path) -> list[Odd]:
    """NRRD, MetaImage, MGH and paired files that are odd, and some that are not.

    Parameters
    ----------
    folder
        each case gets a folder of its own in it
    """
    return [
        Odd(make(_made(folder / kind)), None, kind, expected, code)
        for kind, (expected, code, make) in (_TEXTS | _BINARY).items()
    ]
