"""Comparisons of runs as people make them.

Luck is not declared, failures are counted, organs stay apart, numbers are whole.
"""

import json
import re
from itertools import product

import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.runs.compare import compare_runs
from medseg.runs.compare_page import band_svg, comparison_page
import medseg.cli.entry  # noqa: F401  puts all commands on the list
from medseg.cli.common import app
from medseg.runs.curves import curve_svg
from medseg.runs.record import one_line_value
from medseg.cli.common import shown
from medseg.train.statistics import (
    group_runs,
    all_pair_questions,
    group_intervals,
    failure_reason,
    factor_questions,
    holm,
    confidence_interval,
    answer_questions,
    score_range,
)
from medseg.io.files import format_number


def training(folder, table, seed, rows=(), state="finished", **settings):
    "The record of one training."
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps(dict(experiment="segment", name=folder.name, seed=seed, **settings))
    )
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = dict(
        experiment="segment",
        name=folder.name,
        state=state,
        data="phantom",
        table=table,
        cost=dict(updates=100),
        digests=dict(code="c", data="d"),
    )
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def masks(scores, organ="liver", label_ml=90.0):
    "Rows of one training: a Dice for each person; 0 is an empty mask."
    return [
        {
            "subject": f"p{i}",
            "class": organ,
            "dice": d,
            "pred_ml": 80.0 * bool(d),
            "label_ml": label_ml,
        }
        for i, d in enumerate(scores)
    ]


def told(folders):
    "What the command says as JSON."
    done = CliRunner().invoke(app, ["compare", *map(str, folders), "--score", "dice", "--json"])
    assert done.exit_code == 0, done.exception
    assert "NaN" not in done.stdout
    return json.loads(done.stdout)


def luck(rng, seeds, people, how, training=0.03, rest=0.02):
    "Scores (seeds, people) without the people's own share."
    own = dict(
        normal=rng.normal(0, 1, (seeds, 1)),
        two=2.0 * (rng.random((seeds, 1)) < 0.5) - 1,
        skewed=-rng.lognormal(0, 1, (seeds, 1)),
    )[how]
    return training * own + rng.normal(0, rest, (1, people)) + rng.normal(0, rest, (seeds, people))


@pytest.mark.parametrize(
    "seeds, people, how, rest",
    [
        (3, 6, "normal", 0.02),
        (3, 10, "two", 0.001),
        (5, 4, "skewed", 0.01),
        (4, 20, "normal", 0.001),
        (8, 3, "two", 0.01),
    ],
)
def test_settings_that_do_the_same_are_not_told_apart(seeds, people, how, rest):
    rng, wrong = np.random.default_rng(seeds * people), 0
    for _ in range(100):
        who = rng.normal(0.7, 0.08, (1, people))
        rows = [
            dict(setting=k, seed=s, subject=j, dice=float(v))
            for k in range(3)
            for s, line in enumerate(who + luck(rng, seeds, people, how, rest=rest))
            for j, v in enumerate(line)
        ]
        wrong += any(
            a["word"] == "resolved"
            for a in answer_questions(all_pair_questions(rows, "setting", "dice"))
        )
    assert wrong <= 5


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_factor_without_effect_is_not_declared_though_each_seed_takes_to_it(seeds):
    rng, wrong, cells = np.random.default_rng(seeds), 0, list(product((0, 1), repeat=2))
    for _ in range(100):
        own, taste = rng.normal(0, 0.1, seeds), rng.normal(0, 0.03, (seeds, 2))
        rows = [
            dict(
                a=a,
                b=b,
                seed=s,
                subject=j,
                error=own[s] + taste[s] @ (a, b) + one + rng.normal(0, 0.01),
            )
            for s in range(seeds)
            for a, b in cells
            for one in [rng.normal(0, 0.02)]
            for j in range(5)
        ]
        wrong += any(
            q["word"] == "resolved"
            for q in answer_questions(
                [q for f in "ab" for q in factor_questions(rows, f, ["a", "b"], "error")]
            )
        )
    assert wrong <= 5


def test_a_true_difference_is_found_with_seeds_enough():
    rng, found = np.random.default_rng(0), 0
    for _ in range(30):
        who = rng.normal(0.6, 0.08, (1, 10))
        rows = [
            dict(setting=k, seed=s, subject=j, dice=float(v))
            for k in range(2)
            for s, line in enumerate(who + 0.15 * k + luck(rng, 8, 10, "normal"))
            for j, v in enumerate(line)
        ]
        found += (
            answer_questions(all_pair_questions(rows, "setting", "dice"))[0]["word"] == "resolved"
        )
    assert found >= 28


def test_a_score_of_whole_trainings_needs_five_seeds():
    def word(n):
        return answer_questions(
            all_pair_questions(
                [
                    dict(setting=k, seed=s, pairing=0.2 + 0.6 * k + 0.001 * s * (s + k))
                    for k in range(2)
                    for s in range(n)
                ],
                "setting",
                "pairing",
            )
        )[0]

    assert [word(n)["word"] for n in (2, 3, 4, 5)] == ["unresolved"] * 3 + ["resolved"]
    assert "needs about 5 seeds" in word(3)["says"] and word(3)["people"] is None


