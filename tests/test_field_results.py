"""What comes out of a run: rows of scans and means of people, z of the patient, outputs that never
take each other's place, parameters that plain papermill cannot bend, and a record of who was in it.
"""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import nbformat
import nibabel as nib
import numpy as np
import papermill
import pytest
import torch
from command import medseg
from matplotlib.colors import to_rgb

from medseg.data.manifest import Item, item_names
from medseg.experiments import __path__ as experiments
from medseg.io.files import RepairWarning, path_names, write_json
from medseg.io.read import read_volume
from medseg.io.sidecar import read_class_names
from medseg.io.volume import Volume, along_z, reorient
from medseg.io.write import write_labels, write_volume
from medseg.runs.compare import compare_runs
from medseg.runs.demo import summary
from medseg.runs.folder import finish_run, read_json, run_state, start_run
from medseg.runs.page import run_page, show_run, write_page
from medseg.runs.parameters import declared_values, frozen
from medseg.runs.record import person_rows, read_run
from medseg.runs.shelf import keep_run
from medseg.segment.metrics import class_means
from medseg.segment.predict import SegmentRecipe, save_model
from medseg.segment.report import class_colour, overlay_figure, score_rows
from medseg.translate.predict import TranslateRecipe, save_translator

THICK = np.diag([1.45, 1.45, 8.0, 1.0])


def row(subject, scan, dice, z_mm=5.0, held=1.0):
    scores = dict(dice=dice, z_mm=z_mm, slices=9, label_ml=held, pred_ml=1.0)
    return {"subject": subject, "scan": scan, "class": "liver"} | scores


ANNA = [
    row("anna", f"anna-{k}", d, mm) for k, d, mm in ((1, 0.5, 5.0), (2, 0.6, 1.0), (3, 0.7, 8.0))
]
BERT = [row("bert", "bert", 0.9)]


# 20: a subject is not a scan


def test_means_run_over_people():
    found = class_means(ANNA + BERT)["liver"]
    assert found["dice"] == pytest.approx((0.6 + 0.9) / 2)
    assert [found[k] for k in ("subjects", "scans", "of")] == [2, 4, 4]


def test_a_visit_without_the_class_is_no_zero_and_a_person_without_it_is_nobody():
    empty = row("anna", "anna-4", None, held=0.0)
    nobody = row("carl", "carl", float("nan"), held=0.0)
    found = class_means([*ANNA, *BERT, empty, nobody])["liver"]
    assert found["dice"] == pytest.approx(0.75)
    assert [found[k] for k in ("subjects", "scans", "of")] == [2, 4, 6]


def test_two_scans_of_one_person_are_neither_two_runs_nor_two_seeds():
    told = summary([dict(r, dice=[r["dice"]]) for r in ANNA + BERT])["liver"]
    assert (told["runs"], told["spread"], told["subjects"], told["scans"]) == (1, None, 2, 4)
    assert told["mean"] == pytest.approx(0.75) and told["worst"] == 0.5
    seeds = summary([dict(r, dice=[r["dice"], r["dice"] + 0.1]) for r in ANNA + BERT])["liver"]
    assert seeds["spread"] == pytest.approx(np.std([0.75, 0.85], ddof=1))


def record(folder, table, seed=0, depth=3, **more):
    "A finished run, as it lies on the disk."
    settings = dict(experiment="segment", seed=seed, depth=depth, name="")
    write_json(folder / "config.json", settings)
    told = dict(experiment="segment", state="finished", data="real", cost=dict(updates=3))
    write_json(folder / "result.json", told | dict(table=table) | more)
    return folder


def test_pages_have_a_row_a_scan_and_a_row_a_person(tmp_path):
    page = run_page(record(tmp_path / "run", ANNA + BERT))
    assert all(r["scan"] in page for r in ANNA) and "The same by person" in page
    assert [(p["subject"], p["scans"]) for p in person_rows(ANNA + BERT)] == [
        ("anna", 3),
        ("bert", 1),
    ]
    assert "The same by person" not in run_page(record(tmp_path / "plain", BERT))


