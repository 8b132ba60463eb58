"Each chapter is small, clean, named by kernel, and tells before it exports."
import json
import re

import pytest
from conftest import TOP

CHAPTERS = sorted((TOP/"nbs").glob("[1-9]_*/*.ipynb"))
EXPERIMENTS = sorted((TOP/"nbs"/"experiments").glob("*.ipynb"))


def cells(path): return json.loads(path.read_text(encoding="utf-8"))["cells"]
def source(cell): return "".join(cell["source"])


def test_there_are_chapters(): assert len(CHAPTERS) > 15 and EXPERIMENTS


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
    "Chapters are tested one after the other in one process: what a cell does to its environment or folder, all later ones would meet."
    found = [line for c in cells(path) if c["cell_type"] == "code" for line in source(c).splitlines() if re.match(r"os\.environ\[.*\] *=|os\.environ\.update|os\.(chdir|putenv)", line)]
    assert not found, found


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_reads_as_a_chapter(path):
    found = cells(path)
    first = source(found[0])
    assert first.startswith("# ") and "\n> " in first and "?" in first, "a title, a subtitle and a question come first"
    pictures = [i for i, c in enumerate(found) for o in c.get("outputs", [])
                if {"image/png", "image/svg+xml", "text/html"} & set(o.get("data", {}))]
    assert pictures and pictures[0] < 10, f"a picture among the first ten cells; found at {pictures[:1]}"
    exports = [i for i, c in enumerate(found) if c["cell_type"] == "code" and "#| export" in source(c)]
    for i in exports[1:]:
        assert any(c["cell_type"] == "markdown" for c in found[max(0, i - 3):i]), f"no prose before: {source(found[i])[:80]}"
    assert "What we learned" in source([c for c in found if c["cell_type"] == "markdown"][-1])


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiments_have_parameters(path):
    tagged = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1, "one cell is tagged `parameters`"
    assert "#| export" not in "".join(map(source, cells(path))), "an experiment exports nothing"


def test_modules_stay_small():
    sizes = {str(p.relative_to(TOP)): len(p.read_text().splitlines()) for p in (TOP/"medseg").rglob("*.py") if p.stem[0] != "_"}
    assert sizes and max(sizes.values()) < 300, {k: v for k, v in sizes.items() if v >= 300}
