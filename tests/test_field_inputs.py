"""What goes into a segmentation training: whose scans, on which side, which classes and channels.

Small boxes in noise stand for people.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from medseg.cli.data import app
from medseg.data import cache
from medseg.data.cache import kept_case, load_cases
from medseg.data.cases import SlabSampling, hide_ignored, load_case, read_channels
from medseg.data.cases import read_labels, sample_slab, slab_batch
from medseg.data.manifest import IGNORED, Item, parse_label_values, read_manifest
from medseg.data.manifest import subjects, write_manifest
from medseg.data.provenance import Record, families_of
from medseg.data.ready import check_training_items, choose_classes
from medseg.data.scans import load_sides
from medseg.data.split import fold_items, hold_validation, split_items
from medseg.data.unpaired import PatchSampling, sample_patch
from medseg.io.files import InputError, digest
from medseg.io.volume import Volume, reorient
from medseg.io.write import write_labels, write_volume
from medseg.runs.execute import experiment_parameters, find_experiment, typed_value
from medseg.segment.predict import SegmentRecipe, load_model, predict, save_model, with_modality

GRID = np.diag([4.0, 5.0, 8.0, 1.0])


def scan(seed=0, kind="CT", shape=(16, 14, 6)):
    dice, low, flesh = np.random.default_rng(seed), *((-1000, 40) if kind == "CT" else (10, 700))
    hu = np.full(shape, low, np.int16)
    hu[2:-2, 2:-2] = dice.normal(flesh, 20, (shape[0] - 4, shape[1] - 4, shape[2]))
    return Volume(hu, GRID)


def box(*values, shape=(16, 14, 6), at=0):
    "Boxes with these values; another `at` makes another person of it."
    labels = np.zeros(shape, np.uint8)
    for k, value in enumerate(values):
        labels[3 + 2 * k : 5 + 2 * k, 4 + at : 9 + at, 1:4] = value
    return Volume(labels, GRID)


def put(path, volume, codes="RAS"):
    (write_labels if volume.voxels.dtype == np.uint8 else write_volume)(
        path, reorient(volume, codes)
    )
    return path


def people(folder, n=3, values=(1, 2), codes="RAS"):
    return [
        Item(
            f"p{k}",
            put(folder / f"c{k}.nii.gz", scan(k), codes),
            put(folder / f"l{k}.nii.gz", box(*values, at=k), codes),
            modality="CT",
        )
        for k in range(n)
    ]


def marked(**sides):
    return [Item(name, f"{name}.nii", split=side) for name, side in sides.items()]


# --- 26: declared splits are obeyed


@pytest.mark.parametrize("seed", range(20))
def test_who_is_marked_train_is_never_tested(seed):
    items = marked(a="train", b="train", c="")
    train, test = split_items(items, seed=seed)
    assert (subjects(train), subjects(test)) == ({"a", "b"}, {"c"})
    left, held, _ = hold_validation(items, train, seed=seed)
    assert subjects(held) < {"a", "b"} and not subjects(left) & subjects(held)


def test_hold_out_adds_to_the_test_people_and_overrules_nobody():
    items = marked(a="train", b="", c="test", d="validation", e="")
    train, test = split_items(items, ("b",))
    assert (subjects(train), subjects(test)) == ({"a", "e"}, {"b", "c"})
    for name, side in (("a", "train"), ("d", "validation")):
        with pytest.raises(InputError, match=f"{name}, who is marked {side}"):
            split_items(items, (name,))
    assert subjects(split_items(items)[0]) == {"a", "b", "e"}, "blank people train, tests are told"


def test_a_mark_holds_for_all_scans_of_a_person_and_for_kin():
    items = [
        Item("a", "a1", split="validation"),
        Item("a", "a2"),
        Item("b", "b", split="test"),
        Item("c", "c", parent="b"),
        Item("d", "d"),
        Item("e", "e"),
    ]
    train, test = split_items(items)
    assert (subjects(train), subjects(test)) == ({"d", "e"}, {"b", "c"})
    assert len(hold_validation(items, train)[1]) == 2


def test_nobody_left_to_test_is_said():
    with pytest.raises(InputError, match="2 people to train on and 0 to test on"):
        split_items(marked(a="train", b="train", v="validation"))


# --- folds and parents


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_hold_everybody_out_once_with_their_kin(folds):
    items = [Item(f"s{k // 2}", f"{k}", parent=f"source {k // 6}") for k in range(36)]
    items += marked(t="test")
    held = [fold_items(items, folds, k, seed=7) for k in range(folds)]
    assert sorted(s for _, v in held for s in subjects(v)) == sorted(subjects(items) - {"t"})
    for train, validation in held:
        assert not {i.parent for i in train} & {i.parent for i in validation}
        assert "t" not in subjects(train + validation)
    assert held == [fold_items(items, folds, k, seed=7) for k in range(folds)]
    assert held != [fold_items(items, folds, k, seed=8) for k in range(folds)]


def test_folds_follow_records_and_refuse_what_is_not_there():
    records = [Record("x", "s0"), Record("y", "s1")]
    records += [Record("mix", "s0", ("x", "y"), "turn"), Record("z", "s2")]
    items = [Item(f"s{k}", f"{k}") for k in range(3)]
    kin = tuple(families_of(records))
    held = [subjects(fold_items(items, 2, k, together=kin)[1]) for k in (0, 1)]
    assert sorted(map(sorted, held)) == [["s0", "s1"], ["s2"]]
    for folds, fold, word in (
        (2, 2, "needs 0 to 1"),
        (2, -1, "needs 0 to 1"),
        (3, 0, "found 3, with 2"),
    ):
        with pytest.raises(InputError, match=word):
            fold_items(items, folds, fold, together=kin)
    with pytest.raises(InputError, match="1 people marked validation"):
        fold_items(items + marked(v="validation"), 2, 0)


@pytest.mark.parametrize("side", ["validation", "test"])
@pytest.mark.parametrize("column, parents", [("parent", "{0}"), ("parents", "other; {0}")])
@pytest.mark.parametrize("name", ["lost.nii.gz", "c0.nii.gz", "./c0.nii.gz", "p0"])
def test_people_of_one_parent_stand_on_one_side(tmp_path, side, column, parents, name):
    people(tmp_path)
    first = name if "lost" in name else ""
    rows = [f"p0,c0.nii.gz,train,{first}", f"p1,c1.nii.gz,{side},{parents.format(name)}"]
    (tmp_path / "m.csv").write_text(f"subject,image,split,{column}\n" + "\n".join(rows) + "\n")
    with pytest.raises(InputError, match="subject p0 .train.*one side") as no:
        read_manifest(tmp_path / "m.csv")
    assert no.value.code == "split_leak" and "\n" not in str(no.value)
    (tmp_path / "m.csv").write_text(
        f"subject,image,{column}\n"
        + "\n".join(r.replace(",train", "").replace(f",{side}", "") for r in rows)
    )
    assert len(read_manifest(tmp_path / "m.csv")) == 2


# --- 20: a subject is not a scan


def test_slabs_are_drawn_by_subject(tmp_path):
    once = load_case(people(tmp_path, 1)[0], ((1, 2),))
    cases = [replace(once, subject="often")] * 13 + [replace(once, subject=s) for s in "ab"]
    how = SlabSampling(1, crop=(8, 8), batch=30)
    who = [w for step in range(60) for w in slab_batch(cases, how, step)[2]]
    assert all(abs(who.count(s) / len(who) - 1 / 3) < 0.04 for s in ("often", "a", "b"))
    alone = [slab_batch([once, replace(once, subject="b")], how, 5)[2] for _ in range(2)]
    assert alone[0] == alone[1]


def test_patches_are_drawn_by_subject_and_follow_ups_translate(tmp_path):
    files = [
        put(tmp_path / f"{k}.nii.gz", scan(k, kind)) for k, kind in enumerate(["CT"] * 4 + ["MR"])
    ]
    items = [
        Item("a" if k < 3 else f"s{k}", f, modality="MR" if k == 4 else "CT")
        for k, f in enumerate(files)
    ]
    mr, ct = load_sides(items)
    assert [s.name for s in ct] == ["a-1", "a-2", "a-3", "s3"] and mr[0].name == "s4"
    rng, how = np.random.default_rng(0), PatchSampling((4, 4, 4))
    who = [sample_patch(ct, how, rng)["scan"] for _ in range(900)]
    assert abs(who.count("s3") / 900 - 1 / 2) < 0.05 and abs(who.count("a-2") / 900 - 1 / 6) < 0.05


@pytest.mark.parametrize("codes", ["RAS", "SRA", "IPR", "LSA"])
def test_each_scan_keeps_its_own_spacing_wherever_z_is_stored(tmp_path, codes):
    case = load_case(people(tmp_path, 1, codes=codes)[0], ((1,),))
    assert case.spacing == pytest.approx((8, 5, 4)) and case.classes.shape == (6, 14, 16)


# --- 30: everything is looked at before the first update


def msd(top, values=((1, 2), (1,), ()), channels=1, told=None, mark=""):
    for k, some in enumerate(values):
        side = "Tr" if some else "Ts"
        for c in range(channels):
            name = f"liver_{k}{mark.format(c)}.nii.gz"
            put(top / f"images{side}" / name, scan(10 * k + c, "MR" if c else "CT"))
        if some:
            put(top / f"labels{side}" / f"liver_{k}.nii.gz", box(*some))
    about = dict(labels={"0": "background", "1": "liver", "2": "cancer"}, modality={"0": "CT"})
    (top / "dataset.json").write_text(json.dumps(about if told is None else told))
    return top


NNUNET = dict(
    channel_names={"0": "CT", "1": "T1w"},
    labels={"background": 0, "liver": 1, "cancer": 2, "ignore": 3},
    file_ending=".nii.gz",
    numTraining=2,
)


def sides_of(folder):
    train, test = split_items(read_manifest(folder))
    return train, [], test


def test_msd_as_it_is_shipped_can_be_predicted_and_not_scored(tmp_path):
    train, _, test = sides_of(msd(tmp_path / "a"))
    scored, said = check_training_items(train, [], test, ((1,), (2,)))
    assert (
        scored == [] and said.startswith("1 of 1 test scans have no labels") and "liver_2" in said
    )
    with pytest.raises(InputError, match="no labels of subject liver_2"):
        check_training_items(train, test, [], ((1,),))


@pytest.mark.parametrize("how", ["cut", "grid", "labels cut", "bytes"])
def test_a_bad_test_pair_is_refused_before_training(tmp_path, how):
    items = people(tmp_path)
    bad = items[2].image if how in ("cut", "bytes") else items[2].label
    if how == "grid":
        put(bad, box(1, shape=(16, 14, 7)))
    else:
        whole = bad.read_bytes()
        bad.write_bytes(whole[: 3 if how == "bytes" else len(whole) // 2])
    with pytest.raises(InputError, match=bad.name):
        check_training_items(items[:1], items[1:2], items[2:], ((1,),))
    if how != "cut":  # what is cut off shows when it is loaded for training
        with pytest.raises(InputError, match=bad.name):
            check_training_items(items[1:], [], items[:1], ((1,),))


def test_kin_and_other_channels_are_refused_before_training(tmp_path):
    items = people(tmp_path)
    with pytest.raises(InputError, match="belongs to subject p0"):
        check_training_items([items[0]], [replace(items[1], parent="p0")], [], ((1,),))
    with pytest.raises(InputError, match="MR of subject p1; needs CT"):
        check_training_items([items[0], replace(items[1], modality="MR")], [], [], ((1,),))
    seen = []
    check_training_items(items[:2], [], items[2:], ((1,),), see=lambda *n: seen.append(n))
    assert seen == [(1, 3), (2, 3), (3, 3)]


# --- 24: classes and their names


def test_classes_are_called_as_the_data_call_them(tmp_path):
    top = msd(tmp_path / "msd")
    assert choose_classes("", "", top) == (((1,), (2,)), ("liver", "cancer"))
    assert choose_classes("2", "", top)[1] == ("cancer",)
    assert choose_classes("", "cancer", top)[0] == ((2,),)
    assert choose_classes("1, 2", " liver, spleen ", top)[1] == ("liver", "spleen")
    nnunet = msd(tmp_path / "nn", channels=2, mark="_000{}", told=NNUNET)
    assert choose_classes("", "", nnunet) == (((1,), (2,)), ("liver", "cancer"))
    with pytest.raises(InputError, match="3; needs values that are declared"):
        choose_classes("3", "", nnunet)


def test_without_names_a_class_is_called_by_its_value(tmp_path):
    table = write_manifest(tmp_path / "m.csv", people(tmp_path, values=(5, 7)))
    assert choose_classes("", "", table) == (((5,), (7,)), ("label 5", "label 7"))
    assert choose_classes("7+5", "", table)[1] == ("label 7+5",)
    assert SegmentRecipe(classes=3).names == ("class 1", "class 2")
    assert choose_classes(5, "", table) == (((5,),), ("label 5",)), "YAML reads 5 as a number"
    assert typed_value("label_values", 5, "1+2") == "5" and parse_label_values(5) == ((5,),)
    with pytest.raises(InputError, match="2 names"):
        choose_classes("5", "a, b", table)


@pytest.mark.parametrize(
    "groups, word", [(((9,),), "found 9 for x"), (((1,), (8, 9)), "found 8.9 for y")]
)
def test_a_value_that_no_scan_holds_is_refused(tmp_path, groups, word):
    items = people(tmp_path)
    with pytest.raises(InputError, match=word):
        check_training_items(items[:2], [], items[2:], groups, ("x", "y"))
    with pytest.warns(UserWarning, match="no scan holds .9."):
        check_training_items(items[:2], [], items[2:], ((1, 9),), ("x",))


def test_names_channels_and_scaling_are_kept(tmp_path):
    recipe = with_modality(SegmentRecipe(3, width=4, levels=2, names=("label 5",)), ["CT+MR"])
    save_model(tmp_path / "m.safetensors", recipe.net(), recipe, {})
    again = load_model(tmp_path / "m.safetensors")[1]
    assert (again.names, again.channels, again.scaling) == (
        ("label 5",),
        2,
        ("window", "percentiles"),
    )


# --- 26b: channels, MR, ignored labels, one file an organ


def test_nnunet_channels_reach_the_network(tmp_path):
    top = msd(tmp_path / "nn", channels=2, mark="_000{}", told=NNUNET)
    items = read_manifest(top)
    assert {len(i.images) for i in items} == {2} and items[0].modality == "CT+MR"
    case = load_case(items[0], ((1,),))
    assert case.slices.shape == (2, 6, 14, 16) and case.windows[0] is None
    how = SlabSampling(3, crop=(14, 16), batch=2)
    x, y, _ = slab_batch([case], how, 0)
    assert x.shape == (2, 6, 14, 16) and 0 <= x.min() and x.max() <= 1 and y.shape == (2, 14, 16)
    recipe = with_modality(SegmentRecipe(3, width=4, levels=2, inplane_mm=0.0), ["CT+MR"])
    net = recipe.net().eval()
    scans = read_channels(items[0])
    with torch.no_grad():  # a slab as it trains is a slab as it predicts
        slabs = [sample_slab([case], how, np.random.default_rng(k))[0] for k in range(40)]
        seen = {s.tobytes() for s in slabs}
        heard = []
        net.register_forward_hook(lambda layer, given, out: heard.append(given[0][0].numpy()))
        predict(net, recipe, scans)
    assert seen <= {h.tobytes() for h in heard} and len(heard) == 6
    for some in (scans[:1], scans + scans[:1]):
        with pytest.raises(InputError, match="images: found . needs|images: found"):
            predict(net, recipe, some)


@pytest.mark.parametrize("how", ["gone", "more", "4-D", "undeclared", "grid"])
def test_channels_are_obeyed_or_refused(tmp_path, how):
    n, mark = {"gone": (1, "_000{}"), "more": (3, "_000{}"), "4-D": (1, "")}.get(how, (2, "_000{}"))
    told = NNUNET | ({"channel_names": {"0": "CT"}} if how == "undeclared" else {})
    if how == "4-D":  # as the Decathlon stores several channels
        told = dict(modality={"0": "T2", "1": "ADC"}, labels={"0": "background", "1": "prostate"})
    top = msd(tmp_path / "a", channels=n, mark=mark, told=told)
    if how == "grid":
        put(top / "imagesTr" / "liver_1_0001.nii.gz", scan(3, "MR", (16, 14, 7)))
        train, _, test = sides_of(top)
        with pytest.raises(InputError, match="liver_1_0001.*grid"):
            check_training_items(train, [], test, ((1,),))
        return
    with pytest.raises(InputError, match="channel"):
        read_manifest(top)


def test_channels_and_organs_of_a_table(tmp_path):
    rows = ["subject,image,image_2,modality,label_liver,label_spleen,split"]
    for k in range(3):
        put(tmp_path / f"a{k}.nii.gz", scan(k, "MR"))
        put(tmp_path / f"b{k}.nii.gz", scan(k + 9, "MR"))
        put(tmp_path / f"liver{k}.nii.gz", box(1, at=k))
        put(tmp_path / f"spleen{k}.nii.gz", box(0, 1, at=k))
        rows.append(f"p{k},a{k}.nii.gz,b{k}.nii.gz,MR,liver{k}.nii.gz,spleen{k}.nii.gz,")
    table = tmp_path / "m.csv"
    table.write_text("\n".join(rows))
    items = read_manifest(table)
    assert choose_classes("", "", table) == (((1,), (2,)), ("liver", "spleen"))
    assert choose_classes("", "spleen", table) == (((2,),), ("spleen",))
    case = load_case(items[0], ((1,), (2,)))
    assert np.array_equal(np.unique(case.classes), [0, 1, 2]) and len(case.windows) == 2
    wide = replace(
        items[0], image=put(tmp_path / "x.nii.gz", Volume(scan(0, "MR").voxels * 9, GRID))
    )
    how = SlabSampling(1, crop=(14, 16))
    a, b = (slab_batch([load_case(i, ((1,),))], how, 0)[0] for i in (items[0], wide))
    assert torch.allclose(a, b, atol=1e-4), "MR numbers have no unit"
    assert read_manifest(write_manifest(tmp_path / "n.csv", items)) == items
    table.write_text("\n".join(rows[:-1] + [rows[-1].replace("spleen2.nii.gz", "")]))
    with pytest.raises(InputError, match="spleen missing of those of p0"):
        read_manifest(table)


def test_a_folder_of_organs(tmp_path):
    rows = ["subject,image,label"]
    for k in range(2):
        put(tmp_path / f"{k}" / "ct.nii.gz", scan(k))
        for n, organ in enumerate(("aorta", "liver")):
            put(tmp_path / f"{k}" / "segmentations" / f"{organ}.nii.gz", box(*[0] * n, 1, at=k))
        rows.append(f"p{k},{k}/ct.nii.gz,{k}/segmentations")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    items = read_manifest(tmp_path / "m.csv")
    assert choose_classes("", "liver", tmp_path / "m.csv") == (((2,),), ("liver",))
    assert load_case(items[1], ((2,),)).classes.sum() == (box(0, 1).voxels > 0).sum()
    (tmp_path / "1" / "segmentations" / "liver.nii.gz").unlink()
    with pytest.raises(InputError, match="liver missing"):
        read_manifest(tmp_path / "m.csv")


def test_an_ignored_label_neither_trains_nor_counts(tmp_path):
    top = msd(tmp_path / "nn", ((1, 2, 3), (1, 3), ()), 2, NNUNET, "_000{}")
    item = read_manifest(top)[0]
    assert item.ignore == 3
    case = load_case(item, ((1,), (2,)))
    assert (
        set(case.found) == {1, 2} and (case.classes == IGNORED).sum() == (box(3).voxels > 0).sum()
    )
    labels = read_labels(item, read_channels(item)[0], ((1,),))
    mask, clean = hide_ignored(Volume(np.ones(labels.shape, np.uint8), labels.affine), labels)
    assert (
        mask.voxels[labels.voxels == IGNORED].max() == 0 == clean.voxels[labels.voxels != 1].max()
    )


def bids(top, visits=(1, 2), kinds=("T1w",), organs=False):
    for k in range(3):
        for v in visits:
            stem = f"sub-{k}_ses-{v}"
            place = f"sub-{k}/ses-{v}/anat"
            for n, kind in enumerate(kinds):
                put(top / place / f"{stem}_{kind}.nii.gz", scan(100 * k + 10 * v + n, "MR"))
            end = f"{kinds[0]}_label-liver_mask" if organs else f"{kinds[0]}_dseg"
            put(top / "derivatives" / "hand" / place / f"{stem}_{end}.nii.gz", box(1, at=k))
    return top


def test_a_folder_a_person(tmp_path):
    top = bids(tmp_path / "a")
    items = read_manifest(top)
    assert len(items) == 6 and subjects(items) == {"sub-0", "sub-1", "sub-2"}
    assert {i.modality for i in items} == {"MR"} and all(i.label for i in items)
    train, test = split_items(items)
    assert not subjects(train) & subjects(test) and len(test) == 2, "visits go together"
    (top / "derivatives" / "hand" / "dseg.tsv").write_text("index\tname\n1\tliver\n")
    assert choose_classes("", "", top)[1] == ("liver",)
    check_training_items(train, [], test, ((1,),))
    (top / "participants.tsv").write_text(
        "participant_id\tsplit\nsub-0\ttest\nsub-1\t\nsub-2\tn/a\n"
    )
    assert subjects(split_items(read_manifest(top))[1]) == {"sub-0"}
    stem = top / "sub-1" / "ses-1" / "anat" / "sub-1_ses-1_T1w"
    stem.with_suffix(".json").write_text('{"Modality": "CT"}')
    assert {i.modality for i in read_manifest(top)} == {"CT", "MR"}


def test_bids_channels_and_organs(tmp_path):
    top = bids(tmp_path / "a", kinds=("T1w", "T2w"), organs=True)
    items = read_manifest(top)
    assert {len(i.images) for i in items} == {2} and items[0].modality == "MR+MR"
    assert choose_classes("", "", top) == (((1,),), ("liver",))
    next(top.glob("sub-1/ses-2/anat/*T2w*")).unlink()
    with pytest.raises(InputError, match="T1w beside T1w, T2w"):
        read_manifest(top)


# --- the cache


def test_a_second_start_reads_no_source(tmp_path, monkeypatch):
    items = people(tmp_path)
    first = load_cases(items, ((1, 2),), 0.0, tmp_path / "cache")
    cache._stamped.cache_clear()  # as in a new process
    monkeypatch.setattr(cache, "scan_digest", None)
    hashed, seen = [], []
    monkeypatch.setattr(cache, "digest", lambda *p: hashed.append(p) or digest(*p))
    again = load_cases(items, ((1, 2),), 0.0, tmp_path / "cache", see=lambda *n: seen.append(n))
    assert all(np.array_equal(a.slices, b.slices) for a, b in zip(first, again)) and len(seen) == 3
    assert not [p for p in hashed if str(p[0]).endswith(".npy")], "an entry was read"
    with pytest.raises(TypeError):  # asked to, it does read
        kept_case(items[0], ((1, 2),), 0.0, tmp_path / "cache", verify=True)


def test_what_is_written_anew_is_read_anew(tmp_path):
    item = people(tmp_path, 1)[0]
    kept_case(item, ((1,),), 0.0, tmp_path / "cache")
    put(item.image, scan(5))
    assert np.array_equal(
        kept_case(item, ((1,),), 0.0, tmp_path / "cache").slices, load_case(item, ((1,),)).slices
    )
    mr = replace(item, modality="MR", image=put(tmp_path / "m.nii.gz", scan(1, "MR")))
    assert kept_case(mr, ((1,),), 0.0, tmp_path / "cache").windows == load_case(mr, ((1,),)).windows


def test_only_code_that_makes_cases_voids_the_cache():
    top = cache.Path(cache.medseg.__file__).parent
    used = {f.relative_to(top).as_posix() for some in cache._MAKERS for f in top.glob(some)}
    assert {"io/read.py", "data/cases.py", "data/slab.py"} <= used
    assert not {u for u in used if u.startswith(("view/", "zdepth/"))} | used & {"data/explore.py"}


def test_medseg_cache_prepares_what_a_run_would(tmp_path):
    table = write_manifest(tmp_path / "in" / "m.csv", people(tmp_path / "in"))
    words = ["cache", str(table), "--folder", str(tmp_path / "c"), "--json"]
    said = CliRunner().invoke(app, words)
    usual = experiment_parameters(find_experiment("segment"))
    told = json.loads(said.stdout)
    groups, _ = choose_classes(usual["label_values"], usual["class_names"], table)
    assert told["inplane_mm"] == usual["inplane_mm"]
    assert told["label_values"] == [list(g) for g in groups] and len(told["cases"]) == 3
