"""The architecture is a test.

A chapter imports only from a lower part, or from a lower number of its own part.
"""

import ast
import re
import subprocess
import sys

from conftest import TOP

PKG = TOP / "medseg"


def imported(part: str, tree: ast.AST) -> list[str]:
    "The modules of medseg that a module imports, as part.name."
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [a.name for a in node.names]
            found += [name if node.level == 2 else f"{part}.{name}" for name in names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medseg."):
            found.append(node.module.removeprefix("medseg."))
    return found


def test_imports_point_down():
    floor = {}  # "zdepth.survey" -> ("04", "01"): part, chapter
    for path in PKG.glob("*/[!_]*.py"):
        if where := re.search(r"nbs/(\d\d)_\w+/(\d\d)_", path.read_text()):
            floor[f"{path.parent.name}.{path.stem}"] = where.groups()
    assert floor, "nothing exported: run `make prep` first"
    for name, here in floor.items():
        part, stem = name.split(".")
        for other in imported(part, ast.parse((PKG / part / f"{stem}.py").read_text())):
            assert floor[other] < here, f"{name} {here} imports {other} {floor[other]}"


def test_the_package_does_without_tools():
    "What makes the book is not in the wheel, so nothing in the package may need it."
    for path in PKG.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "tools", path
            if isinstance(node, ast.Import):
                assert not any(a.name.split(".")[0] == "tools" for a in node.names), path


def test_nothing_unsafe_in_the_product():
    "No pickle, no torch.load, no eval, no shell strings, no unsafe yaml, anywhere in the package."
    banned = re.compile(
        r"\bpickle\b|torch\.load\b|(?<![\w.])eval\(|(?<![\w.])exec\(|shell\s*=\s*True|yaml\.load\b|allow_pickle\s*=\s*True|os\.system"
    )
    files = list(PKG.rglob("*.py"))
    assert len(files) > 10
    for path in files:
        code = "\n".join(
            line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")
        )
        tree = ast.parse(code)
        for node in ast.walk(tree):  # texts are not code
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.value = ""
        assert not (hit := banned.search(ast.unparse(tree))), f"{path}: {hit.group(0)}"


def test_no_name_is_missing_or_unused():
    "A chapter can run because a hidden cell imported a name; the exported module must stand alone."
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--isolated",
            "--select",
            "F",
            "--ignore",
            "F822",
            str(PKG),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
