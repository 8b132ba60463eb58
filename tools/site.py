"The book, its reference and its log as a site: one folder that needs no server"

import argparse
import html
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from medseg.runs.budget import budget_page
from medseg.runs.compare import compare_runs
from medseg.runs.compare_page import comparison_page, read_comparisons
from tools.convert import Page, colour, finish, headings, page_path, to_page
from medseg.runs.journal import journal_page, read_journal
from medseg.runs.listing import FILTER, log_page
from medseg.runs.page import RUN_CSS, run_page
from medseg.runs.record import find_runs, page_name, read_run
from tools.theme import BOOK, SITE_CSS, WORKER, guard, settings
from tools.uses import part_map
from medseg.io.files import InputError, write_text, where_supported


def quarto_for_nbs(text: str) -> str:
    """The same site seen from inside `nbs/`.

    Parameters
    ----------
    text
        the `_quarto.yml` at the top

    Returns
    -------
    str
        the one for the folder nbs/
    """
    text = re.sub(r"^ *post-render:.*\n", "", text, flags=re.M)
    text = re.sub(r"(?<![\w./-])nbs/", "", text)
    return "# Made from ../_quarto.yml by tools.site; edit that one.\n" + text


def sync_quarto(root: str | Path = ".") -> Path:
    """Make `nbs/_quarto.yml` agree with the `_quarto.yml` at the top.

    Parameters
    ----------
    root
        the project

    Returns
    -------
    Path
        nbs/_quarto.yml
    """
    inner, text = Path(root) / "nbs" / "_quarto.yml", quarto_for_nbs(
        (Path(root) / "_quarto.yml").read_text(encoding="utf-8")
    )
    if not inner.exists() or inner.read_text(encoding="utf-8") != text:
        write_text(inner, text)
    return inner


def _entry(entry, nbs: Path, listed: Path) -> list:
    "One line of the sidebar as a list of paths, (text, address) pairs and {section: [...]} dicts."
    if isinstance(entry, dict) and "section" in entry:
        return [
            {
                entry["section"]: [
                    e for c in _list(entry["contents"]) for e in _entry(c, nbs, listed)
                ]
            }
        ]
    if isinstance(entry, dict) and "href" in entry and not entry["href"].endswith(".ipynb"):
        return [(entry["text"], entry["href"])]
    name = entry["href"] if isinstance(entry, dict) else entry
    found = sorted(nbs.glob(name.removeprefix("nbs/")))
    if not found:
        raise InputError(
            "chapter_missing",
            listed,
            "sidebar",
            name,
            "a notebook that exists",
            "write the chapter or take the line out",
        )
    return [p.relative_to(nbs).as_posix() for p in found]


def _list(value) -> list:
    return value if isinstance(value, list) else [value]


def read_sidebar(root: str | Path = ".") -> tuple[str, list]:
    """The title of the book and its table of contents.

    InputError for a chapter that is not there.

    Parameters
    ----------
    root
        the project, with _quarto.yml and nbs/

    Returns
    -------
    tuple[str, list]
        title; entries: path of a notebook inside nbs/, (text, address), or {section: entries}
    """
    file = Path(root) / "_quarto.yml"
    try:
        site = yaml.safe_load(file.read_text(encoding="utf-8"))["website"]
        tops = _list(site["sidebar"]["contents"])
    except (OSError, yaml.YAMLError, KeyError, TypeError) as e:
        raise InputError(
            "sidebar_unreadable",
            file,
            "website.sidebar.contents",
            e,
            "a list of chapters",
            "restore the file",
        ) from None
    tree = [e for c in tops for e in _entry(c, Path(root) / "nbs", file)]
    pages = [page_path(c) for c in chapters(tree)]
    for page in pages:
        if pages.count(page) > 1:
            raise InputError(
                "page_twice", file, "sidebar", page, "one chapter for each page", "rename a chapter"
            )
    return site["title"], tree


def parts(root: Path) -> list[str]:
    "The parts of the package, from the lowest to the highest: the order of the folders in nbs/."
    return [p.name.partition("_")[2] for p in sorted((root / "nbs").glob("[0-9][0-9]_*"))]


