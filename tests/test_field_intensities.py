"""Wrong numbers and wrong sides.

Every command that takes them at their word says the same words; sound scans pass in silence.
"""

import json
import warnings

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import medseg.cli.entry  # noqa: F401  puts all commands on the list
from medseg.cli.common import app
from medseg.data.augment import turn
from medseg.data.cases import Case, SlabSampling, slab_batch, load_case
from medseg.data.cases import crop_slab as cut_slab
from medseg.data.manifest import Item
from medseg.data.patch import cut_patch
from medseg.data.unpaired import make_patch
from medseg.data.scans import make_scan
from medseg.segment.predict import SegmentRecipe, save_model, expected_modality, with_modality
from medseg.bone.threshold import bone_mask
from medseg.translate.predict import TranslateRecipe, save_translator
from medseg.io.files import InputError, RepairWarning
from medseg.phantoms.scanner import abdomen
from medseg.phantoms.spine_scanner import spine_ct, spine_mr
from medseg.zdepth.trust import check_scan
from medseg.io.unit import doubt_ct, doubt_mr
from medseg.io.volume import Volume
from medseg.io.write import write_labels, write_volume

CT = abdomen(2, spacing=(6.0, 6.0, 8.0)).ct
MR = spine_mr(2, spacing=(4.0, 4.0, 4.0)).image
HU = CT.voxels.astype(np.float32)
WINDOWED = np.clip((HU + 160) / 400, 0, 1)
WRONG = dict(
    plus1024=((HU + 1024).clip(0).astype(np.uint16), "with 1024 on top"),
    unit=(WINDOWED, "scaled"),
    milli=(HU / 1000, "divided by 1000"),
    bits8=(np.rint(255 * WINDOWED).astype(np.uint8), "greys of 8 bits"),
    mr=(MR.voxels, "an MR"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    here = tmp_path_factory.mktemp("intensities")
    torch.manual_seed(0)
    recipe = SegmentRecipe(depth=3, width=4, levels=2, inplane_mm=12.0, modality="CT")
    save_model(here / "segment.safetensors", recipe.net(), recipe, dict(run="toy"))
    way = TranslateRecipe("resnet1", 2, direction="ct2mr", patch=(32, 32, 32), overlap=0.0)
    save_translator(here / "ct2mr.safetensors", way.net(), way, dict(run="toy"))
    way = TranslateRecipe("resnet1", 2, patch=(32, 32, 32), overlap=0.0)
    save_translator(here / "mr2ct.safetensors", way.net(), way, dict(run="toy"))
    for name, (x, _) in WRONG.items():
        write_volume(here / f"{name}.nii.gz", Volume(x, MR.affine if name == "mr" else CT.affine))
    write_volume(here / "ct.nii.gz", CT)
    return here


def said(args):
    "Status and all words of a command."
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        done = CliRunner().invoke(app, [str(a) for a in args])
    return done, " ".join(
        [
            done.output,
            str(done.exception or ""),
            *(str(w.message) for w in heard if isinstance(w.message, RepairWarning)),
        ]
    )


@pytest.mark.parametrize("name", WRONG)
def test_all_commands_say_the_same(place, name):
    scan, words = place / f"{name}.nii.gz", doubt_ct(WRONG[name][0]).found
    assert WRONG[name][1] in words
    for args in (
        ["predict", place / "segment.safetensors", scan, "-o", place / "no.nii.gz"],
        ["translate", place / "ct2mr.safetensors", scan, "-o", place / "no.nii.gz"],
        ["bone", scan, "-o", place / "no.nii.gz"],
        ["check", scan, "--modality", "CT"],
    ):
        done, text = said(args)
        assert done.exit_code and words in text and not (place / "no.nii.gz").exists(), (
            args[0],
            text,
        )


def test_collapse_says_the_same(place):
    from medseg.collapse.folders import sample_scan
    from medseg.collapse.folders import scan_position as grid_of

    for name, (x, _) in WRONG.items():
        with pytest.warns(RepairWarning) as heard:
            sample_scan(place / f"{name}.nii.gz", grid_of(place / f"{name}.nii.gz"), scaled=False)
        assert doubt_ct(x).found in str(heard[0].message)
    with pytest.warns(RepairWarning, match="needs an MR"):
        sample_scan(place / "ct.nii.gz", grid_of(place / "ct.nii.gz"), scaled=True)


def test_a_ct_where_an_mr_is_needed(place):
    for name, x in dict(
        ct=CT.voxels, milli=WRONG["milli"][0], plus1024=WRONG["plus1024"][0]
    ).items():
        assert doubt_mr(x), name
    done, text = said(
        ["translate", place / "mr2ct.safetensors", place / "ct.nii.gz", "-o", place / "no.nii.gz"]
    )
    assert done.exit_code and "needs an MR" in text and not (place / "no.nii.gz").exists()


def test_whoever_insists_goes_on_and_is_told(place):
    done, text = said(
        [
            "predict",
            place / "segment.safetensors",
            place / "plus1024.nii.gz",
            "-o",
            place / "yes.nii.gz",
            "--anyway",
            "--json",
        ]
    )
    assert (
        done.exit_code == 0
        and "subtract 1024" in text
        and (place / "yes.nii.gz").exists()
        and json.loads(done.stdout)["asked"]["numbers"] == "doubted"
    )


def test_a_sound_ct_passes_in_silence(place):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RepairWarning)
        assert (
            check_scan(CT, place / "ct.nii.gz")["numbers"] == "fit"
            and check_scan(MR, place / "mr.nii.gz", "MR")["numbers"] == "fit"
        )


def sound():
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in CT.shape), indexing="ij")
    far = np.hypot(x, y) > 1.1
    metal = CT.voxels.copy()
    metal[30:34, 30:34] = 3071
    for pad in (-2000, -3024, -32768):
        yield f"filled with {pad}", np.where(far, pad, CT.voxels.astype(np.int32))
    yield from {
        "metal": metal,
        "one slice": CT.voxels[:, :, 10:11],
        "no air": CT.voxels[24:48, 18:36, 8:20],
        "float": HU,
        "clipped at -1000": CT.voxels.clip(-1000),
        "spine, no air": spine_ct(1, spacing=(3.0, 3.0, 3.0)).image.voxels,
        "contrast": spine_ct(2, spacing=(3.0, 3.0, 3.0), contrast=True, metal=True).image.voxels,
    }.items()


