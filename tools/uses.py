"Which definitions of the package a piece of code rests on, and the map of its imports"

import ast
import re
import symtable
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from medseg.io.files import digest


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """The tree and all statements in it, at any depth, without a look at expressions, which hold
    none.
    """
    todo = [tree]
    for node in todo:
        yield node
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            todo += getattr(node, part, ())


def bare(stmt: ast.stmt) -> str:
    """The code of `stmt` without comments, layout and docstrings.

    What has a decorator keeps them.

    Parameters
    ----------
    stmt
        a statement of a module or chapter; loses its docstrings
    """
    for node in [] if getattr(stmt, "decorator_list", None) else _statements(stmt):
        if (
            isinstance(node, (ast.FunctionDef, ast.ClassDef))
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(stmt)


def imported(tree: ast.AST, module: str) -> dict[str, str]:
    """The names that `tree` imports from the package.

    Parameters
    ----------
    tree
        a module, a chapter or one statement
    module
        its full name; "" for a chapter

    Returns
    -------
    dict[str, str]
        name in `tree` -> full name, of medseg only
    """
    found, parts = {}, module.split(".")
    for node in _statements(tree):
        if isinstance(node, ast.ImportFrom):
            origin = (
                ".".join(parts[: -node.level] + [node.module] * bool(node.module))
                if node.level
                else node.module
            )
            found |= {a.asname or a.name: f"{origin}.{a.name}" for a in node.names}
        if isinstance(node, ast.Import):
            found |= {
                a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0]
                for a in node.names
            }
    return {name: full for name, full in found.items() if full.split(".")[0] == "medseg"}


def _globals(table) -> set[str]:
    "The names that a piece of code takes from the module around it."
    here = {s.get_name() for s in table.get_symbols() if s.is_referenced() and s.is_global()}
    return here.union(*map(_globals, table.get_children()))


def _in_text(text: str) -> set[str]:
    "What a text that is code, or the name of a module, would import."
    found = {
        f"{m}.{n.split(' as ')[0].strip()}"
        for m, names in re.findall(r"from (medseg[\w.]*) import ([\w, ]+)", text)
        for n in names.split(",")
    }
    return (
        found
        | set(re.findall(r"import (medseg\.[\w.]+)", text))
        | {m for m in [text] if re.fullmatch(r"medseg(\.[a-z]\w*)+", m)}
    )


def _dotted(node: ast.AST) -> list[str]:
    "`a.b.c` as its words; nothing if it does not begin with a name."
    if isinstance(node, ast.Name):
        return [node.id]
    return (
        [*found, node.attr]
        if isinstance(node, ast.Attribute) and (found := _dotted(node.value))
        else []
    )


def mentions(text: str, names: dict[str, str], module: str = "") -> set[str]:
    """Everything of the package that the code mentions.

    Parameters
    ----------
    text
        code: one statement, or a whole chapter
    names
        what a name means here, see `imported`
    module
        where it stands

    Returns
    -------
    set[str]
        full names; of a module, if the code holds one in its hand
    """
    return set(_mentions(text, tuple(names.items()), module))


@lru_cache(20_000)  # most of a project is as it was when it is asked again
def _mentions(text: str, names: tuple, module: str) -> frozenset[str]:
    code, names = ast.parse(text), dict(names)
    late = (
        imported(
            ast.Module(
                [s for s in code.body if not isinstance(s, (ast.Import, ast.ImportFrom))], []
            ),
            module,
        )
        if "import" in text
        else {}
    )
    known = {
        n: names[n] for n in _globals(symtable.symtable(text, "code", "exec")) if n in names
    } | late
    found, roots, todo = set(late.values()), set(), [code]
    for node in todo:
        for part in vars(node).values():
            todo += (
                [n for n in part if isinstance(n, ast.AST)]
                if isinstance(part, list)
                else [part] if isinstance(part, ast.AST) else []
            )
        if isinstance(node, ast.Attribute) and (dots := _dotted(node)) and dots[0] in known:
            found |= {".".join([known[dots[0]], *dots[1:k]]) for k in range(2, len(dots) + 1)}
            roots.add(dots[0])
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= _in_text(node.value)
    return frozenset(
        found | {full for name, full in known.items() if name not in roots or full.count(".") > 2}
    )


