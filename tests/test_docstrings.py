"Every public function says what it does and what each of its parameters is."

import importlib
import inspect
import re

import pytest
from conftest import TOP

SKIPPED = ("cli", "experiments", "_modidx.py", "__main__.py", "__init__.py")
MODULES = sorted(
    ".".join(path.relative_to(TOP).with_suffix("").parts)
    for path in (TOP / "medseg").rglob("*.py")
    if not set(path.relative_to(TOP).parts) & set(SKIPPED)
)


def public_functions(module) -> dict:
    "Name -> function, without what only wraps it."
    found = {name: getattr(module, name) for name in module.__all__}
    bare = {name: inspect.unwrap(f) for name, f in found.items() if callable(f)}
    return {name: f for name, f in bare.items() if inspect.isfunction(f)}


def explained(doc: str) -> set[str]:
    "The names that the section Parameters explains: each on its line, with words below it."
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n-+$|\Z)", doc, re.M | re.S)
    named = re.findall(r"^\*{0,2}(\w+)(?: :.*)?\n {4}\S", section[1] if section else "", re.M)
    return set(named)


def one_summary(doc: str) -> bool:
    "Whether the first line ends a sentence or stands alone; a long sentence may take two lines."
    paragraph = doc.split("\n\n")[0]
    first, *more = paragraph.split("\n")
    long = len(more) == 1 and paragraph.endswith(".")
    return not more or first.endswith((".", ":")) or long


def faults(name: str, function) -> list[str]:
    "What the docstring of a function lacks, in words."
    doc = inspect.getdoc(function)
    if not doc:
        return [f"{name}: no docstring"]
    known, parameters = explained(doc), inspect.signature(function).parameters
    summary = [] if one_summary(doc) else [f"{name}: first line goes on"]
    return summary + [f"{name}: {p} is not explained" for p in parameters if p not in known]


@pytest.mark.parametrize("module", MODULES)
def test_every_parameter_is_explained(module):
    found = public_functions(importlib.import_module(module))
    assert [word for name, f in found.items() for word in faults(name, f)] == []


def test_what_is_missing_is_named():
    def of(x, *rest, **more):
        """All is well here.

        Parameters
        ----------
        x
            mm
        *rest
            mm

        Returns
        -------
        more
            mm
        """

    assert faults("of", of) == ["of: more is not explained"]
    of.__doc__ = "A line that\ngoes on"
    assert faults("of", of)[0] == "of: first line goes on"
    of.__doc__ = None
    assert faults("of", of) == ["of: no docstring"]