def test_many_questions_are_many_chances(tmp_path):
    assert holm([0.004, 0.5]) == [0.008, 0.5] and holm([0.004] * 3) == [0.012] * 3
    rng = np.random.default_rng(1)
    runs = [
        training(
            tmp_path / f"{d} {s}",
            masks(0.6 + 0.01 * np.arange(6) + 0.05 * (d == 2) + rng.normal(0, 0.004, 6)),
            s,
            depth=d,
        )
        for d in (1, 2)
        for s in range(5)
    ]
    (one,) = told(runs)["parts"][0]["answers"]
    assert one["word"] == "resolved" and one["p"] == one["p_corrected"] and one["questions"] == 1
    runs += [
        training(
            tmp_path / f"{d} {s}",
            masks(0.6 + 0.01 * np.arange(6) + rng.normal(0, 0.02, 6)),
            s,
            depth=d,
        )
        for d in (3, 4, 5)
        for s in range(5)
    ]
    many = told(runs)["parts"][0]["answers"]
    assert (
        len(many) == 10
        and all(a["questions"] == 10 and a["p_corrected"] >= a["p"] for a in many)
        and {"seeds", "people", "failed", "word", "says"} <= set(many[0])
    )


@pytest.mark.parametrize(
    "score, values",
    [
        ("dice", (0.29, 0.85, 0.01)),
        ("lamina recall", (0.1, 0.9, 0.5)),
        ("pairing", (1.0, 0.9, 0.2)),
        ("mae_hu", (1.0, 90.0, 3.0)),
        ("ms_ssim", (0.99, 0.2, 0.9)),
    ],
)
def test_bands_stay_within_what_a_score_can_be(score, values):
    low, mean, high = confidence_interval(np.array(values)[:, None], True, score_range(score))
    assert score_range(score)[0] <= low < mean < high <= score_range(score)[1] and np.isclose(
        mean, np.mean(values)
    )


def test_failed_trainings_are_counted_and_not_averaged(tmp_path):
    people = 0.01 * np.arange(6)
    good = [
        training(tmp_path / f"good {s}", masks(0.8 + people + 0.004 * s), s, depth=3)
        for s in range(3)
    ]
    odd = [
        training(tmp_path / f"odd {s}", masks((0.8 + people + 0.005 * s) * (s != 1)), s, depth=5)
        for s in range(3)
    ]
    odd.append(
        training(tmp_path / "nan", [dict(r, dice=None) for r in masks(people + 0.5)], 3, depth=5)
    )
    odd.append(
        training(
            tmp_path / "start",
            masks(people + 0.3),
            4,
            [dict(kind="train", step=i, loss=1.3) for i in range(40)],
            depth=5,
        )
    )
    odd.append(training(tmp_path / "stopped", [], 5, state="failed", depth=5))
    (part,) = told([*good, *odd])["parts"]
    lost = part["counts"]["B: depth 5"]["failed"]
    assert lost == {
        "1": "every mask is empty",
        "3": "no dice is finite",
        "4": "its loss never fell",
        "5": "it stopped with an error",
    }
    assert (
        np.isclose(part["bands"]["B: depth 5"][1], 0.8 + people.mean() + 0.005)
        and len(part["points"]["B: depth 5"]) == 2
    )
    assert [a["score"] for a in part["answers"]] == ["dice", "failed trainings"] and part[
        "answers"
    ][1]["failed"] == [0, 4]
    none = [training(tmp_path / f"none {s}", masks(people * 0), s, depth=9) for s in range(3)]
    assert told([*good, *none])["parts"][0]["answers"][0]["word"] == "failed"
    assert (
        failure_reason(masks([0.0, 0.0], label_ml=0.0), "dice") == ""
    ), "a class that no scan holds is nobody's failure"


def test_what_no_scan_holds_is_undefined_and_the_rest_is_counted(tmp_path):
    def table(s):
        return masks([0.5 + 0.01 * s, 0.6 + 0.02 * s]) + [
            {"subject": "p2", "class": "liver", "dice": None, "pred_ml": 0.0, "label_ml": 0.0}
        ]

    runs = [
        training(tmp_path / f"{d} {s}", table(s + d), s, depth=d) for d in (1, 2) for s in range(3)
    ]
    (part,) = told(runs)["parts"]
    assert part["counts"]["A: depth 1"]["scans"] == 2 and np.isclose(
        part["points"]["A: depth 1"][0], np.mean([0.51, 0.62])
    )


