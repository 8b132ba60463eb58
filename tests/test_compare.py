"Comparisons, lists and budgets: what may be said, what must not, and no text that becomes markup."

import json
import re

import pytest
import yaml
from conftest import TOP
from hostile import HOSTILE, hostile_run
from test_site import Look

from medseg.runs.budget import measured_budget
from medseg.runs.compare import compare_runs, varied_factors, run_trainings
from medseg.runs.compare_page import comparison_page, read_comparisons, write_comparison
from medseg.runs.listing import log_page
from medseg.runs.page import run_page
from medseg.runs.record import SCORES, find_runs

LOG = TOP / "log"


def pretend(folder, config, table, updates=100, **more):
    "The record of a training with invented scores."
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps(dict(experiment="translate", name=folder.name) | config)
    )
    (folder / "result.json").write_text(
        json.dumps(
            dict(
                name=folder.name,
                experiment="translate",
                state="finished",
                data="phantom",
                cost=dict(updates=updates),
                digests=dict(code="c", data="d"),
                table=table,
            )
            | more
        )
    )
    return folder


@pytest.mark.parametrize("score", list(SCORES))
def test_a_planted_bad_case_ranks_first(score, tmp_path):
    good = [{"subject": f"good {i}", score: 0.5 + 0.01 * i} for i in range(20)]
    bad = {
        "subject": "planted",
        score: 0.1 if SCORES[score] > 0 else 900.0,
        "reasons": ["cut off", "metal"],
    }
    page = run_page(pretend(tmp_path / "run", {}, good[:7] + [bad] + good[7:]))
    assert (
        re.findall(r"<td>(good \d+|planted)</td>", page)[0] == "planted"
        and page.count("run-tag") == 2
    )
    assert f"of which {'more' if SCORES[score] > 0 else 'less'} is better" in page


def test_the_notes_comparison_names_all_that_changed(tmp_path):
    """The run that the notes blame on its loss changed the batch, the weight of the cycle and the
    loss, and so the updates.
    """
    files = [
        TOP / "medseg" / "experiments" / "parameters" / f"{n}.yaml"
        for n in ("mr2ct_unet_batchsize16", "mr2ct_unet_gradient_consistency_batchsize8")
    ]
    old, new = (yaml.safe_load(f.read_text()) for f in files)

    def scores(mae, s):
        return [
            dict(subject=who, mae_hu=mae + s + 5 * k + 0.5 * (k * s % 3))
            for k, who in enumerate("abcdef")
        ]

    def runs(settings, mae):
        return [
            pretend(
                tmp_path / f"{settings['name']} {s}",
                dict(settings, seed=s),
                scores(mae, s),
                9400 * 16 // settings["batch"],
            )
            for s in range(3)
        ]

    told = compare_runs([*runs(old, 60.0), *runs(new, 90.0)])
    assert {"parameter: batch", "parameter: cycle", "parameter: gradient"} <= set(
        told["factors"]
    ) and not told["ranked"]
    assert any("Updates are not equal" in s for s in told["says"]) and not any(
        p["says"] for p in told["parts"]
    )
    equal = compare_runs(
        [
            pretend(
                tmp_path / f"{i} {s}", dict(settings, seed=s, name="x"), scores(60.0 + 30 * i, s)
            )
            for i, settings in enumerate((old, new))
            for s in range(3)
        ]
    )
    (said,) = equal["parts"][0]["says"]
    assert equal["ranked"] and "no single cause" in said and "parameter: batch" in said


def test_one_cause_is_named_only_if_it_is_one(tmp_path):
    def scores(dice, s):
        return [dict(subject=who, dice=dice + 0.001 * s + 0.02 * k) for k, who in enumerate("abcd")]

    def runs(tag, dice, **config):
        return [
            pretend(tmp_path / f"{tag}{s}", dict(config, seed=s), scores(dice, s)) for s in range(3)
        ]

    first = runs("a", 0.5, depth=1)
    (said,) = compare_runs([*first, *runs("b", 0.7, depth=5)])["parts"][0]["says"]
    assert said.endswith("they differ in parameter: depth alone.")
    again = [
        pretend(
            tmp_path / f"c{s}",
            dict(depth=5, seed=s),
            scores(0.9, s),
            digests=dict(code="new", data="d"),
        )
        for s in range(3)
    ]
    (said,) = compare_runs([*first, *again])["parts"][0]["says"]
    assert "2 things" in said and "digest: code" in said


@pytest.mark.parametrize("bad", HOSTILE, ids=lambda b: ascii(b)[1:20])
def test_hostile_text_stays_text_side_by_side(bad, tmp_path):
    def pages(word, n):
        evil = hostile_run(tmp_path / f"{n}", word)
        result = json.loads((evil / "result.json").read_text())
        result.update(state="finished")
        result["table"] = [
            {"subject": word, "class": word, "dice": 0.5, word: 0.5, "reasons": [word]}
        ]
        (evil / "result.json").write_text(json.dumps(result))
        config = json.loads((evil / "config.json").read_text())
        (evil / "config.json").write_text(
            json.dumps(config | {"seed": word, "factors": [word, "class"]})
        )
        runs = [*sorted(LOG.glob("phantom-unet-*")), evil]
        return (
            comparison_page(compare_runs(runs, "dice", ["class", word]), runs, word),
            log_page(runs, more=[(word, "x.html", word)]),
            write_comparison(
                tmp_path / f"{n}.html", runs, compare_runs(runs, "dice"), word, word
            ).read_text(),
        )

    for seen, clean in zip(map(Look, pages(bad, "bad")), map(Look, pages("a plain word", "plain"))):
        assert seen.shape() <= clean.shape(), seen.shape() - clean.shape()
        assert not [
            a for t, a in seen.found for name in a if name.startswith("on") or name == "style"
        ]
        assert {a["href"] for t, a in seen.found if t == "a"} == {
            a["href"] for t, a in clean.found if t == "a"
        } or len(seen.found) == len(clean.found)


def test_the_listed_comparisons_can_be_made_and_mailed(tmp_path):
    listed = read_comparisons(LOG / "comparisons.yaml")
    assert listed and len({one["page"] for one in listed}) == len(listed)
    for one in listed:
        told = compare_runs(one["folders"], one["score"], one["by"])
        text = write_comparison(
            tmp_path / "mail.html", one["folders"], told, one["title"], one["question"]
        ).read_text()
        assert (
            len(text) < 4_000_000
            and "<script" not in text
            and not re.findall(r"""(?:src|href)=["']?(?!data:)[^"' >]+""", text)
        )


def test_seeds_of_one_setting_differ_in_nothing():
    runs = sorted(LOG.glob("phantom-unet-*"))
    assert len(runs) == 3 and varied_factors([m for r in runs for m in run_trainings(r)]) == {}


def test_budget_comes_from_the_records():
    rows = {r["name"]: r for r in measured_budget(find_runs(LOG))}
    cost = json.loads((LOG / "seed-0-7b24ac" / "result.json").read_text())["cost"]
    assert (
        rows["seed 0"]["seconds_each"] == cost["wall_s"] / cost["updates"]
        and rows["seed 0"]["where"] == "CPU"
        and rows["seed 0"]["fits"] == 8
    )
