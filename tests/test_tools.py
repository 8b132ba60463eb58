"What makes the book: chapters become pages, pages a site, and a chapter knows what it was made of."

import ast
import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import TOP
from contrast import contrast, rgb

from medseg.io.files import InputError, write_json
from tools import convert, stale, uses
from tools.convert import Page, colour, finish, headings, narrow, page_path, pandoc, to_page
from tools.site import (
    chapter_pages,
    chapters,
    known_names,
    log_pages,
    make_site,
    quarto_for_nbs,
    read_sidebar,
)
from tools.theme import SITE_CSS, guard, policy, settings


def cell(kind, source, id="", outputs=()):
    "One cell of a notebook."
    found = dict(cell_type=kind, source=source, id=id, metadata={})
    return found | (dict(outputs=list(outputs)) if kind == "code" else {})


SIX = dict(output_type="execute_result", data={"text/plain": "6"}, metadata={})
CHAPTER = dict(
    cells=[
        cell("markdown", "# Doubling\n\n> Twice is enough\n\n**Is two times x more than x?**", "a"),
        cell("code", "#| export\nimport math", "b"),
        cell("code", '#| export\ndef twice(x: float) -> float:\n    "Two times."\n    return 2*x'),
        cell("code", "twice(3)", "d", [SIX]),
        cell("code", "#| hide\nsecret = 1", "e"),
    ]
)
DOC = dict(
    output_type="execute_result",
    metadata={},
    data={
        "text/markdown": "---\n\n### twice\n\n```python\ndef twice(x: float)\n```\n\n*Two times.*"
    },
)
PROCESSED = dict(
    cells=[
        cell("raw", "---\ntitle: Doubling\n---", "x"),
        cell("code", "#| echo: false\nshow_doc(twice)", "y", [DOC]),
        CHAPTER["cells"][3],
    ]
)


def test_directives_and_code_are_told_apart():
    source = '#| export\n#| fig-alt: "a ball"\nx = 1  #| no'
    assert convert.directives(source) == {"export": "", "fig-alt": "a ball"}
    assert convert.code_of(source) == "x = 1  #| no"
    long = "#| fig-alt: >-\n#|   a ball\n#|   that grows\nx = 1"
    assert convert.directives(long) == {"fig-alt": "a ball that grows"}
    assert convert.code_of(long) == "x = 1"


def test_a_chapter_begins_with_its_title():
    said = ("Doubling", "Twice is enough", "**Is two times x more than x?**")
    assert convert.opening(CHAPTER) == said
    with pytest.raises(ValueError, match="must begin with a title"):
        convert.opening(dict(cells=[cell("markdown", "no title")]))


def test_a_picture_has_words():
    before = "## Balls\n\nWe draw a ball. Its `radius` grows with *z*."
    assert convert._alt({}, before) == "Figure: We draw a ball. Its radius grows with z."
    assert convert._alt({"fig-alt": "a ball"}, before) == "a ball"
    png, page = b"\x89PNG...", Page("t")
    out = dict(output_type="display_data", data={"image/png": base64.b64encode(png).decode()})
    made = convert._output(out, page, "fig-1", "a [ball]")
    assert page.files == {"fig-1.png": png} and r"![a \[ball\]](fig-1.png)" in made


def test_a_chapter_becomes_a_page():
    page = to_page(CHAPTER, PROCESSED)
    assert "secret" not in page.markdown and "import math" not in page.markdown
    order = [page.markdown.index(w) for w in ("Is two", "### twice", "return 2*x", "twice(3)")]
    assert order == sorted(order)
    page.markdown += "\n\nSee `twice`, [volumes](../01_io/03_volume.ipynb#the-value).\n\n"
    page.markdown += "| a | b |\n|--:|:-:|\n| 1 | 2 |\n"
    body = colour(finish(page, {"twice": "#twice"}).html)
    for part in (
        '<a href="#twice"><code>twice</code></a>',
        'href="../01_io/volume.html#the-value"',
        '<th class="right">',
        '<div class="highlight">',
        '<h3 id="twice">',
        '<a class="headerlink" href="#twice"',
        '<details class="source"><summary>Source: twice</summary>',
        "<h1>Doubling</h1>",
    ):
        assert part in body, part
    assert "style=" not in body
    assert [h["name"] for h in headings(body)] == ["twice"]


def test_callouts_and_formulas():
    made = pandoc("::: {.callout-note}\n## Mind\nthe *gap* of $\\frac{1}{2}$ mm\n:::")
    assert '<div class="admonition note">' in made and "<math" in made and "Mind" in made
    folded = pandoc('::: {.callout-tip collapse="true"}\n## More\nwords\n:::')
    assert '<details class="tip"><summary>More</summary>' in folded


