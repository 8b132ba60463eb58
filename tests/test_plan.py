"""A plan speaks the language of the run: the same names, the same defaults, and what it holds.

The parts are counted in test_memory.py.
"""

import json
import os
import subprocess
import sys

import pytest
from command import medseg
from conftest import TOP

from medseg.io.files import InputError
from medseg.runs.execute import experiment_parameters, find_experiment
from medseg.runs.plan import check_fits, plan_run

MEASURE = """
import json, runpy, sys
import jupytext
from medseg.runs.execute import find_experiment
from medseg.runs.plan import plan_run
from medseg.train.memory import peak_rss

name, given, folder = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
planned = plan_run(find_experiment(name), given)["total"]
lines = []
for cell in jupytext.read(find_experiment(name)).cells:
    if cell.cell_type == "code":
        lines.append(cell.source)
    if "parameters" in cell.metadata.get("tags", []):
        lines += [f"{k} = {v!r}" for k, v in (given | dict(out=folder + "/run")).items()]
open(folder + "/plain.py", "w").write("\\n".join(lines))
runpy.run_path(folder + "/plain.py")
print(json.dumps([planned, peak_rss()]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the system tells no memory")
@pytest.mark.parametrize(
    "name, given",
    [
        ("segment", dict(steps=2, width=16, crop=128, depth=5)),
        ("translate", dict(steps=2, patch="32", width=8)),
    ],
    ids=["segment", "translate"],
)
def test_the_plan_is_near_what_a_fresh_process_holds(tmp_path, name, given):
    "Never a fifth too small; it may be half too large, for it plans for the worst moment."
    env = os.environ | {"PYTHONPATH": str(TOP), "MPLBACKEND": "agg"}
    words = [sys.executable, "-c", MEASURE, name, json.dumps(given), str(tmp_path)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    planned, measured = json.loads(done.stdout.splitlines()[-1])
    told = f"planned {planned / 2**20:.0f}, measured {measured / 2**20:.0f} MiB"
    assert 0.8 * measured < planned < 1.5 * measured, told


def test_names_and_defaults_are_those_of_the_run(tmp_path):
    "What the run does not know, the plan does not; what is not given is the run's own."
    for name in ("segment", "translate"):
        notebook = find_experiment(name)
        own = {k: str(v) for k, v in experiment_parameters(notebook).items() if k == "width"}
        assert (
            plan_run(notebook, own, 64)["bytes"].keys()
            == plan_run(notebook, {}, 64)["bytes"].keys()
        )
        for command in ("run", "plan"):
            bad = medseg(command, name, "-p", "widht", "3", cwd=tmp_path)
            assert bad.returncode == 1 and "found widht; needs only manifest" in bad.stderr
            bad = medseg(command, name, "-p", "width", "wide", cwd=tmp_path)
            assert bad.returncode == 1 and "width: found wide" in bad.stderr
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_gets_the_nearest_that_does(tmp_path):
    words = ["plan", "translate", "-p", "patch", "48", "-p", "width", "8", "--json"]
    whole = json.loads(medseg(*words, "--gigabytes", "64", cwd=tmp_path).stdout)["total"]
    less = 0.95 * whole / 0.9 / 2**30
    told = json.loads(medseg(*words, "--gigabytes", less, cwd=tmp_path).stdout)
    assert told["device"] == "cpu" and not told["fits"] and told["total"] > told["room"]
    fits = [row["fits"] for row in told["proposals"]]
    assert not any(fits[:-1]), "it stops at the first that fits"
    assert told["proposals"][0]["change"] == dict(recompute=True) and told["proposals"][0]["exact"]


def test_a_run_that_cannot_fit_is_refused_before_it_has_a_folder(monkeypatch):
    values = experiment_parameters(find_experiment("segment"))
    check_fits("segment", values)
    monkeypatch.setattr("medseg.runs.plan._machine_bytes", lambda: 2**30)
    with pytest.raises(InputError, match="GiB counted; needs at most 0.9 GiB.*do take") as told:
        check_fits("segment", values | dict(width=16, crop=256, batch=16))
    assert "\n" not in str(told.value)
    text = find_experiment("translate").read_text()
    assert text.index("check_fits(") < text.index('begin_run("translate"')