@dataclass(frozen=True)
class Package:
    """Every definition of a package.

    Parameters
    ----------
    digests
        full name -> digest of its code
    uses
        full name -> full names it mentions
    loads
        module -> modules it imports
    hung
        full name -> statements elsewhere that change it
    """

    digests: dict[str, str]
    uses: dict[str, set[str]]
    loads: dict[str, set[str]]
    hung: dict[str, set[str]]


def made(stmt: ast.stmt) -> list[str]:
    "The names that a statement defines."
    if isinstance(stmt, (ast.FunctionDef, ast.ClassDef)):
        return [stmt.name]
    targets = (
        stmt.targets
        if isinstance(stmt, ast.Assign)
        else [stmt.target] if isinstance(stmt, ast.AnnAssign) else []
    )
    flat = [
        t
        for target in targets
        for t in (target.elts if isinstance(target, ast.Tuple) else [target])
    ]
    return [t.id for t in flat if isinstance(t, ast.Name)]


def _changed(stmt: ast.stmt) -> list[ast.AST]:
    """What a statement changes beside what it defines.

    Decorators, parts of a table, the object whose method it calls; else all it mentions.
    """
    if isinstance(stmt, (ast.FunctionDef, ast.ClassDef)):
        return stmt.decorator_list
    if isinstance(stmt, ast.Assign):
        return [t for t in stmt.targets if isinstance(t, (ast.Subscript, ast.Attribute))]
    if (
        isinstance(stmt, ast.Expr)
        and isinstance(stmt.value, ast.Call)
        and isinstance(stmt.value.func, ast.Attribute)
    ):
        return [stmt.value.func.value]
    return [] if made(stmt) else [stmt]


def read_module(name: str, text: str, package: Package):
    """Add the definitions of a module to `package`.

    Parameters
    ----------
    name
        full, such as "medseg.io.files"
    text
        its source
    package
        takes its pieces
    """
    tree = ast.parse(text)
    body = [
        s
        for s in tree.body
        if not isinstance(s, (ast.Import, ast.ImportFrom))
        and not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
    ]
    brought = imported(tree, name)
    names = brought | {n: f"{name}.{n}" for s in body for n in made(s)}
    package.loads[name] = {full.rpartition(".")[0] for full in brought.values()} | {
        *brought.values()
    }
    for stmt in body:
        code = bare(stmt)
        found = mentions(code, names, name)
        pieces = [f"{name}.{n}" for n in made(stmt) if n != "__all__"] or [
            f"{name}.<{digest(code)[:8]}>"
        ]
        for piece in pieces:
            package.digests[piece] = digest(package.digests.get(piece, ""), code)[:8]
            package.uses.setdefault(piece, set()).update(found - {piece})
        for node in _changed(stmt):
            for target in mentions(ast.unparse(node), names, name):
                package.hung.setdefault(target, set()).update(pieces)


def read_package(top: str | Path) -> Package:
    """The definitions of every module below `top`.

    Parameters
    ----------
    top
        the folder medseg/
    """
    package, top = Package({}, {}, {}, {}), Path(top)
    for path in sorted(top.glob("*/[!_]*.py")):
        if path.parent.name == "experiments":
            continue
        read_module(
            ".".join([top.name, *path.relative_to(top).with_suffix("").parts]),
            path.read_text(encoding="utf-8"),
            package,
        )
    return package


