"Experiments run by papermill, refuse what they do not know, and leave a whole record."

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import papermill
import pytest
from command import medseg
from conftest import TOP

from medseg.data.cohort import make_cohort
from medseg.data.manifest import Item, read_manifest, write_manifest
from medseg.runs.execute import (
    checked_parameters,
    find_experiment,
    experiment_parameters,
    read_parameters,
)
from medseg.runs.folder import run_state
from medseg.train.checkpoint import load_checkpoint
from medseg.io.read import read_volume

SEGMENT = TOP / "nbs" / "experiments" / "segment.ipynb"  # as JupyterLab opens it
TINY = [
    "-p",
    "steps",
    "4",
    "-p",
    "crop",
    "32",
    "-p",
    "width",
    "4",
    "-p",
    "levels",
    "2",
    "-p",
    "inplane_mm",
    "8",
]


def test_a_cohort_does_not_depend_on_the_number_of_processes(cohort, tmp_path):
    make_cohort(tmp_path, train=2, test=2, inplane_mm=8.0, spacings=(8.0, 10.0), workers=1)
    files = sorted(p.relative_to(cohort.parent) for p in cohort.parent.rglob("*") if p.is_file())
    assert len(files) == 10 and all(
        (tmp_path / f).read_bytes() == (cohort.parent / f).read_bytes() for f in files
    )