def test_organs_are_never_averaged_with_each_other(tmp_path):
    people = 0.01 * np.arange(4)
    two = [
        training(
            tmp_path / f"two {s}",
            masks(0.9 + people + 0.002 * s) + masks(0.3 + people + 0.003 * s, "lesion"),
            s,
            depth=1,
        )
        for s in range(3)
    ]
    one = [
        training(tmp_path / f"one {s}", masks(0.7 + people + 0.002 * s * s), s, depth=2)
        for s in range(3)
    ]
    found = {p["name"]: p for p in told([*two, *one])["parts"]}
    assert (
        set(found) == {"liver", "lesion"}
        and np.isclose(found["liver"]["bands"]["A: depth 1"][1], 0.917)
        and found["lesion"]["answers"] == []
    )
    assert any("B: depth 2: not scored on lesion" in s for s in found["lesion"]["says"])
    bones = [
        training(
            tmp_path / f"bones {s}",
            [
                dict(subject=f"p{i}", part=p, recall=r + 0.01 * i)
                for p, r in (("lamina", 0.4), ("body", 0.7))
                for i in range(3)
            ],
            s,
        )
        for s in range(3)
    ]
    assert [p["name"] for p in compare_runs(bones, "recall")["parts"]] == ["lamina", "body"]


def test_copies_are_not_seeds(tmp_path):
    same = [
        training(tmp_path / f"same {s}", masks([0.7, 0.8, 0.75, 0.6]), s, depth=1) for s in range(5)
    ]
    other = [
        training(tmp_path / f"other {s}", masks([0.5, 0.6, 0.55, 0.4 + 0.001 * s]), s, depth=2)
        for s in range(5)
    ]
    (answer,) = told([*same, *other])["parts"][0]["answers"]
    assert (
        answer["word"] == "unresolved" and answer["copies"] == [4, 0] and "repeat" in answer["says"]
    )


def test_single_runs_say_nothing_and_no_nan(tmp_path):
    runs = [
        training(tmp_path / str(d), masks([0.5 + 0.2 * d, 0.6, 0.7]), 0, depth=d) for d in (1, 2)
    ]
    (answer,) = told(runs)["parts"][0]["answers"]
    assert answer["word"] == "unresolved" and answer["p"] is None and answer["seeds"] == [1, 1]
    text = CliRunner().invoke(app, ["compare", *map(str, runs)]).stdout
    assert (
        "nan" not in text
        and "–" in text
        and "nan" not in re.sub("<[^>]+>", " ", comparison_page(compare_runs(runs), runs))
    )


def test_two_scans_of_a_person_are_one_person():
    rows = [
        dict(setting="a", seed=s, subject=who, scan=k, dice=d + 0.01 * s)
        for s in range(3)
        for who, k, d in (("one", 0, 0.2), ("one", 1, 0.4), ("two", 0, 0.9))
    ]
    arm = group_runs(rows, "setting", "dice")["a"]
    assert (
        arm.scores.shape == (3, 2)
        and np.isclose(arm.scores[0].tolist(), [0.3, 0.9]).all()
        and np.isclose(group_intervals(rows, "setting", "dice")["a"][1], 0.61)
    )


def test_every_dot_lies_in_its_own_row():
    points = {
        f"{c}: depth {i}": [0.1 * i, 0.1 * i + 0.02, 0.1 * i + 0.05] for i, c in enumerate("ABCD")
    }
    svg = band_svg(
        dict(
            points=points, bands={n: (min(v), float(np.mean(v)), max(v)) for n, v in points.items()}
        ),
        "dice",
    )
    for i, lines in enumerate(points.values()):
        heights = re.findall(rf'class="k{i}" cx="[^"]+" cy="([^"]+)"', svg)
        assert heights == [str(30 * i + 23)] * (len(lines) + 1)


@pytest.mark.parametrize(
    "value, text",
    [
        (0.003, "0.003"),
        (1e-6, "0.000001"),
        (12345, "12345"),
        (12345.6, "12,346"),
        (float("nan"), "–"),
        (None, "–"),
        (-0.0042, "-0.0042"),
        (-1e-7, "-1e-07"),
        (float("inf"), "∞"),
        (0.0, "0"),
    ],
)
def test_numbers_are_written_whole_everywhere(value, text):
    assert format_number(value) == one_line_value(value) == text and (
        isinstance(value, int) or shown(value) == text
    )


@pytest.mark.parametrize(
    "low, high", [(0.003, 0.0041), (1e-6, 3e-6), (-12345.6, 0.5), (-1.25e-8, -1e-9), (0.0, 1.0)]
)
def test_curves_leave_room_for_their_numbers(low, high):
    svg = curve_svg({"": [(0, low), (1, high)]}, "a loss")
    ends = re.findall(r'<text x="([\d.]+)" y="\d+" class="y">([^<]+)</text>', svg)[:2]
    assert [t for _, t in ends] == [format_number(high, 3), format_number(low, 3)]
    assert all(
        float(x) >= 12.3 * len(t) for x, t in ends
    ), "digits are 12.3 units wide where a grid of curves shows them largest"
