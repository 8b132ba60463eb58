"Which chapters are older than what made them, and executing those again"

import argparse
import json
import os
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.uses import Package, chapter_code, chapter_uses, read_package
from medseg.io.files import digest, write_text


def file_digest(path: Path) -> str:
    """What a file or folder is like now, as one word.

    Parameters
    ----------
    path
        a file, or a folder, whose names count
    """
    # without what no clone has
    if path.is_dir():
        return digest(
            *sorted(p.name for p in path.iterdir() if p.name != "runs" and p.name[0] not in "._")
        )[:8]
    return digest(path)[:8] if path.is_file() else "missing"


def output_digest(nb: dict) -> str:
    """A digest of all outputs of a notebook.

    Parameters
    ----------
    nb
        a notebook
    """
    return digest(
        json.dumps(
            [c.get("outputs", []) for c in nb["cells"] if c["cell_type"] == "code"], sort_keys=True
        )
    )


def made_of(nb: dict, files: list[str], root: Path, package: Package) -> tuple[dict, set[str]]:
    """What the outputs of a chapter would be made of if it were executed now.

    Parameters
    ----------
    nb
        a notebook
    files
        that it read, as paths in the project
    root
        the project

    Returns
    -------
    tuple[dict, set[str]]
        the record that belongs to it now; the definitions that it rests on
    """
    code, data = chapter_code(nb), {f: file_digest(root / f) for f in files}
    used = chapter_uses(code, package)
    for f in files:
        used |= (
            chapter_uses(chapter_code(json.loads((root / f).read_text(encoding="utf-8"))), package)
            if f.endswith(".ipynb") and (root / f).exists()
            else set()
        )
    names = digest(*(f"{n} {package.digests[n]}" for n in sorted(used)))
    return dict(cells=digest(code), names=names, data=data, outputs=output_digest(nb)), used


FILE = "nbs/digests.json"


