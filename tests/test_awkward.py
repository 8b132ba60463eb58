"""Real odd files, if there are any: set MEDSEG_DATA to a folder that holds `awkward/`.

Without it one test says so by its name.
"""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from medseg.io.check import check_pair, check_path
from medseg.io.files import InputError
from medseg.io.read import read_volume
from medseg.io.slices import slices_in, stored_pixels
from medseg.zdepth.survey import survey
from medseg.io.volume import grid_gap, reorient

ROOT = Path(os.environ["MEDSEG_DATA"]) / "awkward" if os.environ.get("MEDSEG_DATA") else None
EXPECTED = {  # path below awkward/: codes, "" where it is accepted in silence
    "affine/anatomical.nii": "",
    "affine/ct_avm_scaled_float.nii.gz": "",
    "affine/ct_gantry_shear.nii.gz": "affine_sheared",
    "affine/ct_oblique_pitch.nii.gz": "header_text",
    "affine/psr_left_handed_mr.nii.gz": "",
    "affine/reoriented_anat_moved.nii": "",
    "complex/complex64_mr.nii.gz": "complex",
    "complex/complex_small.nii.gz": "complex",
    "rgb/ct_perfusion_rgb.nii.gz": "rgb",
    "rgb/ivadomed_rgb_test_file.nii.gz": "rgb",
    "rgb/ts_spine_report_rgb.nii.gz": "rgb",
    "fourD/V1_vector_4d.nii.gz": "four_d",
    "fourD/dmri_4d.nii.gz": "four_d",
    "fourD/example4d.nii.gz": "four_d",
    "formats/FLAIR.nii.gz": "",
    "formats/FLAIR.nrrd": "",
    "formats/enhanced_multiframe.dcm": "",
    "formats/example_nifti2.nii.gz": "four_d",
    "formats/header_only_analyze.hdr": "image_part_missing",
    "formats/header_only_nifti1.hdr": "image_part_missing",
    "formats/pair/ras.hdr": "",
    "formats/pair/ras.img": "",
    "formats/small.mnc": "format_unsupported",
    "formats/test.mgz": "four_d",
    "formats/wm_LIA.mgz": "",
    "formats/parrec/phantom_truncated.PAR": "format_unsupported",
    "formats/parrec/phantom_truncated.REC": "format_unknown",
    "dicom_single": "dicom_two_series",
    "dicom_single/CT_small.dcm": "dicom_single_slice",
    "dicom_single/MR_small.dcm": "dicom_single_slice",
    "dicom_single/MR_truncated.dcm": "dicom_single_slice",
    "dicom_single/JPEG2000.dcm": "dicom_no_geometry",
    "dicom_single/badVR.dcm": "dicom_not_image",
    "dicom_single/liver_1frame.dcm": "dicom_not_image",
    "dicom_single/rtstruct.dcm": "dicom_not_image",
    "dicom_single/no_meta.dcm": "format_unknown",
    "dicom_single/slicethickness_empty_string.dcm": "dicom_single_slice",
    "dicom_single/decimal_rescale.dcm": "dicom_single_slice",
    "dicom_series/icometrix_gantrytilting/001": "dicom_gantry_tilt",
    "dicom_series/icometrix_notavolume/001": "dicom_same_position",
    "dicom_series/icometrix_slicecount/001": "dicom_too_few_slices",
    "dicom_series/icometrix_sliceincrement/001": "dicom_gap",
    "dicom_series/icometrix_sliceincrement/002": "dicom_gap",
    "dicom_series/icometrix_sliceorientation/001": "dicom_mixed_orientation",
    "dicom_series/ge_variable_tilt_spacing.tar.gz": "format_unsupported",
    "dicom_series/agfa_siemens/Agfa": "dicom_two_series",
    "dicom_series/agfa_siemens/Agfa/011-0001.img": "",
    "stale_origin/example_ct_sm.nii.gz": "",
    "tiny/sub-unf02_T2star.nii.gz": "",
    "made/sform_qform_mismatch.nii.gz": "sform_qform",
    "made/no_affine_codes.nii.gz": "orientation_unknown",
    "made/nan_inf.nii.gz": "voxel_nan",
    "made/all_zero.nii.gz": "constant",
    "made/int16_hu_wrapped_uint16.nii.gz": "wrapped",
    "made/trailing_singleton_4d.nii.gz": "",
    "made/single_slice.nii.gz": "",
    "made/zero_pixdim_z.nii": "pixdim_bad",
    "made/negative_pixdim_z.nii": "negative_pixdim,orientation_unknown",
    "made/truncated.nii.gz": "four_d",
    "made/lfs_pointer.nii.gz": "lfs_pointer",
    "formats/parrec/phantom_EPI_asc_CLEAR_2_1.PAR": "format_unsupported",
    "dicom_single/MR_small_bigendian.dcm": "dicom_single_slice",
    "dicom_single/MR_small_padded.dcm": "dicom_single_slice",
    "dicom_single/image_dfl.dcm": "dicom_no_geometry",
    "dicom_series/agfa_siemens/Siemens": "dicom_two_series",
    "labels/ivd_spacing_permuted_labels51.nii": "",
    "labels/verse004_float64_labels_PIR.nii.gz": "",
    "tiny/sub-unf02_T1w.nii.gz": "",
    "made/big_endian_float32.nii": "",
    "made/analyze_pair/anat.hdr": "orientation_unknown",
    "made/analyze_pair/anat.img": "orientation_unknown",
}


