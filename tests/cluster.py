"A dask scheduler and its workers, started on loopback by the commands of dask's documentation."

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scheduler(folder: Path):
    "Yields the address of one with two workers."
    from distributed import Client

    file = folder / "scheduler.json"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    shared = ["--scheduler-file", str(file), "--host", "127.0.0.1", "--no-dashboard"]
    words = {
        "dask_scheduler": ["--port", "0"],
        "dask_worker": ["--nworkers", "2", "--nthreads", "1"],
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{name}", *shared, *more],
            env=env,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name, more in words.items()
    ]
    try:
        with Client(scheduler_file=str(file), timeout="60s") as client:
            client.wait_for_workers(2, timeout=60)
            address = client.scheduler.address
        yield address
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(20)
