"Where things are, for the tests that span chapters."

import os
import time
from pathlib import Path

# nothing that takes long to load: with several workers, the process that shares out the tests would
# load it too, and all would wait
import pytest

TOP = Path(__file__).parents[1]


LONGEST = (
    "lab",
    "related",
    "zdepth",
    "phantom",
    "translate_run",
    "experiments",
    "generators",
    "cyclegan",
    "site",
    "scale",
    "spine",
    "launch",
    "memory",
    "provenance",
)


def pytest_collection_modifyitems(items):
    """The longest files first, so that no process is left with one of them while the other has
    nothing to do.
    """
    order = {f"test_{name}.py": n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session")
def top() -> Path:
    return TOP


@pytest.fixture(scope="module")
def one_thread():
    "Small networks are slower on many threads."
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def once(tmp_path_factory, name, make):
    """`make(folder)` once for all workers of a test run; the others wait.

    A folder and the seconds that it took.
    """
    top = tmp_path_factory.getbasetemp()
    folder = (top.parent if os.environ.get("PYTEST_XDIST_WORKER") else top) / name
    try:
        folder.mkdir()
    except FileExistsError:
        while not (folder / "done").exists():
            time.sleep(0.5)
    else:
        began = time.perf_counter()
        try:
            make(folder)
        finally:
            (folder / "done").write_text(str(time.perf_counter() - began))
    return folder, float((folder / "done").read_text())


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """The manifest of four small phantom patients, two to train and two to test.

    Drawn once for all workers, by two processes. Nobody changes them.
    """
    from medseg.data.cohort import make_cohort

    folder, _ = once(
        tmp_path_factory,
        "patients",
        lambda folder: make_cohort(
            folder / "cohort", train=2, test=2, inplane_mm=8.0, spacings=(8.0, 10.0)
        ),
    )
    return folder / "cohort" / "manifest.csv"


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The whole book with twenty hostile runs and a plain one, and the seconds that it took.

    Built once for all workers.
    """
    from hostile import HOSTILE, hostile_run
    from tools.site import make_site

    def make(folder):
        for i, bad in enumerate(HOSTILE):
            hostile_run(folder / "runs" / f"run {i}", bad)
        hostile_run(folder / "runs" / "plain", "a plain word")
        make_site(folder / "_docs", TOP, runs=(folder / "runs",))

    folder, seconds = once(tmp_path_factory, "book", make)
    return dict(
        top=folder / "_docs",
        runs={bad: folder / "runs" / f"run {i}" for i, bad in enumerate(HOSTILE)},
        plain=folder / "runs" / "plain",
        seconds=seconds,
    )