@pytest.fixture(scope="module")
def finished(cohort, tmp_path_factory):
    """Two runs of the same settings, started at once in one folder as real commands, and what the
    first told.
    """
    top = tmp_path_factory.mktemp("finished")
    words = [
        sys.executable,
        "-m",
        "medseg",
        "run",
        "segment",
        *TINY,
        "-p",
        "manifest",
        str(cohort),
        "-p",
        "threads",
        "1",
        "-p",
        "name",
        "007",
        "--json",
        "--out",
    ]
    both = [
        subprocess.Popen(
            [*words, f"runs/{name}"],
            cwd=top,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    try:
        told = [process.communicate(timeout=300) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], told
    return top, json.loads(told[0][0])


def test_a_run_leaves_a_whole_record(cohort, finished):
    top, told = finished
    folder = top / "runs" / "a"
    config, result = (json.loads((folder / f"{n}.json").read_text()) for n in ("config", "result"))
    assert (
        config["name"] == "007"
        and config["steps"] == 4
        and result["state"] == told["state"] == "finished"
    )
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r["kind"] == "train"] == [0, 1, 2, 3]
    assert {r["subject"] for r in result["table"]} == {
        i.subject for i in read_manifest(cohort) if i.split == "test"
    }
    assert (
        result["cost"]["wall_s"] > 0
        and result["cost"]["peak_gib"] > 0
        and all(len(d) == 16 for d in result["digests"].values())
    )
    masks = list((folder / "masks").glob("*.nii.gz"))
    assert len(masks) == 2 and read_volume(masks[0], role="labels").voxels.dtype == np.uint8
    assert {p.name for p in folder.iterdir()} >= {
        "segment.ipynb",
        "model.safetensors",
        "figures",
        "page.html",
        "environment.json",
    }
    listed = json.loads(medseg("log", "--json", cwd=top).stdout)
    assert [(r["name"], r["state"]) for r in listed] == [("007", "finished")] * 2
    again = medseg("run", "segment", "--out", "runs/a", cwd=top)
    assert again.returncode == 1 and "needs a new name" in again.stderr


def test_the_same_seed_gives_the_same_numbers_also_side_by_side(finished):
    "Two runs started at once in one folder do not hear each other's kernels."
    top, _ = finished
    a, b = (
        [
            json.loads(line)["loss"]
            for line in (top / "runs" / n / "rows.jsonl").read_text().splitlines()
            if '"train"' in line
        ]
        for n in "ab"
    )
    assert a == b and len(a) == 4
    assert [p.name for p in top.iterdir()] == ["runs"], "no sockets are left where the user works"


def test_plain_papermill_works_too(cohort, tmp_path):
    papermill.execute_notebook(
        str(SEGMENT),
        str(tmp_path / "out.ipynb"),
        dict(
            manifest=str(cohort),
            steps=2,
            crop=32,
            width=4,
            levels=2,
            inplane_mm=8.0,
            out=str(tmp_path / "run"),
        ),
        kernel_name="python3",
        progress_bar=False,
        cwd=str(tmp_path),
    )
    assert json.loads((tmp_path / "run" / "result.json").read_text())["state"] == "finished"


def test_nonsense_is_refused_and_recorded(cohort, tmp_path):
    done = medseg(
        "run",
        "segment",
        *TINY,
        "-p",
        "manifest",
        cohort,
        "-p",
        "target",
        "middle",
        "-p",
        "depth",
        "4",
        "--out",
        "odd",
        cwd=tmp_path,
    )
    assert (
        done.returncode == 1
        and "depth must be odd" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )
    done = medseg(
        "run",
        "segment",
        *TINY,
        "-p",
        "manifest",
        cohort,
        "-p",
        "hold_out",
        "nobody",
        "--out",
        "who",
        cwd=tmp_path,
    )
    assert done.returncode == 1 and "nobody" in done.stderr
    assert run_state(tmp_path / "who") == "failed"


def test_a_stopped_run_says_so(cohort, tmp_path):
    words = [
        sys.executable,
        "-m",
        "medseg",
        "run",
        "segment",
        "-p",
        "manifest",
        str(cohort),
        "-p",
        "steps",
        "100000",
        "--out",
        "long",
    ]
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    rows = tmp_path / "long" / "rows.jsonl"
    until = time.time() + 120
    while not rows.exists() and time.time() < until:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    told = process.stdout.read().decode().strip().splitlines()
    assert told[-1] == "medseg run segment --resume long", told
    assert run_state(tmp_path / "long") == "interrupted"
    told = rows.read_text().count('"train"')
    assert load_checkpoint(tmp_path / "long" / "state.safetensors")[1]["step"] == told
    time.sleep(2)
    size = rows.stat().st_size
    time.sleep(2)
    assert rows.stat().st_size == size, "the kernel went on after the run was stopped"


def test_demo_on_a_manifest_holds_each_patient_out(cohort, tmp_path):
    two = [Item(i.subject, i.image, i.label) for i in read_manifest(cohort)[:2]]
    write_manifest(tmp_path / "m.csv", two)
    done = medseg(
        "demo",
        "--data",
        "m.csv",
        "--label-values",
        "1+2",
        "--steps",
        "3",
        "--out",
        "demo",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {r["subject"] for r in told["table"]} == {i.subject for i in two} and len(
        told["runs"]
    ) == 2
    assert (tmp_path / told["page"]).is_file() and len(
        list(tmp_path.glob("demo/*/masks/*.nii.gz"))
    ) == 2


def test_every_parameter_has_a_kind():
    known = experiment_parameters(SEGMENT)
    assert len(known) > 15 and {type(v) for v in known.values()} <= {str, int, float, bool}
    assert (
        experiment_parameters(find_experiment("segment")) == known
    ), "the notebook and its twin declare one"


def test_an_experiment_is_found_by_name_from_anywhere(tmp_path):
    "The package holds its experiments and their parameter files; no clone is needed."
    done = medseg("run", "segment", "-p", "stesp", "5", cwd=tmp_path)
    assert done.returncode == 1 and "stesp" in done.stderr and len(done.stderr.splitlines()) == 1
    done = medseg("run", "segmnt", cwd=tmp_path)
    assert done.returncode == 1 and "one of collapse, dimensions, grid" in done.stderr
    done = medseg("run", "slabs", "-f", "slabs/nothing", cwd=tmp_path)
    assert done.returncode == 1 and "slabs/attention" in done.stderr
    assert not list(tmp_path.iterdir()), "what is refused leaves nothing behind"


def test_every_shipped_file_of_parameters_fits_its_experiment():
    held = find_experiment("segment").parent / "parameters"
    files = [p.relative_to(held).with_suffix("") for p in held.rglob("*.yaml")]
    assert len(files) > 10
    for name in files:
        experiment = name.parts[0] if len(name.parts) > 1 else "translate"
        assert checked_parameters(find_experiment(experiment), read_parameters(name.as_posix()))


def test_every_experiment_is_run_by_a_test():
    "nbdev's runner takes the chapters; experiments run as users run them, by papermill."
    asked = "".join(p.read_text() for p in (TOP / "tests").glob("test_*.py"))
    for path in (TOP / "nbs" / "experiments").glob("*.ipynb"):
        assert re.search(rf'"run",\s+"{path.stem}"', asked), f"no test runs {path.stem}"


def test_slabs_against_neighbours(tmp_path):
    done = medseg(
        "run",
        "slabs",
        "-p",
        "testers",
        "2",
        "-p",
        "spacings",
        "3,8",
        "-p",
        "steps",
        "2",
        "--out",
        "run",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    cells = {(r["depth"], r["target"]) for r in told["table"]}
    assert cells == {(1, "middle"), (10, "all"), (3, "middle"), (5, "middle")} and {
        r["slices"] for r in told["table"]
    } == {"thin", "thick"}
    assert (
        told["cost"]["trainings"] == 4
        and told["data"] == "phantom"
        and (tmp_path / "run" / "page.html").exists()
    )


def test_trainings_brought_to_collapse(tmp_path):
    done = medseg(
        "run",
        "collapse",
        "-p",
        "voxels",
        "12",
        "-p",
        "spacing_mm",
        "5",
        "--out",
        "run",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {"recipe", "cause", "seed", "step"} <= set(told["table"][0]) and told["headline"][
        "trainings"
    ] == len(told["table"])
    assert (
        0 < told["headline"]["made to collapse"] == sum(bool(r["cause"]) for r in told["table"])
        and told["data"] == "phantom"
    )