def test_comparisons_count_people_and_scans_and_do_not_mix_visits(tmp_path):
    deep = [record(tmp_path / f"deep{s}", ANNA + BERT, s, 5) for s in (0, 1)]
    (part,) = compare_runs(deep)["parts"]
    ((_, counts),) = part["counts"].items()
    assert (counts["seeds"], counts["people"], counts["scans"]) == (2, 2, 4)
    fewer = [record(tmp_path / f"flat{s}", ANNA[:1] + BERT, s, 1) for s in (0, 1)]
    told = "not scored on the same scans of these subjects"
    assert any(told in said for said in compare_runs(deep + fewer)["says"])
    equal = [record(tmp_path / f"same{s}", ANNA + BERT, s, 1) for s in (0, 1)]
    assert not any(told in said for said in compare_runs(deep + equal)["says"])


# 21: z is the patient's


@pytest.mark.parametrize("codes", ["RAS", "LPS", "IPL", "PSR", "SAL", "ALI"])
def test_z_is_the_patients_axis_wherever_the_file_has_it(codes):
    labels = np.zeros((12, 10, 5), np.uint8)
    labels[3:8, 3:8, 1:4] = 1
    stored = reorient(Volume(labels, THICK), codes)
    assert along_z(stored) == (8.0, 5)
    (told,) = score_rows("anna", "anna-1", stored, stored, ["liver"], {})
    assert (told["z_mm"], told["slices"], told["dice"]) == (8.0, 5, 1.0)


@pytest.mark.parametrize("degrees", [12, 30])
def test_z_of_an_oblique_scan(degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    tilt = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1.0]])
    for codes in ("RAS", "IPL", "PSR"):
        stored = reorient(Volume(np.zeros((12, 10, 5)), THICK), codes)
        assert along_z(Volume(stored.voxels, tilt @ stored.affine)) == (8.0, 5)


def test_no_experiment_takes_z_from_the_third_axis():
    for path in Path(list(experiments)[0]).glob("*.py"):
        assert "spacing[2]" not in path.read_text() and "shape[2]" not in path.read_text(), path


# 27: outputs keep out of each other's way


@pytest.mark.parametrize(
    "paths",
    [
        ["a/anna/mr.nii.gz", "a/bert/mr.nii.gz"],
        ["a/Anna.nii", "a/anna.nii"],
        ["a/x.nii", "a/x.nii.gz", "a/x.mha"],
        ["a/b_c.nii", "a/b/c.nii", "b/c.nii"],
        ["a/é.nii", "a/è.nii", "a/e.nii"],
        ["one/a/mr.nii", "two/a/mr.nii", "two/b/mr.nii"],
    ],
)
def test_no_two_scans_are_called_alike(paths):
    for parts in (None, [2] * len(paths)):
        names = path_names(paths, parts)
        assert len({n.lower() for n in names}) == len(paths), names
        assert all(
            set(n) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
            for n in names
        )


def test_scans_of_c_and_a_person_called_c_1():
    for subjects in (("C", "C", "C-1"), ("c", "C", "C", "C-1", "c-2")):
        items = [Item(s, f"{k}.nii.gz") for k, s in enumerate(subjects)]
        assert len({n.lower() for n in item_names(items)}) == len(subjects)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "Scans of two people who are both called ct, one that cannot be read, and networks for them."
    top = tmp_path_factory.mktemp("batch")
    hu = np.clip(np.random.default_rng(0).normal(0, 200, (24, 24, 8)), -1000, 1500).astype(np.int16)
    hu[:3], hu[8:14, 8:14] = -1000, 1200
    for k, who in enumerate(("anna", "bert")):
        write_volume(
            top / "scans" / who / "ct.nii.gz", Volume(hu + np.int16(k), np.diag([4, 4, 5.0, 1]))
        )
    (top / "scans" / "bad.nii.gz").write_bytes(b"no scan")
    torch.manual_seed(0)
    names = ("liver", "lesion")
    recipe = SegmentRecipe(
        depth=3, width=4, levels=2, inplane_mm=8.0, classes=3, names=names, modality="CT"
    )
    save_model(top / "model.safetensors", recipe.net().eval(), recipe, {})
    made = TranslateRecipe("resnet1", 2, patch=(16, 16, 8), direction="ct2mr")
    save_translator(top / "back.safetensors", made.net(), made, {})
    return top


