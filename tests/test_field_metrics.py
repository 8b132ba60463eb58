"Scores where there is nothing to score, organs of several parts, masks that are none."

import json
import math

import numpy as np
import pytest
from command import medseg

from medseg.runs.demo import summary
from medseg.segment.metrics import (
    assd_mm,
    class_means,
    dice_score,
    evaluate,
    false_components,
    hd95_mm,
    surface_distances,
)
from medseg.segment.predict import SegmentRecipe, keep_largest, save_model, usual_components
from medseg.translate.baselines import best_bone_dice
from medseg.bone.threshold import threshold_curve
from medseg.translate.scores import score_ct
from medseg.bone.surface import surface_of
from medseg.io.volume import Volume
from medseg.io.write import write_labels, write_volume

GRID = np.diag([2.0, 2.0, 5.0, 1.0])
EMPTY = np.zeros((12, 10, 6), np.uint8)


def boxes(*parts):
    "Labels with a box for each (class, slices of x, y, z)."
    found = EMPTY.copy()
    for value, *where in parts:
        found[tuple(slice(*w) for w in where)] = value
    return found


LESION = boxes((1, (1, 9), (1, 9), (0, 6)), (2, (3, 5), (3, 5), (1, 3)))
HEALTHY = boxes((1, (1, 9), (1, 9), (0, 6)))
SPECKS = boxes(
    (1, (1, 9), (1, 9), (0, 6)), (2, (3, 4), (3, 4), (1, 2)), (2, (7, 8), (7, 8), (4, 6))
)
KIDNEYS = boxes((1, (1, 4), (2, 6), (1, 5)), (1, (8, 11), (2, 5), (1, 5)))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64])
def test_empty_against_empty_is_undefined(dtype):
    none, some = EMPTY.astype(dtype), (HEALTHY > 0).astype(dtype)
    for score in (
        dice_score,
        lambda a, b: hd95_mm(a, b, (2, 2, 5)),
        lambda a, b: assd_mm(a, b, (2, 2, 5)),
    ):
        assert math.isnan(score(none, none))
    assert dice_score(none, some) == dice_score(some, none) == 0
    assert hd95_mm(none, some, (2, 2, 5)) == pytest.approx(math.dist((0, 0, 0), (24, 20, 30)))
    assert math.isnan(hd95_mm(some, none, (2, 2, 5))), "no surface to be far from"


@pytest.mark.parametrize("pred,parts,voxels", [(HEALTHY, 0, 0), (SPECKS, 2, 3), (LESION, 1, 8)])
def test_a_scan_without_the_class_scores_nothing(pred, parts, voxels):
    row = evaluate(Volume(pred, GRID), Volume(HEALTHY, GRID), (1, 2))["2"]
    assert all(math.isnan(row[k]) for k in ("dice", "hd95_mm", "assd_mm"))
    assert (row["false_parts"], row["label_ml"]) == (parts, 0)
    assert row["false_ml"] == pytest.approx(voxels * 0.02) == row["pred_ml"]


def test_false_parts_beside_a_structure_that_is_there():
    assert false_components(SPECKS, LESION, 2) == (
        1,
        2,
    ), "one speck lies in the lesion, the other is false"
    assert false_components(LESION, LESION, 2) == (0, 0)


def test_finding_nothing_never_beats_finding_something():
    """Three people, one with a lesion.

    The network that finds it wins, whatever it invents elsewhere.
    """

    def table(preds):
        labels = (LESION, HEALTHY, HEALTHY)
        return [
            dict(evaluate(Volume(p, GRID), Volume(y, GRID), (2,))["2"], **{"class": "lesion"})
            for p, y in zip(preds, labels)
        ]

    never = class_means(table([HEALTHY] * 3))["lesion"]
    finds = class_means(table([LESION, SPECKS, HEALTHY]))["lesion"]
    assert (never["dice"], never["scans"], never["of"], never["false_parts"]) == (0, 1, 3, 0)
    assert (finds["dice"], finds["scans"], finds["of"], finds["false_parts"]) == (1, 1, 3, 2)
    nobody = class_means(table([HEALTHY] * 3)[1:])["lesion"]
    assert math.isnan(nobody["dice"]) and nobody["scans"] == 0


def test_undefined_reaches_json_as_null_and_the_table_as_a_dash(tmp_path):
    for name, labels in (("pred", SPECKS), ("label", HEALTHY)):
        write_labels(tmp_path / f"{name}.nii.gz", Volume(labels, GRID))
    said = medseg("evaluate", tmp_path / "pred.nii.gz", tmp_path / "label.nii.gz", "--json")
    row = json.loads(said.stdout)["classes"]["2"]
    assert (
        said.returncode == 0 and row["dice"] is row["hd95_mm"] is None and row["false_parts"] == 2
    )
    said = medseg("evaluate", tmp_path / "pred.nii.gz", tmp_path / "label.nii.gz")
    assert said.returncode == 0 and "nan" not in said.stdout and "–" in said.stdout


def test_the_demo_leaves_out_who_lacks_the_class():
    rows = [
        {"subject": s, "class": "lesion", "dice": d}
        for s, d in (("a", [0.5, 0.7]), ("b", [None, None]))
    ]
    assert summary(rows)["lesion"]["mean"] == pytest.approx(0.6)
    assert summary(rows)["lesion"]["scans"] == 1