def test_a_signature_has_one_parameter_a_line():
    said = " ".join(["word"] * 20)
    made = narrow(
        f"def f(\n    a:tuple=(1.0, 2.0), b:io.volume.Volume | None=3,\n    c:str, # {said}\n    #"
        " more\n)->int:"
    )
    assert made.splitlines() == [
        "def f(",
        "    a:tuple=(1.0, 2.0),",
        "    b:Volume | None=3,",
        "    c:str, # " + " ".join(["word"] * 17),
        "        # word word word more",
        ")->int:",
    ]


def test_headings_are_nested():
    body = '<h2 id="a">A &lt; <em>B</em></h2><h3 id="b">C</h3><h2 id="d">D</h2>'
    found = [(h["name"], [c["name"] for c in h["children"]]) for h in headings(body)]
    assert found == [("A &lt; B", ["C"]), ("D", [])]
    assert page_path("01_io/03_volume.ipynb") == "01_io/volume.html"


INKS = {
    "#ffffff": ("#117a70", "#1c5b58", "#17803d", "#c8321f", "#9a5f00"),
    "#1f2729": ("#5cc9bc", "#5fce85", "#ff8a75", "#e9a94b"),
}


@pytest.mark.parametrize("ground", INKS)
def test_words_stand_out(ground):
    assert round(contrast(rgb("#000000"), rgb("#ffffff")), 1) == 21.0
    assert all(contrast(rgb(ink), rgb(ground)) >= 4.5 for ink in INKS[ground])
    assert INKS[ground][0] in SITE_CSS


def test_the_policy_names_the_themes_scripts_only():
    page = Page("t", html="<h1>t</h1><script>evil()</script>")
    head = '<head><meta charset="utf-8"><script>theme()</script></head>'
    guarded = guard(head + page.html, page)
    assert guarded.count("'sha256-") == 1 and "http" not in policy([])
    assert "unsafe" not in policy([])
    with pytest.raises(ValueError, match="the theme changed the text"):
        guard("<head></head>", page)
    told = settings("a book", [], Path("docs"), Path("out"))
    assert "http" not in repr(told) and told["theme"]["font"] is False


CONFIG = """project: {type: website, output-dir: _docs}
website:
  title: a small book
  sidebar:
    contents:
      - nbs/index.ipynb
      - section: "1 Files"
        contents: [nbs/01_io/01_files.ipynb, nbs/01_io/03_volume.ipynb]
"""


def put(path, *cells):
    "A notebook with text cells."
    made = [cell("markdown", source, f"c{i}") for i, source in enumerate(cells)]
    kernel = dict(name="python3", language="python", display_name="python3")
    write_json(
        path, dict(cells=made, metadata={"kernelspec": kernel}, nbformat=4, nbformat_minor=5)
    )


@pytest.fixture
def book(tmp_path):
    "A small book with a log of one run."
    (tmp_path / "_quarto.yml").write_text(CONFIG)
    put(
        tmp_path / "nbs/index.ipynb",
        "# A small book\n\n> To try the builder",
        "Begin with [files](01_io/01_files.ipynb); see run `segment-1`.",
    )
    words = "## Why\n\nA scan of $\\frac{1}{2}$ GB."
    put(tmp_path / "nbs/01_io/01_files.ipynb", "# Files\n\n> Whole or not at all", words)
    see = "See `atomic` in [files](01_files.ipynb#why)."
    put(tmp_path / "nbs/01_io/03_volume.ipynb", "# Volumes\n\n> Numbers and places", see)
    return tmp_path


def test_the_table_of_contents(book):
    title, tree = read_sidebar(book)
    assert chapters(tree) == ["index.ipynb", "01_io/01_files.ipynb", "01_io/03_volume.ipynb"]
    names = "[nbs/01_io/01_files.ipynb, nbs/01_io/03_volume.ipynb]"
    (book / "_quarto.yml").write_text(CONFIG.replace(names, "nbs/01_io/*.ipynb"))
    assert read_sidebar(book)[1] == tree
    put(book / "nbs/01_io/04_volume.ipynb", "# Again")
    with pytest.raises(InputError, match="found 01_io/volume.html; needs one chapter for each"):
        read_sidebar(book)
    (book / "_quarto.yml").write_text(CONFIG.replace("03_volume", "05_none"))
    with pytest.raises(InputError, match="needs a notebook that exists"):
        read_sidebar(book)


def test_the_inner_quarto_file_is_the_outer_one_seen_from_inside():
    more = CONFIG.replace("_docs}", "_docs, render: ['nbs/**']}") + "  post-render: x.py\n"
    inner = yaml.safe_load(quarto_for_nbs(more))
    contents = inner["website"]["sidebar"]["contents"]
    assert contents[1]["contents"][0] == "01_io/01_files.ipynb"
    assert "nbs/" not in quarto_for_nbs(CONFIG) and "post-render" not in quarto_for_nbs(more)
    assert "see docs_nbs/x" in quarto_for_nbs("see docs_nbs/x")