def below(start: set[str], package: Package, imports: Iterable[str] = ()) -> set[str]:
    """All that `start` uses, at any depth.

    Parameters
    ----------
    start
        full names; a module stands for all that it defines
    imports
        full names that are imported without being mentioned

    Returns
    -------
    set[str]
        full names of definitions
    """
    found, todo, loaded = set(), set(start), set()
    _load({*start, *imports}, package, loaded)
    while todo:
        while todo:
            name = todo.pop()
            if name in package.loads:
                todo |= {n for n in package.digests if n.rpartition(".")[0] == name} - found
            if name in found or name not in package.digests:
                continue
            found.add(name)
            _load(package.uses[name], package, loaded)
            todo |= package.uses[name] - found
        todo = {
            h
            for n in found
            for h in package.hung.get(n, ())
            if h in package.digests and h.rpartition(".")[0] in loaded
        } - found
    return found


def _load(names: set[str], package: Package, loaded: set[str]):
    "Add to `loaded` the modules that are loaded when `names` are imported."
    todo = {n if n in package.loads else n.rpartition(".")[0] for n in names} - loaded
    while todo:
        loaded.add(module := todo.pop())
        todo |= {m for m in package.loads.get(module, ()) if m in package.loads} - loaded


def chapter_code(nb: dict) -> str:
    """All code of a chapter; lines for IPython become texts.

    SyntaxError for what Python cannot read.

    Parameters
    ----------
    nb
        a notebook

    Returns
    -------
    str
        without comments and layout
    """
    return _plain(
        "\n\n".join("".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "code")
    )


@lru_cache(1000)
def _plain(code: str) -> str:
    return ast.unparse(ast.parse(re.sub(r"^[%!].*$", lambda line: repr(line[0]), code, flags=re.M)))


def chapter_uses(code: str, package: Package) -> set[str]:
    """Every definition of the package on which the outputs of a chapter can depend.

    Parameters
    ----------
    code
        of a chapter, see `chapter_code`

    Returns
    -------
    set[str]
        full names
    """
    brought = imported(ast.parse(code), "")
    return below(mentions(code, brought), package, brought.values())


def part_map(top: str | Path, parts: list[str]) -> str:
    """A drawing of how many imports lead from each part of the package to each.

    Parameters
    ----------
    top
        the folder medseg/
    parts
        folders in it, from the lowest to the highest

    Returns
    -------
    str
        an <svg> element
    """
    counts = _imports(Path(top), parts)
    wide, high, left = 52, 26, 118
    drawn = []
    for row, part in enumerate(parts):
        y = high * row + 30
        modules = len(list(Path(top, part).glob("[!_]*.py")))
        drawn.append(_words(8, y + 17, f"{part} ({modules})", "start", 12))
        drawn.append(_words(left + wide * row + wide / 2, 20, part, "middle", 11))
        for column in range(row + 1):
            n = counts.get((part, parts[column]), 0)
            shade = "none" if not n else f"rgba(42,143,134,{min(1, .25 + n / 80):.2f})"
            x = left + wide * column
            drawn.append(
                f'<rect x="{x + 1}" y="{y + 1}" width="{wide - 2}" height="{high - 2}"'
                f' rx="4" fill="{shade}" stroke="currentColor" stroke-opacity=".25"/>'
            )
            if n:
                drawn.append(_words(x + wide / 2, y + 17, str(n), "middle", 11))
    told = "; ".join(
        f"{a} uses " + ", ".join(f"{b} {counts[a, b]} times" for b in parts if (a, b) in counts)
        for a in parts[1:]
    )
    size = f"0 0 {left + wide * len(parts) + 8} {high * len(parts) + 38}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" role="img"'
        f' aria-label="{told}">{"".join(drawn)}</svg>'
    )


def _words(x: float, y: float, words: str, anchor: str, size: int) -> str:
    "A piece of text in a drawing."
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"'
        f' fill="currentColor">{words}</text>'
    )


def _imports(top: Path, parts: list[str]) -> dict[tuple[str, str], int]:
    "How many names each part imports from each other part."
    counts = {}
    for part in parts:
        for path in (top / part).glob("[!_]*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for full in imported(tree, f"medseg.{part}.{path.stem}").values():
                target = (full + ".").split(".")[1]
                if target in parts and target != part:
                    counts[part, target] = counts.get((part, target), 0) + 1
    return counts
