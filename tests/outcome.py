"What came of reading a file."

import warnings
from collections.abc import Callable
from pathlib import Path

from medseg.io.files import InputError, RepairWarning


def outcome(read: Callable, path: Path) -> tuple:
    "What `read` returned and the codes of what it said, or the code and message of its refusal."
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            found = read(path)
        except InputError as error:
            return error.code, str(error)
    said = [w.message.codes for w in heard if w.category is RepairWarning]
    return found, [code for codes in said for code in codes]