def test_names_lead_to_where_they_are_explained():
    index = {
        "m.files": {
            "m.files.atomic": ("1_v/files.html#atomic", ""),
            "m.files.show": ("1_v/files.html#show", ""),
        },
        "m.page": {"m.page.show": ("6_l/page.html#show", "")},
    }
    paths = ["1_v/files.html", "6_l/page.html"]
    found = {"atomic": "../1_v/files.html#atomic", "show": "#show"}
    assert known_names(index, "6_l/page.html", paths) == found
    assert known_names(index, "index.html", paths) == {"atomic": "1_v/files.html#atomic"}
    assert known_names(index, "index.html", []) == {}


def kept_run(book, data):
    "A run with one picture."
    import matplotlib.pyplot as plt

    run = book / "log" / "segment-1"
    (run / "figures").mkdir(parents=True, exist_ok=True)
    write_json(run / "config.json", dict(experiment="segment", name="<b>bold</b>", reach=2))
    result = dict(state="finished", data=data, headline={"mean liver dice": 0.9})
    write_json(run / "result.json", result)
    fig, _ = plt.subplots(figsize=(1, 1))
    fig.savefig(run / "figures/slice.png", dpi=40)
    plt.close(fig)


@pytest.mark.parametrize("data, pictures", [("phantom", 1), ("real", 0)])
def test_pictures_of_patients_stay_at_home(book, data, pictures):
    kept_run(book, data)
    pages = log_pages(book / "log")
    assert [len(p.files) for p in pages.values()] == [0, 0, pictures]
    assert all("<b>bold" not in p.html for p in pages.values())


def test_a_small_site(book):
    kept_run(book, "phantom")
    pages = chapter_pages(book, read_sidebar(book)[1], book / "nbs")
    assert '<a href="log/segment-1' in pages["index.html"].html
    assert "<math" in pages["01_io/files.html"].html
    index = make_site("_docs", book, done=book / "nbs")
    assert index.exists()
    for path in (book / "_docs").rglob("*.html"):
        text = path.read_text()
        assert "Content-Security-Policy" in text
        foreign = r'<(?:script|img|iframe)[^>]*src="(?:https?:)?//|<link[^>]*href="(?:https?:)?//'
        assert not re.findall(foreign, text), path
        for href in re.findall(r'<a [^>]*href="([^"#:]+?)(?:#[^"]*)?"', text):
            assert (path.parent / href).exists(), (path, href)
    (book / "mine").mkdir()
    (book / "mine/thesis.txt").touch()
    with pytest.raises(InputError, match="no site of ours"):
        make_site("mine", book, done=book / "nbs")


NUMBERS = """
START = 0
def total(values):
    "Add."
    return sum(values, START)
def mean(values): return total(values)/len(values)
"""
PICTURES = """
from .numbers import mean
COLOUR = "teal"
TABLE = {}
def draw(mean, colour=COLOUR): return mean, colour
TABLE["draw"] = draw
def drawn(name): return TABLE[name]
def lazy(values):
    from .numbers import mean as middle
    return middle(values)
"""


@pytest.fixture
def toy():
    "A package of two modules."
    package = uses.Package({}, {}, {}, {})
    uses.read_module("medseg.toy.numbers", NUMBERS, package)
    uses.read_module("medseg.toy.pictures", PICTURES, package)
    return package


def short(names):
    return sorted(n.rpartition(".")[2] for n in names if "<" not in n)


def said(code):
    "What a piece of code mentions."
    names = {
        "mean": "medseg.toy.numbers.mean",
        "COLOUR": "medseg.toy.pictures.COLOUR",
        "n": "medseg.toy.numbers",
    }
    return uses.mentions(code, names)


def test_comments_and_layout_do_not_count():
    one = ast.parse(NUMBERS.split("0", 1)[1]).body[0]
    two = ast.parse("def total(values):  # any\n    return sum(values,\n        START)").body[0]
    assert uses.bare(one) == uses.bare(two)
    assert "Add" in uses.bare(ast.parse('@app.command()\ndef total(): "Add."').body[0])


def test_what_a_piece_of_code_mentions():
    mean = "medseg.toy.numbers.mean"
    brought = {"mean": mean, "middle": mean}
    assert uses.imported(ast.parse(PICTURES), "medseg.toy.pictures") == brought
    assert said("def draw(mean, colour=COLOUR): return mean") == {"medseg.toy.pictures.COLOUR"}
    assert said("n.mean([1])") == {mean}
    assert said("run('from medseg.toy.numbers import mean')") == {mean}
    assert said("run('-m', 'medseg.toy.numbers')") == {"medseg.toy.numbers"}
    assert said("[mean for mean in values]") == set()