@pytest.mark.parametrize(
    "command, model, end", [("predict", "model", ""), ("translate", "back", "_mr")]
)
def test_a_folder_of_scans_is_finished_and_not_done_twice(place, tmp_path, command, model, end):
    words = (
        command,
        place / f"{model}.safetensors",
        place / "scans",
        "-o",
        tmp_path / "out",
        "--json",
    )
    first = medseg(*words)
    rows = json.loads(first.stdout)
    assert (
        first.returncode == 1
        and "bad.nii.gz" in first.stderr
        and len(first.stderr.splitlines()) == 1
    )
    assert sorted(r["state"] for r in rows) == ["failed", "made", "made"]
    made = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.nii.gz")}
    assert set(made) == {f"anna_ct{end}.nii.gz", f"bert_ct{end}.nii.gz"}
    beside = read_json(tmp_path / "out" / f"anna_ct{end}.json")
    assert beside["Sources"] == ["ct.nii.gz"] and str(place) not in json.dumps(beside)
    (tmp_path / "out" / f"bert_ct{end}.nii.gz").unlink()
    again = json.loads(medseg(*words).stdout)
    assert sorted(r["state"] for r in again) == ["failed", "kept", "made"]
    kept = tmp_path / "out" / f"anna_ct{end}.nii.gz"
    assert kept.stat().st_mtime_ns == made[kept.name]


def test_a_mask_of_another_scan_or_of_somebody_else_is_not_replaced(place, tmp_path):
    scan, out = place / "scans" / "anna" / "ct.nii.gz", tmp_path / "out"
    words = "predict", place / "model.safetensors", place / "scans" / "anna", "-o", out
    assert medseg(*words).returncode == 0
    mask = (out / "ct.nii.gz").read_bytes()
    other = medseg(*words[:2], place / "scans" / "bert", "-o", out)
    assert other.returncode == 1 and "another scan, network or setting" in other.stderr
    assert (out / "ct.nii.gz").read_bytes() == mask
    (tmp_path / "mine.json").write_text('{"EchoTime": 0.1}')
    single = medseg(*words[:2], scan, "-o", tmp_path / "mine.nii.gz")
    assert single.returncode == 1 and "did not write" in single.stderr
    assert not (tmp_path / "mine.nii.gz").exists()
    assert (tmp_path / "mine.json").read_text() == '{"EchoTime": 0.1}'


def test_many_scans_need_a_folder_and_one_outside_them(place, tmp_path):
    many = sorted((place / "scans").rglob("ct.nii.gz"))
    for out, told in (
        (tmp_path / "m.nii.gz", "a folder for many"),
        (place / "scans" / "o", "is read"),
    ):
        done = medseg("predict", place / "model.safetensors", place / "scans", *many, "-o", out)
        assert done.returncode == 1 and told in done.stderr and not out.exists(), done.stderr
    free = medseg("translate", place / "back.safetensors", *many, cwd=tmp_path)
    assert free.returncode == 1 and "name the folder with -o" in free.stderr


# class names in the mask, and numbers that mean something else