def read_digests(root: Path) -> dict:
    """What is written down; nothing if there is no file.

    Returns
    -------
    dict
        "chapters": path -> record; "names": full name -> digest
    """
    try:
        return json.loads((root / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return dict(chapters={}, names={})


def write_digests(root: Path, found: dict):
    "One line a chapter, one line a name."
    parts = [
        f' "{key}": {{\n'
        + ",\n".join(
            f"  {json.dumps(k)}: {json.dumps(v, sort_keys=True)}"
            for k, v in sorted(found[key].items())
        )
        + "\n }"
        for key in ("chapters", "names")
    ]
    write_text(root / FILE, "{\n" + ",\n".join(parts) + "\n}\n")


def notebooks(root: Path) -> list[str]:
    "All chapters, as paths inside nbs/; experiments keep no outputs."
    found = (p.relative_to(root / "nbs").as_posix() for p in (root / "nbs").rglob("*.ipynb"))
    return sorted(f for f in found if not re.search(r"(^|/)[._]|^experiments/", f))


def why_stale(nb: dict, known: dict, names: dict, root: Path, package: Package) -> list[str]:
    """The reasons to execute a chapter again.

    Parameters
    ----------
    nb
        the chapter
    known
        its record; {} if there is none
    names
        full name -> digest, as written down

    Returns
    -------
    list[str]
        what changed; empty for a fresh chapter
    """
    if not known:
        return ["never executed by this command"]
    now, used = made_of(nb, list(known["data"]), root, package)
    found = ["its own cells"] * (now["cells"] != known["cells"]) + [
        f for f, d in now["data"].items() if d != known["data"][f]
    ]
    if now["names"] != known["names"]:
        found += sorted(n for n in used if names.get(n) != package.digests[n]) or [
            "the definitions it uses"
        ]
    return found + ["its outputs, changed by another hand"] * (now["outputs"] != known["outputs"])


def stale(root: str | Path = ".") -> dict[str, list[str]]:
    """The chapters whose outputs are not known to be made by the code of today.

    Parameters
    ----------
    root
        the project

    Returns
    -------
    dict[str, list[str]]
        chapter -> reasons
    """
    root = Path(root)
    kept, package = read_digests(root), read_package(root / "medseg")

    def look(c):
        return why_stale(
            json.loads((root / "nbs" / c).read_text(encoding="utf-8")),
            kept["chapters"].get(c, {}),
            kept["names"],
            root,
            package,
        )

    return {c: why for c in notebooks(root) if (why := look(c))}


_LISTEN = (Path(__file__).parent / "assets" / "listen.py").read_text(encoding="utf-8")
_TELL = (
    "import json, os; print(json.dumps(sorted(p for p in _files_that_were_read if"
    " os.path.exists(os.path.join(%r, p)))))"
)


def execute(chapter: str, root: Path) -> tuple[dict, list[str]]:
    """Run a chapter from top to bottom in a fresh kernel; CellExecutionError if a cell fails.

    Parameters
    ----------
    chapter
        path inside nbs/

    Returns
    -------
    tuple[dict, list[str]]
        the notebook with new outputs, cleaned; files of the project that it read
    """
    import nbformat
    from execnb.nbio import dict2nb
    from nbclient import NotebookClient
    from nbdev.clean import clean_nb

    root = root.resolve()
    path = root / "nbs" / chapter
    nb = nbformat.read(path, 4)
    listen = f"{_LISTEN}\n\n_listen({str(root)!r}, 'nbs/{chapter}', _files_that_were_read)"
    cells = [nbformat.v4.new_code_cell(text) for text in (listen, _TELL % str(root))]
    nb.cells = [cells[0], *nb.cells, cells[1]]
    # the package of this project, whatever else is installed
    own = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH")))),
    )
    NotebookClient(
        nb,
        timeout=600,
        startup_timeout=600,
        kernel_name="python3",
        coalesce_streams=True,
        store_widget_state=False,
        extra_arguments=["--IPKernelApp.log_level=50"],
        resources={"metadata": {"path": str(path.parent)}},
    ).execute(env=own)
    read = json.loads(nb.cells.pop()["outputs"][0]["text"])
    nb.cells.pop(0)
    nb = dict2nb(json.loads(nbformat.writes(nb)))
    clean_nb(nb, allowed_cell_metadata_keys=["tags"])
    return nb, read


def refresh(
    root: str | Path = ".", only: tuple = (), workers: int = 1, told=print
) -> dict[str, str]:
    """Execute every stale chapter, keep its new outputs, and write down what made them.

    Parameters
    ----------
    root
        the project
    only
        chapters, as paths inside nbs/; none means all
    workers
        chapters at a time
    told
        takes a line of text for each chapter

    Returns
    -------
    dict[str, str]
        chapters that failed -> why
    """
    from execnb.nbio import write_nb

    root, failed, lock = Path(root), {}, threading.Lock()
    kept, package, left = read_digests(root), read_package(root / "medseg"), stale(root)
    todo = {c: why for c, why in left.items() if not only or c in only}

    def one(chapter):
        try:
            nb, read = execute(chapter, root)
        except Exception as e:
            failed[chapter] = re.sub(r"\x1b\[[\d;]*m", "", str(e)).strip()[-400:]
            return told(f"{chapter}: failed")
        write_nb(nb, root / "nbs" / chapter)
        with lock:
            kept["chapters"][chapter] = made_of(
                json.loads((root / "nbs" / chapter).read_text(encoding="utf-8")),
                read,
                root,
                package,
            )[0]
            write_digests(root, kept)
            left.pop(chapter)
        told(f"{chapter}: executed ({', '.join(todo[chapter][:3])})")

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, todo))
    kept["chapters"] = {c: r for c, r in kept["chapters"].items() if c in notebooks(root)}
    behind = set().union(
        *(
            made_of(json.loads((root / "nbs" / c).read_text(encoding="utf-8")), [], root, package)[
                1
            ]
            for c in left
            if c in kept["chapters"]
        )
    )
    kept["names"] = {
        n: kept["names"].get(n, "") if n in behind else d for n, d in package.digests.items()
    }
    write_digests(root, kept)
    return failed


def main():
    "Command line: list stale chapters, or execute them."
    args = argparse.ArgumentParser(
        prog="python -m tools.stale",
        description="List chapters whose outputs are not known to be made by the code of today.",
    )
    args.add_argument(
        "only",
        nargs="*",
        help="chapters to execute, as paths inside nbs/; all that are stale by default",
    )
    args.add_argument(
        "--write", action="store_true", help="execute them, and keep outputs and digests"
    )
    args.add_argument("--workers", type=int, default=1, help="chapters executed at a time")
    args.add_argument("--root", default=".", help="the project")
    given = args.parse_args()
    failed = refresh(given.root, tuple(given.only), given.workers) if given.write else {}
    for chapter, why in (left := stale(given.root)).items():
        print(
            f"stale: {chapter}: {', '.join(why[:5])}"
            + f" and {len(why) - 5} more" * (len(why) > 5)
            + f"\n{failed.get(chapter, '')}".rstrip()
        )
    sys.exit(bool(left))


if __name__ == "__main__":
    main()