@pytest.mark.parametrize("name, x", sound(), ids=lambda v: v if isinstance(v, str) else "")
def test_no_false_alarm(name, x):
    assert doubt_ct(x) is None


def test_other_wrong_numbers():
    for x in (
        HU - 1024,
        (HU - HU.mean()) / HU.std(),
        np.clip((HU + 1000) / 2000, 0, 1) * 4095,
        HU + 1000,
        np.rint(255 * WINDOWED).astype(np.int16),
    ):
        assert doubt_ct(x).sure
    cut_off = doubt_ct(CT.voxels.clip(-160, 240))
    assert "cut off at -160" in cut_off.found and not cut_off.sure
    assert any(
        "with 1024 on top" in w for w in bone_mask(Volume(HU + 1024, CT.affine))[1]["warnings"]
    )


def test_training_asks_too(place):
    write_labels(place / "seg.nii.gz", Volume((CT.voxels > 100).astype(np.uint8), CT.affine))
    with pytest.raises(InputError, match="with 1024 on top"):
        load_case(Item("a", place / "plus1024.nii.gz", place / "seg.nii.gz"), ((1,),))


def test_the_checkpoint_knows_what_it_was_trained_on():
    assert (
        with_modality(SegmentRecipe(), ["", "ct"]).modality == "CT"
        and expected_modality(with_modality(SegmentRecipe(), ["MR"]), "a") == "MR"
    )
    with pytest.warns(RepairWarning, match="does not say which modality"):
        expected_modality(SegmentRecipe(), "old.safetensors")
    with pytest.raises(ValueError, match="one modality"):
        with_modality(SegmentRecipe(), ["CT", "MR"])


def test_back_to_front():
    side = spine_mr(3, spacing=(4.0, 2.0, 2.0), extent_mm=(60, 260, 260)).image
    with pytest.warns(RepairWarning, match="front and back seem exchanged"):
        told = check_scan(Volume(side.voxels[:, ::-1], side.affine), wanted="MR")
    assert told["back"] == "contradicts" and check_scan(side, wanted="MR")["back"] == "agrees"
    with pytest.warns(RepairWarning, match="exchanged"):
        check_scan(Volume(CT.voxels[:, ::-1], CT.affine))
    thigh = Volume(
        np.where(np.hypot(*np.meshgrid(np.arange(40) - 20, np.arange(40) - 20)) < 16, 50, -1000)[
            ..., None
        ].repeat(20, 2),
        np.diag([4.0, 4, 4, 1]),
    )
    thigh.voxels[18:22, 27:31] = 900  # a bone in front of the middle is no spine
    assert check_scan(thigh)["back"] == "cannot tell"


@pytest.mark.parametrize("dtype", ["u1", "u2", "i1", ">i2", ">u2", "f2"])
def test_filled_up_black_whatever_the_type(dtype):
    scan = np.full((3, 4, 4), 100).astype(dtype)
    case = Case("a", scan, np.ones((3, 4, 4), np.uint8), (1, 1, 1), {1: np.arange(3)})
    x, y, _ = slab_batch([case], SlabSampling(depth=1, crop=(8, 8), batch=4), 0)
    assert (x[y[:, None] == 0] == 0).all() and (x[y[:, None] == 1] == 0.6).all()
    v = make_scan("a", Volume(scan.astype(dtype), np.eye(4)), "CT")
    for elastic in (0, 1e-6):  # cut out, and warped
        record = dict(
            start=[-3, -3, -3],
            size=[9, 9, 9],
            turn=None,
            elastic=elastic,
            stretch=None,
            mean=0,
            sd=0,
            seed=0,
            flip=False,
        )
        assert make_patch(v, record)[0, 0, 0] == -1


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="scale first"):
        cut_patch(np.zeros((2, 2, 2), np.uint16), (-1, 0, 0), (4, 2, 2), -1000)
    with pytest.raises(ValueError, match="scale first"):
        cut_slab(np.zeros((1, 2, 2), np.uint8), (-1, -1), (4, 4), -140)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("angle, scale", [(0.0, 0.7), (0.4, 1.0), (-0.2, 0.85)])
def test_an_organ_that_a_crop_cuts_through_keeps_its_label(many, angle, scale):
    x = torch.zeros(1, 3, 40, 24)
    x[:, :, 25:] = 1
    y = x.long() if many else x[:, 1].long()
    turned, classes = turn(x, y, torch.tensor([angle]), torch.tensor([scale]))
    looks = turned if many else turned[:, 1]
    assert (
        (classes[looks > 0.99] == 1).all()
        and (classes[looks < 0.01] == 0).all()
        and classes.shape == y.shape
    )