def test_masks_carry_the_names_of_their_classes(place, tmp_path):
    mask = tmp_path / "mask.nii.gz"
    scan = place / "scans" / "anna" / "ct.nii.gz"
    assert medseg("predict", place / "model.safetensors", scan, "-o", mask).returncode == 0
    assert read_class_names(mask) == {1: "liver", 2: "lesion"}
    assert read_json(tmp_path / "mask.json")["Labels"] == {"1": "liver", "2": "lesion"}
    assert nib.load(mask).header.extensions[0].get_code() == 30
    assert np.array_equal(nib.load(mask).affine, nib.load(scan).affine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # names of classes are no text about a patient
        assert read_volume(mask, "labels").shape == read_volume(scan).shape
    named = nib.load(mask)
    named.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nib.save(named, tmp_path / "told.nii.gz")
    with pytest.warns(RepairWarning, match="could name a patient"):
        read_volume(tmp_path / "told.nii.gz", "labels")


def test_evaluate_says_that_label_5_is_not_class_1(tmp_path):
    organ = np.zeros((12, 10, 6), np.uint8)
    organ[3:9, 3:9, 1:5] = 1
    for name, value, names in (
        ("mask", 1, ["liver"]),
        ("bare", 1, ()),
        ("five", 5, ()),
        ("two", 1, ()),
    ):
        write_labels(tmp_path / f"{name}.nii.gz", Volume(organ * np.uint8(value), THICK), names)
    tumour = organ.copy()
    tumour[4:6, 4:6, 2:4] = 2
    write_labels(tmp_path / "two.nii.gz", Volume(tumour, THICK))
    write_labels(tmp_path / "spleen.nii.gz", Volume(organ, THICK), ["spleen"])
    for pred, label, hint in (
        ("mask", "five", "--label-values 5"),
        ("bare", "five", "--label-values 5"),
        ("mask", "two", "found 1, 2"),  # is 2 part of the liver, or not?
        ("mask", "spleen", "1 (spleen)"),
    ):
        done = medseg("evaluate", f"{pred}.nii.gz", f"{label}.nii.gz", cwd=tmp_path)
        assert done.returncode == 1 and hint in done.stderr, (pred, label, done)
    words = "evaluate", "mask.nii.gz", "two.nii.gz", "--label-values", "1+2", "--json"
    told = json.loads(medseg(*words, cwd=tmp_path).stdout)
    assert told["names"] == {"1": "liver"} and told["classes"]["1"]["dice"] == 1.0
    words = "evaluate", "bare.nii.gz", "bare.nii.gz", "--names", "spleen", "--json"
    assert json.loads(medseg(*words, cwd=tmp_path).stdout)["names"] == {"1": "spleen"}


# 25: a picture in which confusion shows


def test_each_class_has_its_colour_and_each_scan_its_name():
    label, pred = np.zeros((2, 20, 20), np.uint8)
    label[3:9, 3:9], label[12:17, 12:17] = 1, 2
    pred[3:9, 3:9], pred[12:17, 12:17] = 2, 1  # exchanged
    shown = [(f"anna-visit-{k}", np.zeros((20, 20)), pred, label, 1.0) for k in (1, 2)]
    fig = overlay_figure(shown, ["liver", "spleen"])
    words = [t.get_text() for t in fig.legends[0].get_texts()]
    assert words == ["liver", "spleen", "area: label", "line: prediction"]
    assert [ax.get_title() for ax in fig.axes] == ["anna-visit-1", "anna-visit-2"]
    area = fig.axes[0].images[1].get_array()
    assert tuple(area[5, 5][:3]) == pytest.approx(to_rgb(class_colour(1)))
    lines = {
        tuple(c.get_edgecolor()[0][:3]): c.get_paths()[0].vertices for c in fig.axes[0].collections
    }
    assert lines[to_rgb(class_colour(2))].max() < 10 < lines[to_rgb(class_colour(1))].min()


def test_names_that_differ_at_their_ends_stay_different():
    empty = np.zeros((8, 8), np.uint8)
    names = [f"a_very_long_name_of_a_public_data_set_{k:03}" for k in range(3)]
    fig = overlay_figure([(n, empty, empty, empty, 1.0) for n in names])
    assert len({ax.get_title() for ax in fig.axes}) == 3


# 35: plain papermill

NOTEBOOK = """from medseg.runs.folder import finish_run
from medseg.runs.page import show_run
from medseg.runs.parameters import begin_run, frozen

config = frozen(globals())
run = begin_run("toy", config)"""
LAST = """if config.steps > 3:
    raise KeyError("no liver")
finish_run(run, {"dice": 0.5}, [{"subject": "anna", "scan": "anna", "dice": 0.5}], {}, "phantom")
show_run(run)"""


def papermilled(folder, **given):
    "Plain papermill, as `papermill toy.ipynb done.ipynb -p NAME VALUE` calls it."
    told = 'augmented = True\nsteps = 3\nlabel_values = "1"\nout = "run"'
    cells = [nbformat.v4.new_code_cell(told, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in (NOTEBOOK, LAST)]
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(book, folder / "toy.ipynb")
    papermill.execute_notebook(
        folder / "toy.ipynb",
        folder / "done.ipynb",
        given | dict(out=str(folder / "run")),
        progress_bar=False,
    )
    return nbformat.read(folder / "done.ipynb", 4)


def test_plain_papermill_ends_with_the_record_shown(tmp_path):
    last = papermilled(tmp_path, augmented=False, label_values=5).cells[-1]
    assert (
        "anna" in last.outputs[-1].data["text/html"]
        and "toy" in last.outputs[-1].data["text/plain"]
    )
    config = read_json(tmp_path / "run" / "config.json")
    assert (config["augmented"], config["label_values"]) == (False, "5")


def test_plain_papermill_cannot_misspell_and_its_failures_have_a_reason(tmp_path):
    with pytest.raises(
        papermill.PapermillExecutionError, match="found stepps; needs only augmented"
    ):
        papermilled(tmp_path, stepps=3)
    assert not (tmp_path / "run").exists()
    with pytest.raises(papermill.PapermillExecutionError, match="no liver"):
        papermilled(tmp_path, steps=4)
    assert run_state(tmp_path / "run") == "failed"
    assert read_json(tmp_path / "run" / "result.json")["notes"] == ["KeyError: 'no liver'"]


CELL = 'augmented = True\nsteps = 3\nlr = 0.1\nlabel_values = "1+2"\nout = ""'


@pytest.mark.parametrize(
    "injected, told",
    [
        ('augmented = "no"', "augmented: found no; needs a value like True (bool)"),
        ("augmented = 1", "augmented: found 1"),
        ("steps = 3.5", "steps: found 3.5"),
        ("steps = True", "steps: found True"),
        ("steps = None", "steps: found None"),
        ('lr = "fast"', "lr: found fast"),
        ("label_values = [1, 2]", "label_values: found [1, 2]"),
        ("label_values = False", "label_values: found False"),
        ("hold_out = {}", "found hold_out"),
        ("Steps = 3", "found Steps"),
    ],
)
def test_values_of_another_kind_are_refused_before_anything_is_made(injected, told):
    left = declared_values(CELL) | declared_values(injected)
    names = dict(In=["", CELL, f"# Parameters\n{injected}"]) | left
    with pytest.raises(ValueError, match="the experiment: ") as error:
        frozen(names | dict(np=np))
    assert told in str(error.value)


# what a run says of itself, and who was in it


def test_pages_are_titled_by_what_a_run_is(tmp_path):
    began = dict(started="2026-02-03T10:00:00Z")
    plain = record(tmp_path / "plain", BERT, **began)
    assert read_run(plain)["title"] == "segment on scans, 2026-02-03 10:00"
    write_json(
        plain / "config.json", dict(experiment="segment", name="smoke", manifest="x/liver.csv")
    )
    assert read_run(plain)["title"] == "segment on x/liver.csv, 2026-02-03 10:00"
    named = record(tmp_path / "named", BERT, name="five slices", **began)
    assert read_run(named)["title"].endswith(": five slices")
    assert "<h1>segment on scans" in write_page(named).read_text()
    assert "five slices" in repr(show_run(named))


def test_who_was_trained_on_is_kept_and_shown(tmp_path):
    manifest = tmp_path / "people.csv"
    manifest.write_text(
        "subject,image\nanna,/secret/a.nii\nanna,/secret/b.nii\nbert,/secret/c.nii\n"
    )
    anna, bert = SimpleNamespace(subject="anna"), SimpleNamespace(subject="bert")
    run = start_run("toy", dict(manifest=str(manifest)), tmp_path / "run")
    sides = dict(train=[anna, anna], validation=[], test=[bert])
    told = finish_run(run, {}, BERT, {}, "real", people=sides, manifest=manifest)
    assert told["people"]["train"] == dict(subjects=["anna"], scans=2)
    assert (run.folder / "manifest.csv").read_bytes() == manifest.read_bytes()
    assert "Who was trained on" in run_page(run.folder)
    kept = keep_run(run.folder, tmp_path / "log")
    assert read_json(kept / "result.json")["people"]["train"] == dict(subjects=1, scans=2)
    for file in kept.rglob("*.*"):
        assert "/secret" not in file.read_text() and str(tmp_path) not in file.read_text(), file
