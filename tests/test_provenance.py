"""Provenance across chapters.

No path from train to test in any graph, the spine note's leak found from records and from
voxels, items rebuilt bit for bit.
"""

import dataclasses
import subprocess
import sys
from functools import lru_cache

import numpy as np
import pytest
from medseg.data.provenance import (
    Record,
    array_digest,
    audit_split,
    check_records,
    effective_size,
    read_records,
    rebuild,
    rebuild_from,
    split_by_source,
    write_records,
)
from medseg.data.recipe import NOTE, CopyRecipe, planned_copies, reconcile, sources_of
from medseg.data.related import related
from medseg.io.files import InputError
from medseg.phantoms.scanner import abdomen
from medseg.io.volume import Volume


def random_graph(seed):
    """Some subjects, some with several sources, children of children, and mixtures of subjects.

    Shuffled.
    """
    rng = np.random.default_rng(seed)
    records = [
        Record(f"s{i}_{k}", f"p{i}")
        for i in range(rng.integers(3, 12))
        for k in range(rng.integers(1, 4))
    ]
    for n in range(rng.integers(0, 60)):
        parents = [
            records[i]
            for i in rng.choice(
                len(records), rng.integers(1, 3) if rng.random() < 0.15 else 1, replace=False
            )
        ]
        records.append(
            Record(f"c{n}", parents[0].subject, tuple(p.item for p in parents), "noise", {}, n)
        )
    return [records[i] for i in rng.permutation(len(records))], rng


def reaches(records, same):
    """For each item all items that any walk over parents, children, subjects or `same` reaches.

    Written anew, without the library.
    """
    near, first = {r.item: set() for r in records}, {}
    for r in records:
        for other in {*r.parents, first.setdefault(r.subject, r.item)}:
            near[r.item].add(other)
            near[other].add(r.item)
    for a, b in same:
        near[a].add(b)
        near[b].add(a)
    found = {}
    for start in near:
        if start in found:
            continue
        seen, todo = {start}, [start]
        while todo:
            for other in near[todo.pop()] - seen:
                seen.add(other)
                todo.append(other)
        for item in seen:
            found[item] = seen
    return found


def test_no_path_from_train_to_test_in_300_graphs():
    split = 0
    for seed in range(300):
        records, rng = random_graph(seed)
        names = [r.item for r in records]
        same = tuple(
            tuple(rng.choice(names, 2, replace=False).tolist()) for _ in range(rng.integers(0, 2))
        )
        try:
            train, test = split_by_source(
                records, seed=seed, share=float(rng.uniform(0.1, 0.6)), same=same
            )
        except ValueError as error:
            assert "families on both sides" in str(error)  # all subjects are one family
            continue
        split += 1
        left, right, walk = {r.item for r in train}, {r.item for r in test}, reaches(records, same)
        assert left | right == set(names) and not left & right and left and right
        assert not any(walk[item] & right for item in left), seed
        assert audit_split(records, left, right, same) == []
    assert split > 250


def test_the_audit_finds_every_leak():
    "A split by file: the audit says leak exactly where a walk goes from one side to the other."
    for seed in range(100):
        records, rng = random_graph(seed)
        sides = rng.random(len(records)) < 0.3
        left, right = (
            {r.item for r, s in zip(records, sides) if s == side} for side in (False, True)
        )
        walk = reaches(records, ())
        leaky = {item for item in right if walk[item] & left}
        assert {item for row in audit_split(records, left, right) for item in row["test"]} == leaky


def test_contradictions_are_refused():
    for seed in range(60):
        records, rng = random_graph(seed)
        child = next((r for r in records if r.parents), None)
        if child is None:
            continue
        below = [r for r in records if child.item in r.parents]
        broken = [
            records + [Record("x", child.subject, ("nobody",), "noise")],
            (
                [
                    dataclasses.replace(r, parents=(below[0].item,)) if r is child else r
                    for r in records
                ]
                if below
                else records + records[:1]
            ),
            [dataclasses.replace(r, parents=(r.item,)) if r is child else r for r in records],
        ]
        for bad in broken:
            with pytest.raises(InputError):
                check_records(bad)
            with pytest.raises(InputError):
                split_by_source(bad)


