"A script without `if __name__ == '__main__'` may ask for several processes, from any folder."

import os
import subprocess
import sys

import jupytext
import pytest
from conftest import TOP

COHORT = """
from medseg.data.cohort import make_cohort
print(make_cohort("cohort", train=1, test=1, inplane_mm=8.0, spacings=(10.0,)))
"""
SPINE = """
from medseg.data.spine_cohort import make_spine_cohort
print(make_spine_cohort("cohort", mr=1, ct=1, test=0, spacing_mr=(8,) * 3, spacing_ct=(8,) * 3))
"""
RELATED = """
import numpy as np
from medseg.data.fingerprint import fingerprint
from medseg.data.related import match_all
from medseg.io.volume import Volume
rng = np.random.default_rng(0)
prints = [fingerprint(Volume(rng.random((40, 40, 40), np.float32), np.eye(4))) for _ in range(3)]
print(match_all(prints, workers=2))
"""
DASK = """
from medseg.io.many import parallel_map
def twice(n):
    return 2 * n
print(list(parallel_map(twice, range(9), workers=2)))
"""
LAUNCH = """
from medseg.train.distributed import launch
from seats import seat
print(launch(seat, 2, cpu=True))
"""


def run_script(folder, text):
    "What a script prints that lies in a folder of its own and is run from another."
    script = folder / "scripts" / "plain.py"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"print('begins')\n{text}")
    env = os.environ | {"PYTHONPATH": str(TOP), "MPLBACKEND": "agg"}
    words = [sys.executable, str(script)]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("begins") == 1, "a started process ran the script again"
    return done.stdout


@pytest.mark.parametrize("text", [COHORT, SPINE], ids=["make_cohort", "make_spine_cohort"])
def test_a_cohort(tmp_path, text):
    run_script(tmp_path, text)
    assert (tmp_path / "cohort" / "manifest.csv").exists()


def test_all_pairs(tmp_path):
    assert run_script(tmp_path, RELATED).endswith("]\n")


def test_dask_also_with_work_of_the_script(tmp_path):
    assert "[0, 2, 4, 6, 8, 10, 12, 14, 16]" in run_script(tmp_path, DASK)


def test_ranks(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "seats.py").write_text("def seat(world):\n    return world.rank\n")
    assert "[0, 1]" in run_script(tmp_path, LAUNCH)


def test_the_text_of_a_chapter(tmp_path):
    twin = jupytext.writes(jupytext.read(TOP / "nbs" / "01_io" / "02_many.ipynb"), fmt="py:percent")
    run_script(tmp_path, twin)