@pytest.mark.parametrize(
    "name", EXPECTED if ROOT else ["MEDSEG_DATA is not set, no real file was looked at"]
)
def test_awkward(name):
    if not ROOT:
        return
    row = check_path(ROOT / name)
    assert row["code"] == EXPECTED[name], row["message"]
    assert len(row["message"].splitlines()) <= 1 and (
        row["status"] != "refused" or Path(name).name in row["message"]
    )


if ROOT:

    def read(name, role="image"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_volume(ROOT / name, role)

    def test_one_object_in_ten_orientations():
        turned = [
            reorient(read(f"affine/nifti_space/{p.name}"))
            for p in sorted((ROOT / "affine" / "nifti_space").iterdir())
        ]
        assert len(turned) == 10
        for v in turned[1:]:
            assert (
                np.array_equal(v.voxels, turned[0].voxels)
                and grid_gap(turned[0].affine, v.affine, v.shape) < 1e-3
            )

    def test_twins_agree():
        for a, b in (
            ("formats/FLAIR.nrrd", "formats/FLAIR.nii.gz"),
            (
                "dicom_series/agfa_siemens/Agfa/011-0001.img",
                "dicom_series/agfa_siemens/Siemens/011-0001.img",
            ),
            ("formats/pair/ras.hdr", "formats/pair/ras.img"),
        ):
            one, two = read(a), read(b)
            assert (
                np.array_equal(one.voxels, two.voxels)
                and grid_gap(one.affine, two.affine, one.shape) < 1e-3
            ), a

    def test_labels():
        assert np.unique(
            read("labels/verse004_float64_labels_PIR.nii.gz", "labels").voxels
        ).tolist() == [0, *range(16, 25)]
        assert read("labels/ivd_spacing_permuted_labels51.nii", "labels").voxels.dtype == np.uint8
        with pytest.raises(InputError) as caught:
            check_pair(
                read("made/mismatch/img.nii.gz"),
                read("made/mismatch/seg.nii.gz", "labels"),
                names=("img.nii.gz", "seg.nii.gz"),
            )
        assert caught.value.code == "pair_shape" and "seg.nii.gz" in str(caught.value)

    def test_every_file_of_the_list_is_looked_at():
        "Each row of the corpus' own table is in EXPECTED or in one of the tests below."
        rows = [
            line.split("|")[1].strip()
            for line in (ROOT / "SOURCES.md").read_text().splitlines()
            if line.startswith("| ") and "/" in line.split("|")[1]
        ]
        others = ("affine/nifti_space/", "formats/pair/", "made/mismatch/", "made/analyze_pair/")
        missing = [
            r
            for r in rows
            if not r.startswith(others)
            and not any(name == r or name.startswith(r + "/") for name in EXPECTED)
        ]
        assert len(rows) > 60 and not missing, missing

    def test_every_file_below_is_refused_repaired_or_read():
        "Whatever lies in the corpus: one of the three, in one line, and no other exception."
        for path in sorted(p for p in ROOT.rglob("*") if p.is_file()):
            row = check_path(path)
            assert (
                row["status"] in ("ok", "repaired", "refused")
                and len(row["message"].splitlines()) <= 1
            ), path

    def test_slices_hold_the_same_numbers():
        """Single slices make no volume, but their pixels are read.

        Big-endian and padded copies equal the plain one, the rescale is read, an empty thickness
        is none, a cut one is refused by name.
        """
        plain, *copies = [
            stored_pixels(ROOT / "dicom_single" / f"MR_small{n}.dcm")
            for n in ("", "_bigendian", "_padded")
        ]
        for copy in copies:
            assert np.array_equal(plain, copy)
        assert slices_in(ROOT / "dicom_single" / "decimal_rescale.dcm")[0].scale == (2, -4096)
        assert (
            slices_in(ROOT / "dicom_single" / "slicethickness_empty_string.dcm")[0].thickness
            is None
        )
        with pytest.raises(InputError) as caught:
            stored_pixels(ROOT / "dicom_single" / "MR_truncated.dcm")
        assert caught.value.code == "dicom_truncated" and "MR_truncated.dcm" in str(caught.value)
        assert stored_pixels(ROOT / "dicom_single" / "JPEG2000.dcm").ndim == 3

    def test_a_ct_without_air_is_doubted():
        for name in ("affine/ct_oblique_pitch.nii.gz", "affine/ct_avm_scaled_float.nii.gz"):
            assert (
                "not_hu" in check_path(ROOT / name, modality="CT")["code"]
                and "not_hu" not in check_path(ROOT / name)["code"]
            )
        assert (
            check_path(ROOT.parent / "ct_abdomen" / "tsA" / "ct.nii.gz", modality="CT")["code"]
            == ""
        )

    def test_survey_of_everything():
        table = survey(ROOT.parent)
        assert (
            "unexpected" not in [row["code"] for row in table["refused"]]
            and len(table["volumes"]) > 100
        )
        flags = {row["path"]: row["flags"] for row in table["volumes"]}
        assert "spacing_order" in flags[str(ROOT / "labels" / "ivd_spacing_permuted_labels51.nii")]
        assert (
            "thickness_differs_from_spacing" in flags[
                str(ROOT.parent / "ct_abdomen" / "tsB" / "dicom")
            ]
        )
