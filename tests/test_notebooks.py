"Each chapter is small, clean, named by kernel, and tells before it exports."

import ast
import json
import re

import pytest
from conftest import TOP

CHAPTERS = sorted((TOP / "nbs").glob("[0-9][0-9]_*/*.ipynb"))
EXPERIMENTS = sorted((TOP / "nbs" / "experiments").glob("*.ipynb"))


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


def test_there_are_chapters():
    assert len(CHAPTERS) > 15 and EXPERIMENTS


@pytest.mark.parametrize("path", CHAPTERS + EXPERIMENTS, ids=lambda p: p.stem)
def test_small_and_clean(path):
    assert path.stat().st_size < 500_000, f"{path.stat().st_size/1000:.0f} kB"
    nb = json.loads(path.read_text(encoding="utf-8"))
    assert nb["metadata"]["kernelspec"]["name"] == "python3"
    ids = [c["id"] for c in nb["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in nb["cells"]:
        for out in cell.get("outputs", []):
            assert out["output_type"] != "error", f"a cell ended in an error: {source(cell)[:80]}"


@pytest.mark.parametrize("path", CHAPTERS + EXPERIMENTS, ids=lambda p: p.stem)
def test_leaves_the_process_as_it_was(path):
    """Chapters are tested one after the other in one process.

    What a cell does to its environment or folder, all later ones would meet.
    """
    found = [
        line
        for c in cells(path)
        if c["cell_type"] == "code"
        for line in source(c).splitlines()
        if re.match(r"os\.environ\[.*\] *=|os\.environ\.update|os\.(chdir|putenv)", line)
    ]
    assert not found, found


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_reads_as_a_chapter(path):
    found = cells(path)
    first = source(found[0])
    assert (
        first.startswith("# ") and "\n> " in first and "?" in first
    ), "a title, a subtitle and a question come first"
    pictures = [
        i
        for i, c in enumerate(found)
        for o in c.get("outputs", [])
        if {"image/png", "image/svg+xml", "text/html"} & set(o.get("data", {}))
    ]
    assert (
        pictures and pictures[0] < 10
    ), f"a picture among the first ten cells; found at {pictures[:1]}"
    exports = [
        i for i, c in enumerate(found) if c["cell_type"] == "code" and "#| export" in source(c)
    ]
    for i in exports[1:]:
        assert any(
            c["cell_type"] == "markdown" for c in found[max(0, i - 3) : i]
        ), f"no prose before: {source(found[i])[:80]}"
    assert "What we learned" in source([c for c in found if c["cell_type"] == "markdown"][-1])


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiments_have_parameters(path):
    tagged = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1, "one cell is tagged `parameters`"
    assert "#| export" not in "".join(map(source, cells(path))), "an experiment exports nothing"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_an_experiment_reads_like_a_page(path):
    code = [c for c in cells(path) if c["cell_type"] == "code"]
    told = [c for c in code if "parameters" in c["metadata"].get("tags", [])]
    long = [source(c) for c in code if c not in told and len(source(c).splitlines()) > 20]
    assert not long, f"a cell above 20 lines: {long[0][:80]}"
    twin = (TOP / "medseg" / "experiments" / f"{path.stem}.py").read_text(encoding="utf-8")
    wide = [line for line in twin.splitlines() if len(line) > 100]
    assert not wide, f"above 100 columns: {wide[0]}"
    groups = [line for line in source(told[0]).splitlines() if line.startswith("# ")]
    assert len(groups) > 2 and source(told[0]).startswith("# "), "parameters in named groups"


def stored(node):
    "The names that a cell sets, but not those inside its functions and comprehensions."
    inner = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp)
    if isinstance(node, (*inner, ast.GeneratorExp)):
        return
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    for child in ast.iter_child_nodes(node):
        yield from stored(child)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_a_parameter_is_named_once(path):
    "One frozen config is built from the parameters; no cell lists them again or changes them."
    code = [c for c in cells(path) if c["cell_type"] == "code"]
    told = [c for c in code if "parameters" in c["metadata"].get("tags", [])]
    names = set(stored(ast.parse(source(told[0]))))
    rest = "\n".join(source(c) for c in code if c not in told)
    assert rest.count("frozen(globals())") == 1
    tree = ast.parse(rest)
    assert not (again := names & set(stored(tree))), f"set again: {sorted(again)}"
    fields = [n.target.id for n in ast.walk(tree) if isinstance(n, ast.AnnAssign)]
    assert not (again := names & set(fields)), f"listed again: {sorted(again)}"
    own = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    own |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert not (past := names & read - own), f"read past the config: {sorted(past)}"


def lines_of_code(path):
    "Lines of a module without docstrings, comments and blank ones."
    text = path.read_text(encoding="utf-8")
    told = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            told |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(bool(x.strip()) and x.lstrip()[0] != "#" and n not in told for n, x in lines)


def test_modules_stay_small():
    "One statement stands on a line, and parameters are explained in full: only code is counted."
    paths = [p for p in (TOP / "medseg").rglob("*.py") if p.stem[0] != "_"]
    sizes = {str(p.relative_to(TOP)): lines_of_code(p) for p in paths}
    assert sizes and max(sizes.values()) < 400, {k: v for k, v in sizes.items() if v >= 400}