def test_what_a_piece_of_code_rests_on(toy):
    assert short(uses.below(said("mean([1, 2])"), toy)) == ["START", "mean", "total"]
    drawn = short(uses.below({"medseg.toy.pictures.drawn"}, toy))
    assert drawn == ["COLOUR", "TABLE", "draw", "drawn"]
    lazy = short(uses.below({"medseg.toy.pictures.lazy"}, toy))
    assert lazy == ["START", "lazy", "mean", "total"]


def test_what_a_chapter_rests_on(toy):
    def rests(*cells):
        nb = dict(cells=[dict(cell_type="code", source=source) for source in cells])
        return short(uses.chapter_uses(uses.chapter_code(nb), toy))

    cells = ["%matplotlib inline", "from medseg.toy.numbers import mean", "mean([1, 2])"]
    assert rests(*cells) == ["START", "mean", "total"]
    more = [*cells, "from medseg.toy.pictures import draw\ndraw(0)"]
    assert rests(*more) == ["COLOUR", "START", "draw", "mean", "total"]
    hung = 'from medseg.toy.pictures import TABLE\ndef sketch(): return 1\nTABLE["sketch"] = sketch'
    uses.read_module("medseg.toy.more", hung, toy)
    asks = ["from medseg.toy.pictures import drawn\ndrawn('sketch')"]
    assert "sketch" not in rests(*asks)
    assert "sketch" in rests(*asks, "from medseg.toy import more")


def test_the_map_counts_imports(tmp_path):
    code = {"io": "", "data": "from ..io.a import x, y", "runs": "from medseg.data.a import z"}
    for part, text in code.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.py").write_text(text)
    drawn = uses.part_map(tmp_path, list(code))
    assert "data uses io 2 times" in drawn and "runs uses data 1 times" in drawn


@pytest.fixture
def project(tmp_path):
    "A package of one module, and two chapters that use it."
    for folder in ("nbs/01_a", "medseg/toy", "log"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("medseg", "medseg/toy"):
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "medseg/toy/sums.py").write_text(
        "def total(values): return sum(values)\n"
        "def mean(values): return total(values)/len(values)\n"
        "def most(values): return max(values)\n"
    )
    (tmp_path / "log/heights.txt").write_text("170 180 190")
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = medseg\n")
    read = "mean([int(h) for h in open('../../log/heights.txt').read().split()])"
    for name, cells in (
        ("01_mean", ["from medseg.toy.sums import mean", read]),
        ("02_most", ["from medseg.toy.sums import most\nprint(most([1, 2]))"]),
    ):
        made = [cell("code", c, f"c{i}") | dict(execution_count=None) for i, c in enumerate(cells)]
        kernel = dict(name="python3", language="python", display_name="python3")
        nb = dict(cells=made, metadata={"kernelspec": kernel}, nbformat=4, nbformat_minor=5)
        (tmp_path / f"nbs/01_a/{name}.ipynb").write_text(json.dumps(nb))
    return tmp_path


def test_a_chapter_is_stale_when_what_made_it_changed(project):
    fresh = ["never executed by this command"]
    assert stale.stale(project) == {"01_a/01_mean.ipynb": fresh, "01_a/02_most.ipynb": fresh}
    assert stale.refresh(project) == {} and stale.stale(project) == {}
    sums, heights = project / "medseg/toy/sums.py", project / "log/heights.txt"
    mean = project / "nbs/01_a/01_mean.ipynb"

    def after(path, old, new):
        "Which chapters are stale while `old` is replaced by `new`."
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        found = stale.stale(project)
        path.write_text(text)
        return {c[5:7]: why for c, why in found.items()}

    total = {"01": ["medseg.toy.sums.total"]}
    assert after(sums, "return sum(values)", "return 0 + sum(values)") == total
    assert after(sums, "max(values)", "min(values)") == {"02": ["medseg.toy.sums.most"]}
    assert after(sums, "max(values)", "max(  values)  # greatest") == {}
    assert after(heights, "190", "191") == {"01": ["log/heights.txt"]}
    assert after(mean, "int(h)", "float(h)") == {"01": ["its own cells"]}
    changed = {"01": ["its outputs, changed by another hand"]}
    assert after(mean, "180.0", "175.0") == changed
    sums.write_text(sums.read_text().replace("max(values)", "max(values) + no_such_name"))
    assert "no_such_name" in stale.refresh(project)["01_a/02_most.ipynb"]
    done = subprocess.run(
        [sys.executable, "-m", "tools.stale", "--root", str(project)],
        capture_output=True,
        text=True,
        cwd=TOP,
        env=dict(os.environ),
    )
    assert done.returncode == 1
    assert "stale: 01_a/02_most.ipynb: medseg.toy.sums.most" in done.stdout
