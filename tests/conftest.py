"Where things are, for the tests that span chapters."
from pathlib import Path

import pytest
import torch

TOP = Path(__file__).parents[1]


LONGEST = ("related", "zdepth", "phantom", "translate_run", "experiments", "generators", "cyclegan", "site", "scale", "spine", "launch", "memory", "provenance")


def pytest_collection_modifyitems(items):
    "The longest files first, so that no process is left with one of them while the other has nothing to do."
    order = {f"test_{name}.py": n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session")
def top() -> Path:
    return TOP


@pytest.fixture(scope="module")
def one_thread():
    "Small networks are slower on many threads."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
