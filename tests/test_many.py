"Work spread over real processes gives what the loop gives, also when a worker is killed."

import os
import signal
import threading
import time

import pytest
from cluster import scheduler

from medseg.io.files import InputError
from medseg.io.many import parallel_map


def slowly(n: int) -> tuple[int, int]:
    time.sleep(0.05)
    return n, n * n


@pytest.fixture(scope="module")
def cluster():
    from distributed import LocalCluster

    with LocalCluster(
        2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1", silence_logs=50
    ) as cluster:
        yield cluster


def test_a_scheduler_and_its_workers(cluster):
    assert list(parallel_map(slowly, range(40), scheduler=cluster.scheduler_address, batch=3)) == [
        slowly(n) for n in range(40)
    ]


def test_a_killed_worker_loses_nothing(cluster):
    pids = [worker.pid for worker in cluster.workers.values()]
    threading.Timer(0.6, lambda: os.kill(pids[0], signal.SIGKILL)).start()
    began = time.time()
    assert list(parallel_map(slowly, range(120), scheduler=cluster.scheduler_address, batch=2)) == [
        (n, n * n) for n in range(120)
    ]
    assert time.time() - began > 0.6, "the work was over before the kill"
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(pids[0], 0)
            time.sleep(0.05)


def test_an_item_that_fails_is_told(cluster):
    with pytest.raises(InputError, match="needs a file"):
        list(parallel_map(refuse, range(3), scheduler=cluster.scheduler_address))


def refuse(n):
    raise InputError("x", f"scan_{n}.nii", "path", "nothing", "a file", "look for it")


def test_a_scheduler_started_by_hand(tmp_path):
    with scheduler(tmp_path) as address:
        found = list(parallel_map(slowly, range(20), scheduler=address, batch=3))
    assert found == [slowly(n) for n in range(20)]