def test_the_counts_of_the_note():
    mr, ct = (reconcile(**NOTE[k]) for k in ("MR", "CT"))
    assert (
        mr["originals"],
        mr["augmented"],
        mr["with_originals"],
        mr["under_total"],
        mr["over_augmented"],
        mr["closes"],
    ) == (37, 740, 777, 25, 12, False)
    assert (ct["with_originals"], ct["closes"]) == (84, True)
    cts = planned_copies(sources_of(NOTE["CT"]["originals"]))
    assert effective_size(cts)["text"] == "84 volumes, 4 subjects"
    size = effective_size(cts, (("CT Tronc 2", "CT Tronc 3"),))
    assert size["text"] == "84 volumes, 3 subjects" and size["distinct"] == 63


@lru_cache
def phantom(subject):
    return abdomen(subject, seed=21, spacing=(7.0, 7.0, 7.0), thickness=1.0).ct


def load(item):
    return phantom(int(item[2:])).voxels


def small():
    return planned_copies(
        [Record(f"mr{i}", f"p{i}", settings=dict(spacing=[7.0, 7.0, 7.0])) for i in range(4)],
        CopyRecipe(turns=3, noises=2),
        seed=5,
    )


def test_bit_for_bit_also_from_a_file_and_in_another_process(tmp_path):
    records = small()
    made = {r.item: rebuild_from(records, r.item, load) for r in records if r.subject == "p1"}
    proven = [
        dataclasses.replace(r, array=array_digest(made[r.item])) if r.item in made else r
        for r in records
    ]
    again = {r.item: r for r in read_records(write_records(tmp_path / "r.jsonl", proven))}
    assert sorted(again.values(), key=lambda r: r.item) == sorted(proven, key=lambda r: r.item)
    for name in made:
        assert np.array_equal(rebuild(again[name], load), made[name])
    code = (
        "import sys, numpy as np; from medseg.data import recipe; from medseg.data.provenance"
        " import read_records, rebuild, array_digest; v = np.load(sys.argv[2]); r = {x.item: x for"
        " x in read_records(sys.argv[1])}; print(array_digest(rebuild(r['mr1_turn01'], lambda i:"
        " v)), array_digest(rebuild(r['mr1_noise01'], lambda i: v)))"
    )
    np.save(tmp_path / "v.npy", load("mr1"))
    out = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "r.jsonl", tmp_path / "v.npy"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out.split() == [array_digest(made["mr1_turn01"]), array_digest(made["mr1_noise01"])]
    with pytest.raises(InputError, match="check that the source is unchanged"):
        rebuild(again["mr1_turn00"], lambda item: load("mr2"))


def test_the_leak_of_a_split_by_file_is_found_with_and_without_records():
    records = small()
    items = {
        r.item: Volume(rebuild_from(records, r.item, load), phantom(int(r.subject[1:])).affine)
        for r in records
    }
    order = np.random.default_rng(3).permutation(sorted(items))
    test, train = set(order[:6]), set(order[6:])
    by_record = audit_split(records, train, test)
    # every test item has relatives in training
    assert {i for row in by_record for i in row["test"]} == test
    found = related(items)
    assert sorted(map(sorted, found["groups"])) == sorted(
        sorted(r.item for r in records if r.subject == s) for s in {r.subject for r in records}
    )
    home = {r.item: r.subject for r in records}
    assert all(home[link["a"]] == home[link["b"]] for link in found["links"])
    named = {i for g in found["groups"] if set(g) & test for i in set(g) & train}
    assert named == {i for row in by_record for i in row["train"]}
    left, right = split_by_source(records)
    assert not any(
        {home[i] for i in g} & {r.subject for r in right}
        and {home[i] for i in g} & {r.subject for r in left}
        for g in found["groups"]
    )
