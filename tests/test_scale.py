"""Large collections: headers of 10,000 files without growing, and the same answers from a scheduler
as from a loop, also when a worker dies.
"""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import warm

from medseg.data.cache import build_cache, kept_case
from medseg.data.cases import load_case
from medseg.data.manifest import read_manifest, write_manifest
from medseg.data.related import related
from medseg.zdepth.coverage import coverage_of
from medseg.zdepth.survey import survey
from medseg.io.volume import Volume
from medseg.io.write import write_volume

GROWTH = """
import resource, sys
from medseg.zdepth.survey import survey
survey(sys.argv[2])                                   # all libraries loaded
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = survey(sys.argv[1])
print(len(found["volumes"]), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/1024)
"""


def test_a_survey_of_10000_files_stays_small(tmp_path):
    "Each file holds 2 MB of voxels: reading one would show, keeping them all would take 20 GB."
    write_volume(
        tmp_path / "one.nii.gz",
        Volume(
            np.random.default_rng(0).integers(-1000, 1000, (128, 128, 64)).astype(np.int16),
            np.diag([1.0, 1, 2, 1]),
        ),
    )
    for name, n in (("many", 10_000), ("few", 20)):
        (tmp_path / name).mkdir()
        for i in range(n):
            os.link(tmp_path / "one.nii.gz", tmp_path / name / f"{i:05d}.nii.gz")
    told = subprocess.run(
        [sys.executable, "-c", GROWTH, str(tmp_path / "many"), str(tmp_path / "few")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert int(told[0]) == 10_000
    assert float(told[1]) < 40, f"grew by {told[1]} MiB"  # the table itself takes about 10


@pytest.fixture(scope="module")
def cluster():
    from distributed import LocalCluster

    with LocalCluster(
        2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1", silence_logs=50
    ) as cluster:
        yield cluster


def test_fingerprints_by_a_scheduler(cohort, cluster, tmp_path):
    alone = related(cohort.parent / "imagesTr")
    assert len(alone["left_out"]) == 0 and alone["links"] == []
    assert (
        related(
            cohort.parent / "imagesTr", tmp_path / "prints", scheduler=cluster.scheduler_address
        )
        == alone
    )
    assert (
        len(list((tmp_path / "prints").iterdir())) == 4
    ), "the workers keep their fingerprints in the shared folder"


def test_coverage_by_a_scheduler(cohort, cluster):
    found = survey(cohort.parent)
    for row in found["volumes"]:
        row["flags"] = (*row["flags"], "label_like") if "labelsTr" in row["path"] else row["flags"]
    alone = coverage_of(found)
    assert alone["scans"] == 4 and alone == coverage_of(found, scheduler=cluster.scheduler_address)


def test_a_cache_built_while_a_worker_is_killed(cohort, cluster, tmp_path):
    items = read_manifest(cohort)
    pids = [worker.pid for worker in cluster.workers.values()]
    kill = threading.Timer(0.3, lambda: os.kill(pids[0], signal.SIGKILL))
    kill.start()
    rows = build_cache(
        items, ((1, 2),), 8.0, tmp_path / "cache", scheduler=cluster.scheduler_address
    )
    kill.join()
    assert [r["subject"] for r in rows] == [i.subject for i in items]
    entries = [p for p in (tmp_path / "cache").iterdir() if not p.name.startswith(".")]
    assert len(entries) == len(items)
    for item in items:
        kept, made = kept_case(item, ((1, 2),), 8.0, tmp_path / "cache"), load_case(
            item, ((1, 2),), 8.0
        )
        assert (
            isinstance(kept.slices, np.memmap)
            and np.array_equal(kept.slices, made.slices)
            and np.array_equal(kept.classes, made.classes)
        )
    assert len([p for p in (tmp_path / "cache").iterdir() if not p.name.startswith(".")]) == len(
        items
    ), "nothing was made twice"


def test_a_run_with_a_cache_is_the_same_run(cohort, tmp_path):
    from medseg.runs.execute import find_experiment, run_experiment
    from medseg.runs.folder import read_json

    items = read_manifest(cohort)
    given = dict(
        manifest=str(write_manifest(tmp_path / "three.csv", [*items[:2], items[-1]])),
        steps=3,
        threads=1,
        crop=32,
        width=4,
        levels=2,
        inplane_mm=8.0,
    )
    with warm.kernels():
        runs = [
            run_experiment(find_experiment("segment"), given | extra, tmp_path / name)
            for name, extra in (
                ("plain", {}),
                ("cold", dict(cache=str(tmp_path / "kept"))),
                ("warm", dict(cache=str(tmp_path / "kept"))),
            )
        ]
    tables = [read_json(r / "result.json")["table"] for r in runs]
    assert tables[0] == tables[1] == tables[2]
    assert len(list((tmp_path / "kept").iterdir())) == 2
