"Where things are, for the tests that span chapters."
from pathlib import Path

import pytest
import torch

TOP = Path(__file__).parents[1]


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
