"""Trainings that differ in one thing.

Equal updates, equal draws, effects that are found, nulls that are not, and nothing made twice.
"""

import json
from itertools import combinations

import numpy as np
import pytest
from command import experiment, medseg
from conftest import TOP

from medseg.data.unpaired import PatchSampling
from medseg.runs.execute import checked_parameters, read_parameters
from medseg.train.statistics import factor_questions, answer_questions
from medseg.translate.settings import Settings
from medseg.runs.paired_comparison import (
    TrainingPlan,
    changed_settings,
    compare_settings,
    factor_grid,
    rows_at_equal_count,
)

FACTORS = ["gradient", "cycle", "batch"]
CELLS = factor_grid("gradient=0,1;cycle=3,10;batch=1,4")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    top = tmp_path_factory.mktemp("grid")
    return top / "run", experiment("grid", top, steps=2, spacing_mm=5)


def test_every_cell_has_equal_updates_and_the_same_draws(finished):
    folder, told = finished
    trainings = {}
    for row in told["table"]:
        trainings.setdefault((row["gradient"], row["batch"]), []).append(row)
    assert set(trainings) == {(g, b) for g in (0, 1) for b in (1, 2)}
    for (_, batch), rows in trainings.items():
        assert max(r["step"] for r in rows) == 2 and all(
            r["volumes"] == 2 * batch * r["step"] for r in rows
        )
        assert len({r["subject"] for r in rows}) == 3 and all(
            np.isfinite(r[k])
            for r in rows
            for k in ("mae_hu", "bone_dice", "pairing", "effective", "diversity_ratio")
        )
    assert (
        len({r["draws"] for r in told["table"] if r["step"] == 2}) == 1
    ), "the first patch of every batch is shared"
    assert {
        r["volumes"] for r in rows_at_equal_count(told["table"], "volumes", ["gradient", "batch"])
    } == {4}
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["kind"] == "train"] == list(
        range(8)
    ), "two updates for each of four trainings"
    assert (
        len([r for r in rows if r["kind"] == "pair"]) == 6
        and len([r for r in rows if r["kind"] == "effect" and r["word"] == "unresolved"])
        == 2 * 2 * 5
    )
    assert any("2 things differ" in n and "no single cause" in n for n in told["notes"])
    assert {p.name for p in (folder / "figures").glob("*.png")} == {
        "effects.png",
        "cells_seed_0.png",
        "pairs.png",
    }


def test_a_training_that_is_done_is_not_made_again(finished):
    folder, told = finished
    lost = sorted((folder / "trainings").glob("*.json"))[-1]
    others = {
        p: p.stat().st_mtime_ns for p in (folder / "trainings").iterdir() if p.stem != lost.stem
    }
    before = lost.read_text()
    lost.unlink()
    (folder / "result.json").unlink()
    done = medseg("run", "grid", "--resume", folder, "--json", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    assert {p: p.stat().st_mtime_ns for p in others} == others and len(others) == 6
    assert lost.read_text() == before and json.loads(done.stdout)["table"] == told["table"]
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["kind"] == "train"] == list(range(8)) and len(
        [r for r in rows if r["kind"] == "subject"]
    ) == len(told["table"])


def test_a_grid_that_compares_nothing_is_refused(tmp_path):
    done = medseg("run", "grid", "-p", "vary", "steps=2,4", "--out", "odd", cwd=tmp_path)
    assert done.returncode == 1 and "steps must be the same for all" in done.stderr


def test_twins_differ_in_one_factor():
    base = TrainingPlan(Settings("resnet1", 2, steps=4), PatchSampling((8, 8, 8)))
    for a, b in combinations(CELLS, 2):
        differ = [f for f in FACTORS if a[f] != b[f]]
        assert set(changed_settings(base.but(**a), base.but(**b))) == set(differ)
        says = compare_settings(
            base.but(**a), base.but(**b), [dict(seed=0, s=1.0)], [dict(seed=0, s=9.0)], "s"
        )
        assert set(says["differ"]) == set(differ) and ("no single cause" in says["says"]) == (
            len(differ) > 1
        ) == (not says["questions"])
        assert all(
            a["word"] == "unresolved" for a in answer_questions(says["questions"])
        ), "one seed says nothing"


# a full grid in which `by` HU come from gradient consistency alone; a seed shifts all its cells and
# takes to each factor by chance; people differ
def planted(rng, by, seeds=5, noise=5.0):
    own, taste, people = (
        rng.normal(0, 20, seeds),
        rng.normal(0, noise / 2, (seeds, len(FACTORS))),
        rng.normal(0, 15, 6),
    )
    lucks = rng.normal(0, noise, (seeds, len(CELLS)))
    on = [[float(c["gradient"]), c["cycle"] > 5, c["batch"] > 1] for c in CELLS]
    return [
        dict(
            c,
            seed=s,
            subject=j,
            mae_hu=float(
                100
                + own[s]
                + by * c["gradient"]
                + taste[s] @ on[k]
                + lucks[s, k]
                + people[j]
                + rng.normal(0, 3)
            ),
        )
        for s in range(seeds)
        for k, c in enumerate(CELLS)
        for j in range(6)
    ]


def answers(table):
    return answer_questions(
        [q for f in FACTORS for q in factor_questions(table, f, FACTORS, "mae_hu")]
    )


def test_a_planted_effect_is_found_and_a_planted_null_is_not():
    rng = np.random.default_rng(0)
    found = [answers(planted(rng, 30.0)) for _ in range(40)]
    assert (
        all(f[0]["word"] == "resolved" and len(f[0]["twins"]) == 20 for f in found)
        and abs(np.mean([f[0]["difference"] for f in found]) - 30) < 2
    )
    assert np.mean([any(a["word"] == "resolved" for a in f[1:]) for f in found]) <= 0.05
    alone = [answers(planted(rng, 0.0, seeds=3)) for _ in range(60)]
    assert np.mean([any(a["word"] == "resolved" for a in f) for f in alone]) <= 0.05


def test_the_note_run_of_the_grid_can_be_asked_for():
    values = checked_parameters(
        TOP / "nbs" / "experiments" / "grid.ipynb",
        read_parameters(TOP / "medseg" / "experiments" / "parameters" / "grid" / "note.yaml"),
    )
    assert len(factor_grid(values["vary"])) == 8 and len(values["seeds"].split(",")) >= 3


def test_symptoms_are_told_from_health(tmp_path):
    done = medseg("run", "symptoms", "--out", "run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    verdicts = {(v["row"], v["claim"].split(",")[0]): v for v in told["table"]}
    assert {v["row"] for v in told["table"]} == {"B34", "B36", "B40", "B43", "cause"} and all(
        {"symptom", "number", "status", "why"} <= set(v) for v in told["table"]
    )
    assert {v["status"] for v in told["table"]} <= {"confirmed", "refuted", "unresolved"}
    assert (
        verdicts["cause", "a test folder of 4 noisy files of one person"]["status"] == "confirmed"
    ), "the note's folder alone gives one volume"
    assert (
        verdicts["cause", "one CT for all"]["symptom"] == "yes"
        and verdicts["cause", "MR passed on"]["symptom"] == "no"
    ), "the numbers can tell"
    assert (
        verdicts["B40", "worse than batch 16 because of gradient consistency"]["status"]
        == "refuted"
    ), "a loss without gradient leaves every weight as it is"
    assert any("does not train" in n for n in told["notes"]) and any(
        "no single cause" in n for n in told["notes"]
    )