def chapters(tree: list) -> list[str]:
    "The notebooks of a table of contents, in order."
    return [
        c
        for e in tree
        for c in (
            [e] if isinstance(e, str) else chapters([*e.values()][0]) if isinstance(e, dict) else []
        )
    ]


# nbdev would execute the exported cells of each chapter in a shell of its own; here a module that
# they are exported to is imported once, and one shell documents what stands in it
_PROCESS = """import functools
import importlib
import nbdev.processors as p
from nbdev.config import get_config
from nbdev.serve import proc_nbs
p.CaptureShell = functools.cache(p.CaptureShell)
p._do_eval = lambda cell: p.cell_lang(cell) == 'python' and p._is_showdoc(cell)
begin = p.exec_show_docs.begin
def begun(self):
    begin(self)
    for name in (n for c in self.nb.cells for n in c.directives_.get('default_exp', [])):
        module = importlib.import_module(f'{get_config().lib_name}.{name}')
        self.k.user_ns.update(vars(module))
p.exec_show_docs.begin = begun
proc_nbs(force=True, n_workers=0)"""


def process(root: str | Path = ".") -> Path:
    """Let nbdev hide and document the cells of all chapters.

    Parameters
    ----------
    root
        the project, with settings.ini

    Returns
    -------
    Path
        the folder of processed notebooks
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROCESS], cwd=root, capture_output=True, text=True
    )
    if done.returncode:
        said = [
            line
            for line in done.stderr.splitlines()
            if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)
        ]
        raise InputError(
            "chapter_broken",
            root,
            "nbdev",
            "; ".join(said[::-1]) or "no result",
            "chapters that are exported and can be imported",
            "run nbdev_export and nbdev_test",
        )
    return Path(root) / "_proc"


def _up(address: str, page: str) -> str:
    "`address` in the site as seen from `page`."
    return (
        address.removeprefix(page)
        if address.startswith(page + "#")
        else "../" * page.count("/") + address
    )


def known_names(index: dict, page: str, pages: Iterable[str]) -> dict[str, str]:
    """Where the names that this page may mention are explained.

    Parameters
    ----------
    index
        nbdev's index: module -> {full name: (address, file)}
    page
        path of the page that links, such as "01_io/files.html"
    pages
        the pages that exist

    Returns
    -------
    dict[str, str]
        short name -> address as seen from `page`
    """
    found: dict[str, set] = {}
    for module, names in index.items():
        for full, (address, _) in names.items():
            name, target = full.removeprefix(module + "."), address.split("#")[0]
            if not name.startswith("_") and "." not in name and target in pages:
                found.setdefault(name, set()).add(address)
    own = {n: a for n, all_ in found.items() for a in all_ if a.split("#")[0] == page}
    return {
        n: _up(own.get(n) or next(iter(a)), page)
        for n, a in found.items()
        if n in own or len(a) == 1
    }


def chapter_pages(root: str | Path, tree: list, done: Path) -> dict[str, Page]:
    """Every chapter as HTML.

    Parameters
    ----------
    root
        the project
    tree
        from `read_sidebar`
    done
        from `process`

    Returns
    -------
    dict[str, Page]
        by the path of the page
    """
    names = {page_path(c): c for c in chapters(tree)}
    try:
        index = importlib.import_module("medseg._modidx").d["syms"]
    except ImportError:
        index = {}
    runs = {Path(run).name: page_name(run) for run in find_runs(Path(root) / "log")}

    def made(path: str) -> Page:
        nb, out = (
            json.loads((top / names[path]).read_text(encoding="utf-8"))
            for top in (Path(root) / "nbs", done)
        )
        try:
            page = to_page(nb, out, Path(path).stem)
        except ValueError as e:
            raise InputError(
                "chapter_broken", names[path], "cells", e, "a chapter", "correct the notebook"
            ) from None
        kept = {run: _up(f"log/{stem}.html", path) for run, stem in runs.items()}
        return finish(page, known_names(index, path, names) | kept)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each waits for a pandoc
        return dict(zip(names, pool.map(made, names)))


def log_pages(*tops: str | Path) -> dict[str, Page]:
    """The list of runs, what they cost, a page for each, and pages that compare them.

    Parameters
    ----------
    *tops
        folders that hold runs; the first may hold a list of comparisons

    Returns
    -------
    dict[str, Page]
        log.html, budget.html, log/<run>.html and log/<comparison>.html
    """
    runs, listed = find_runs(*tops), [
        one for top in tops[:1] for one in read_comparisons(Path(top) / "comparisons.yaml")
    ]
    more = [(one["title"], f"log/{one['page']}.html", one["question"]) for one in listed] + [
        ("What can be done with what one has", "budget.html", "8 GB, 32 GB, a CPU, a night")
    ]
    pages = {
        "log.html": Page(
            "All runs",
            html=(
                f"<h1>All runs</h1>\n{log_page(runs, more=more)}\n<script"
                ' src="assets/log.js"></script>'
            ),
        ),
        "budget.html": Page(
            "Budget", html=f"<h1>What can be done with what one has</h1>\n{budget_page(runs)}"
        ),
    }
    for folder in runs:
        run, stem = read_run(folder), page_name(folder)
        shown = [png for png, _ in run["figures"]] if run["data"] == "phantom" else []
        files = {f"{stem}-{i}.png": png for i, png in enumerate(shown, 1)}
        pages[f"log/{stem}.html"] = Page(
            f"Run {stem}", html=f'{_back(run["name"])}{run_page(folder, list(files))}', files=files
        )
    for one in listed:
        told = compare_runs(one["folders"], one["score"], one["by"])
        pages[f"log/{one['page']}.html"] = Page(
            f"Comparison {one['page'].split('-', 2)[2].replace('-', ' ')}",
            html=_back(one["title"])
            + comparison_page(told, one["folders"], one["question"], links=True),
        )
    return pages


def _back(name: str) -> str:
    return f'<p><a href="../log.html">All runs</a></p>\n<h1>{html.escape(name)}</h1>\n'


def _nav(tree: list, pages: dict[str, Page]) -> list:
    "The table of contents as mkdocs wants it."

    def one(e):
        if isinstance(e, dict):
            return {name: _nav(inner, pages) for name, inner in e.items()}
        path = e[1] if isinstance(e, tuple) else page_path(e)
        name = (
            e[0]
            if isinstance(e, tuple)
            else "The map" if path == "index.html" else pages[path].title
        )
        return {name: path.replace(".html", ".md")}

    return [one(e) for e in tree]


def _stubs(pages: dict[str, Page], docs: Path):
    "The files that mkdocs reads: a title for each page, pictures, style and script."
    for path, page in pages.items():
        # the search shows text as markup
        stub, hidden = (
            docs / path.replace(".html", ".md"),
            path.startswith("log") and "&lt;" in page.html,
        )
        meta = dict(
            title=page.title,
            description=page.subtitle or page.title,
            search=dict(exclude=hidden, boost=0.3 if path.startswith("log") else 1),
            hide=["toc"] if path == "log.html" else [],
        )
        write_text(stub, f"---\n{json.dumps(meta)}\n---\n")
        for name, data in page.files.items():
            (stub.parent / name).write_bytes(data)
    importlib.import_module("pygments.formatters")  # a missing extra is told here, not half way
    write_text(docs / "assets/site.css", SITE_CSS + RUN_CSS)
    write_text(docs / "assets/iframe-worker.js", WORKER)
    write_text(docs / "assets/book.js", BOOK)
    write_text(docs / "assets/log.js", FILTER)


def _build(title: str, tree: list, pages: dict[str, Page], out: Path):
    "Let mkdocs put menu, search and policy around the pages."
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.plugins import BasePlugin
    from mkdocs.structure.toc import get_toc

    class Pages(BasePlugin):
        def on_page_content(self, html, page, config, files):
            page.toc = get_toc(headings(pages[page.url].html))
            return pages[page.url].html

        def on_post_page(self, output, page, config):
            return colour(guard(output, pages[page.url]))

    with tempfile.TemporaryDirectory() as folder:
        docs = Path(folder) / "docs"
        _stubs(pages, docs)
        write_text(
            Path(folder) / "mkdocs.yml", json.dumps(settings(title, _nav(tree, pages), docs, out))
        )
        config = load_config(str(Path(folder) / "mkdocs.yml"))
        config.plugins["pages"] = Pages()
        build(config)


def make_site(
    out: str | Path = "_docs", root: str | Path = ".", runs: tuple = (), done: Path | None = None
) -> Path:
    """Build the book, its reference and its log as one folder that needs no network.

    Parameters
    ----------
    out
        folder to make or replace
    root
        the project
    runs
        folders with runs beside log/
    done
        processed notebooks; None lets nbdev make them

    Returns
    -------
    Path
        index.html
    """
    root, out = Path(root).resolve(), (Path(root) / out).resolve()
    if out.exists() and any(out.iterdir()) and not (out / ".medseg-site").exists():
        raise InputError(
            "not_a_site",
            out,
            "folder",
            "files that are no site of ours",
            "a new or empty folder",
            "choose another name or move it away",
        )
    title, tree = read_sidebar(root)
    sync_quarto(root)
    with ThreadPoolExecutor() as pool:
        notebooks = pool.submit(lambda: done or process(root))  # another process
        logs = log_pages(root / "log", *runs)
        pages = chapter_pages(root, tree, notebooks.result()) | logs
    if (root / "log/journal.yaml").exists():
        pages["journal.html"] = Page(
            "The journal",
            "Every sentence of the two notes, and what became of it",
            html=f'<div class="run">{journal_page(*read_journal(root))}</div>',
        )
    tree.append({"Log": [(name, page) for name, page in LOG if page in pages]})
    if "index.html" in pages:
        pages["index.html"].html = re.sub(
            MAP, lambda _: part_map(root / "medseg", parts(root)), pages["index.html"].html
        )
    for path in pages.keys() - {
        page_path(c) for c in chapters(tree) if not c.startswith("experiments/")
    }:
        say_why_no_picture(path, pages[path])
    new = Path(tempfile.mkdtemp(prefix=".site-", dir=out.parent))
    try:
        _build(title, tree, pages, new)
        _place(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return out / "index.html"


MAP = r'<div id="package-map">\s*</div>'  # in the opening chapter; takes the drawing of the package

REASONS = {
    "experiments/": (
        "an experiment stands here as it is written; its pictures are on the pages of its runs"
    ),
    "log.html": "a list; pictures are on the pages of the runs",
    "budget.html": "tables, made from the records of the runs",
    "log/": "this run left none, or it saw scans of patients, which are not shown",
}


# pages that are made from the records of runs; Quarto, which cannot make them, does not list them
LOG = [("The journal", "journal.html"), ("All runs", "log.html"), ("Budget", "budget.html")]


def say_why_no_picture(path: str, page: Page):
    "Add a sentence to a page that is no chapter and shows nothing."
    why = next((words for start, words in REASONS.items() if path.startswith(start)), None)
    if why and not re.search(r"<(img|svg)\b", page.html):
        page.html += f'<p class="no-picture">No picture: {why}.</p>'


def _place(new: Path, out: Path):
    "Give a finished site its name; what mkdocs adds for servers only is left out."
    for extra in ("404.html", "sitemap.xml", "sitemap.xml.gz"):
        (new / extra).unlink(missing_ok=True)
    (new / ".medseg-site").touch()
    with where_supported():
        new.chmod(0o755)
    shutil.rmtree(out, ignore_errors=True)
    new.rename(out)


def main():
    "Command line: build the site, say where it is and how long it took."
    args = argparse.ArgumentParser(prog="python -m tools.site", description=make_site.__doc__)
    args.add_argument("--out", default="_docs", help="folder to make")
    args.add_argument("--runs", nargs="*", default=[], help="folders with runs beside log/")
    given, began = args.parse_args(), time.perf_counter()
    try:
        index = make_site(given.out, runs=tuple(given.runs))
    except InputError as e:
        sys.exit(str(e))
    print(f"{os.path.relpath(index)} in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
