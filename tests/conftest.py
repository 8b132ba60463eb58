"Where things are, for the tests that span chapters."
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def top() -> Path:
    return TOP
