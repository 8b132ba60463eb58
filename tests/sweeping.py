"""Sweeps that are killed: `python sweeping.py FOLDER`; test_sweep.py reads what it prints.

Each sweep is forked from a process that has loaded the library, in a group of its own. The runs
are this file again, with real folders, locks and records and without a kernel, which would take
five seconds each.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

STEPS = 4
EXPERIMENT = """# %% tags=["parameters"]
depth = 1
seed = 0
resume = False
out = ""
"""


def make_run(words: list[str]):
    "What `medseg run … --out FOLDER` or `--resume FOLDER` does, for an experiment of four steps."
    from medseg.io.files import read_rows
    from medseg.io.many import interruptible
    from medseg.runs.folder import finish_run, recording_failures, resume_run, start_run

    how, folder = words[2:4]
    config = dict(zip(words[5::3], words[6::3]))
    run = (resume_run if how == "--resume" else start_run)("tiny", config, folder)
    with interruptible(), recording_failures(run.folder, run.lock):
        rows = run.folder / "rows.jsonl"
        done = [r for r in read_rows(rows) if r["kind"] == "train"] if rows.exists() else []
        for step in range(len(done), STEPS):
            run.row("train", dict(step=step))
            time.sleep(0.05)
        finish_run(run, {}, [dict(subject="a", dice=0.5)], dict(updates=STEPS), "phantom")


def begin_sweep(top: Path) -> int:
    "The process of a sweep, the leader of its group."
    from medseg.runs import sweep

    if not (pid := os.fork()):
        os.setsid()
        plain = sweep._command
        sweep._command = lambda *given: [sys.executable, __file__, *plain(*given)[3:]]
        try:
            runs = sweep.read_grid(top / "grid.yaml", top / "tiny.py", seeds=3)
            sweep.run_sweep(top / "tiny.py", runs, top / "sweep", workers=2)
        except KeyboardInterrupt:
            os._exit(143)
        os._exit(0)
    return pid


def finished(top: Path) -> dict:
    "Which runs have a result, and which file that is."
    places = [p.stat() for p in sorted((top / "sweep").glob("*/result.json"))]
    names = [p.parent.name for p in sorted((top / "sweep").glob("*/result.json"))]
    states = [json.loads((top / "sweep" / n / "result.json").read_text())["state"] for n in names]
    found = zip(names, states, places)
    return {n: [p.st_ino, p.st_mtime_ns] for n, s, p in found if s == "finished"}


def rows(top: Path) -> int:
    "Bytes of all that runs have written on their way."
    return sum(p.stat().st_size for p in (top / "sweep").glob("*/rows.jsonl"))


def main(top: Path):
    (top / "tiny.py").write_text(EXPERIMENT)
    (top / "grid.yaml").write_text("vary: {depth: [1, 3, 5, 7]}")
    dice, seen = random.Random(0), []
    for turn, kill in enumerate([signal.SIGKILL] * 10 + [signal.SIGTERM, 0]):
        before, pid = rows(top), begin_sweep(top)
        if kill:
            # at any moment, and every other time while a run is at work
            end = time.monotonic() + 20 * (turn % 2)
            while rows(top) == before and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(dice.uniform(0, 0.6))
            (os.killpg if kill == signal.SIGKILL else os.kill)(pid, kill)
        _, status = os.waitpid(pid, 0)
        seen.append(dict(finished=finished(top), status=status))
    print(json.dumps(seen))


if __name__ == "__main__":
    make_run(sys.argv[1:]) if sys.argv[1] == "run" else main(Path(sys.argv[1]))
