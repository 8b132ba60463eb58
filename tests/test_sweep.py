"""A sweep is made whole however often it is killed, and by whom.

Its grids are refused in the chapter.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from cluster import scheduler
from command import medseg
from conftest import TOP

from medseg.io.files import read_rows
from medseg.runs.folder import read_json, run_state

TINY = """# %% tags=["parameters"]
depth = 1
seed = 0
out = ""

# %%
from medseg.runs.folder import finish_run
from medseg.runs.parameters import begin_run, frozen

config = frozen(globals())
if config.depth == 13:
    raise ValueError("depth must be a lucky number")
run = begin_run("tiny", config)
table = [dict(subject="a", dice=0.5 + config.depth / 100)]
done = finish_run(run, dict(dice=table[0]["dice"]), table, dict(updates=1), "phantom")
"""


def test_ten_kills_lose_nothing_and_repeat_nothing(tmp_path):
    "Twelve cells; the whole group of processes gets SIGKILL at random moments, then once SIGTERM."
    script = Path(__file__).with_name("sweeping.py")
    env = os.environ | {"PYTHONPATH": str(TOP)}
    words = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout)
    for before, after in zip(seen, seen[1:]):
        assert before["finished"].items() <= after["finished"].items(), "one was made again"
    assert len(seen[9]["finished"]) < 12 == len(seen[-1]["finished"]), "kills came too late"
    assert seen[-1]["status"] == 0 and seen[-2]["status"] in (0, 143 << 8)
    runs = read_json(tmp_path / "sweep" / "sweep.json")["runs"]
    assert {r["state"] for r in runs.values()} == {"finished"} and len(runs) == 12
    folders = [p.parent for p in (tmp_path / "sweep").glob("*/config.json")]
    assert sorted(f.name for f in folders) == sorted(runs)
    for folder in folders:
        steps = [r["step"] for r in read_rows(folder / "rows.jsonl") if r["kind"] == "train"]
        assert steps == [0, 1, 2, 3], "a run that was cut off goes on where it was"


def test_through_a_dask_scheduler(tmp_path):
    "Two workers; one cell fails before it has a folder, and is told and tried again when asked."
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "grid.yaml").write_text("vary: {depth: [5, 13]}")
    with scheduler(tmp_path) as address:
        words = ["sweep", "tiny.py", "grid.yaml", "--scheduler", address, "--json"]
        done = medseg(*words, cwd=tmp_path)
    assert done.returncode == 1 and "1 of 2 runs" in done.stderr and "lucky" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    told = json.loads(done.stdout)
    assert [r["state"] for r in told["runs"]] == ["finished", "failed"]
    assert told["comparison"]["score"] == "dice" and (tmp_path / told["page"]).exists()
    assert run_state(tmp_path / "runs/grid/00-depth-5-seed-0") == "finished"


def test_what_cannot_be_meant_starts_nothing(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    for text, told in (("vary: {dpth: [1]}", "dpth"), ("vary: {depth: [x]}", "found x")):
        (tmp_path / "grid.yaml").write_text(text)
        bad = medseg("sweep", "tiny.py", "grid.yaml", cwd=tmp_path)
        assert (bad.returncode, len(bad.stderr.splitlines())) == (1, 1) and told in bad.stderr
    assert not (tmp_path / "runs").exists()