def test_bone_scores_without_bone_are_undefined():
    soft = Volume(np.where(HEALTHY > 0, 40, -1000).astype(np.int16), GRID)
    none = np.zeros(soft.shape, bool)
    assert math.isnan(score_ct(soft, soft, HEALTHY > 0, none)["dense_dice"])
    assert math.isnan(best_bone_dice(soft, soft, none, HEALTHY > 0))
    with pytest.raises(ValueError, match="bone must not be empty"):
        threshold_curve(soft, none, HEALTHY > 0)


# Parts


def test_kidneys_stay_two_by_default(tmp_path, monkeypatch):
    "Through the command line: what a network marks as two kidneys, with and without `largest`."

    def bright(net, recipe, scan):
        return Volume((scan.voxels > 0).astype(np.uint8), scan.affine)

    monkeypatch.setattr("medseg.segment.predict.predict", bright)
    scan = Volume(np.where(KIDNEYS > 0, 200, -200).astype(np.int16), GRID)
    write_volume(tmp_path / "scan.nii.gz", scan)
    for largest, left, dropped in (
        ((), 84 * 0.02, 0),
        ((1,), 48 * 0.02, 36 * 0.02),
        ((2,), 84 * 0.02, 0),
    ):
        recipe = SegmentRecipe(
            depth=1, width=2, levels=2, inplane_mm=0.0, largest=largest, names=("kidney",)
        )
        path = save_model(tmp_path / f"keep{sum(largest)}.safetensors", recipe.net(), recipe, {})
        said = medseg(
            "predict",
            path,
            tmp_path / "scan.nii.gz",
            "-o",
            tmp_path / f"{path.stem}.nii.gz",
            "--json",
        )
        told = json.loads(said.stdout)
        assert said.returncode == 0 and told["ml"]["kidney"] == pytest.approx(left)
        assert told["dropped_ml"]["kidney"] == pytest.approx(dropped)


def test_each_class_has_its_own_number_of_parts():
    lesions = boxes(
        (1, (0, 3), (0, 3), (0, 3)),
        (1, (5, 6), (5, 6), (0, 1)),
        (2, (8, 9), (0, 1), (0, 1)),
        (2, (8, 9), (3, 5), (0, 1)),
        (2, (8, 9), (7, 10), (0, 1)),
    )
    for keep, left, ml in (
        ((0, 0), (28, 6), (0, 0)),
        ((1, 0), (27, 6), (0.02, 0)),
        ((0, 2), (28, 5), (0, 0.02)),
        ((1, 1), (27, 3), (0.02, 0.06)),
    ):
        mask, dropped = keep_largest(Volume(lesions, GRID), keep)
        assert tuple((mask.voxels == c).sum() for c in (1, 2)) == left and dropped == pytest.approx(
            ml
        )


def test_training_labels_say_how_many_parts_are_usual():
    one = KIDNEYS.copy()
    one[6:] = 0
    assert usual_components([one, KIDNEYS], 2) == (2,)
    assert usual_components([np.where(KIDNEYS > 0, 2, 0)], 4) == (0, 2, 0)
    dust = np.zeros((30, 30, 30), np.uint8)
    dust[:20, :20, :20] = 1
    dust[29, 29, 29] = 1
    assert usual_components([dust], 2) == (1,), "a speck is no part"


def test_a_class_that_is_not_there_cannot_be_trimmed(tmp_path):
    said = medseg("run", "segment", "-p", "largest", "kidney", "--out", tmp_path / "run")
    assert said.returncode == 1 and "largest must name classes of ('liver',)" in said.stderr


# One contract


@pytest.mark.parametrize(
    "metric",
    [
        dice_score,
        lambda a, b: hd95_mm(a, b, (2, 2, 5)),
        lambda a, b: assd_mm(a, b, (2, 2, 5)),
        lambda a, b: surface_distances(a, b, (2, 2, 5)),
        false_components,
    ],
)
@pytest.mark.parametrize("soft", [np.float32, np.float16, np.float64])
def test_a_probability_map_is_no_mask(metric, soft):
    for pair in (((HEALTHY * 0.7).astype(soft), HEALTHY), (HEALTHY, (HEALTHY * 0.7).astype(soft))):
        with pytest.raises(ValueError, match="must hold integer or bool labels"):
            metric(*pair)


def test_other_classes_are_not_foreground():
    shifted = np.where(LESION == 2, 2, np.roll(LESION, 1, 0) == 1)
    assert (
        hd95_mm(shifted, LESION, (2, 2, 5), value=2)
        == 0
        == assd_mm(shifted, LESION, (2, 2, 5), value=2)
    )
    assert hd95_mm(LESION, LESION == 1, (2, 2, 5)) == 0
    assert math.isnan(hd95_mm(LESION, LESION, (2, 2, 5), value=3))


def test_a_surface_is_of_one_class():
    with pytest.raises(ValueError, match="must hold one class"):
        surface_of(Volume(LESION, GRID))
    assert surface_of(Volume((LESION == 2) * np.uint8(255), GRID)).volume_ml > 0
