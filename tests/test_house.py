"The house: nothing is built twice."

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from conftest import TOP

LONGEST_SHARED = 11  # formatted lines


class _Shape(ast.NodeTransformer):
    "Code without what it is called: names, numbers, texts and docstrings."

    def visit_Name(self, node):
        return ast.Name("x", node.ctx)

    def visit_arg(self, node):
        return ast.arg("x", None)

    def visit_Constant(self, node):
        return ast.Constant(0)

    def visit_JoinedStr(self, node):
        return ast.Constant(0)

    def visit_keyword(self, node):
        return ast.keyword("x", self.visit(node.value))

    def visit_Attribute(self, node):
        return ast.Attribute(self.visit(node.value), "x", node.ctx)

    def _bare(self, node):
        self.generic_visit(node)
        node.name, node.body = "x", _code(node.body)
        return node

    def visit_FunctionDef(self, node):
        node.returns = None
        return self._bare(node)

    visit_ClassDef = _bare


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_data(node: ast.stmt) -> bool:
    "A field of a class, or a name for a constant: what is declared, not what is done."
    if not isinstance(node, ast.Assign):
        return isinstance(node, ast.AnnAssign)
    calls = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
    return all(isinstance(f, ast.Name) and f.id == "dict" for f in calls)


def _code(block: list[ast.stmt]) -> list[ast.stmt]:
    "The statements of a block without docstrings and imports."
    skipped = (ast.Import, ast.ImportFrom)
    return [s for s in block if not isinstance(s, skipped) and not _is_text(s)]


def _blocks(tree: ast.Module) -> Iterator[list[ast.stmt]]:
    "Statements that follow each other, everywhere in a file."
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            if isinstance(block := getattr(node, field, None), list):
                yield _code(block)


def _lines(node: ast.AST) -> set[int]:
    return set(range(node.lineno, node.end_lineno + 1))


def _prose(tree: ast.Module) -> set[int]:
    "Lines that hold a docstring or go on within a text."
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and _is_text(node):
            found |= _lines(node)
        elif isinstance(node, ast.Constant):
            found |= _lines(node) - {node.lineno}
    return found


def _runs(path: Path) -> Iterator[tuple[tuple, tuple[int, int]]]:
    "The shape and the place of each shortest run of statements that is too long to be shared."
    tree = ast.parse(path.read_text())
    prose, data = _prose(tree), {s.lineno for s in ast.walk(tree) if _is_data(s)}
    for block in _blocks(_Shape().visit(tree)):
        # what is declared, such as the parameters of an experiment, does not count
        size = [0 if s.lineno in data else len(_lines(s) - prose) for s in block]
        shapes = [ast.dump(s) for s in block]
        for first in range(len(block)):
            last, found = first, size[first]
            while found <= LONGEST_SHARED and last + 1 < len(block):
                last += 1
                found += size[last]
            run = block[first : last + 1]
            if found > LONGEST_SHARED:
                yield tuple(shapes[first : last + 1]), (run[0].lineno, run[-1].end_lineno)


def shared(paths: list[Path]) -> list[str]:
    "Pairs of places whose code has one shape, each pair once."
    places = defaultdict(list)
    for path in paths:
        for shape, (first, last) in _runs(path):
            places[shape].append((path, first, last))
    found = []
    for same in places.values():
        for (p, a, b), (q, c, d) in zip(same, same[1:]):
            if p != q or c > b:
                found.append(f"{p}:{a}-{b} ~ {q}:{c}-{d}")
    return found


def test_no_two_places_share_twelve_lines():
    paths = [p for part in ("medseg", "tools", "tests") for p in sorted((TOP / part).rglob("*.py"))]
    assert not (found := shared(paths)), "\n".join(found)


def test_the_check_sees_through_other_names(tmp_path):
    lines = [f"    v{k} = work(v{k - 1}, {k})" for k in range(1, 13)]
    first, other = (f'def {name}(v0):\n    "{name}"\n' for name in ("one", "two"))
    copy = "\n".join(lines).replace("v", "w").replace("work", "toil")
    (tmp_path / "a.py").write_text(first + "\n".join(lines))
    (tmp_path / "b.py").write_text("import os\n" + other.replace("v0", "w0") + copy)
    (tmp_path / "c.py").write_text(other + "\n".join(lines[:10]))
    paths = sorted(tmp_path.iterdir())
    assert len(shared(paths[:2])) == 2  # the functions, and what they do
    assert not shared(paths[::2])
