"""The chapters on the site.

A picture or a reason on every page, numbered figures, folded code, a journal that links, and no
sideways scrolling.
"""

import re

import pytest
from conftest import TOP
from contrast import contrast

from tools.convert import page_path
from medseg.runs.journal import ROW_IDS
from tools.site import chapters, read_sidebar

CHAPTERS = [c for c in chapters(read_sidebar(TOP)[1]) if not c.startswith("experiments/")]


@pytest.fixture(scope="module")
def bodies(site):
    "What stands between the menus, by the path of a page."
    found = {
        p.relative_to(site["top"]).as_posix(): p.read_text(encoding="utf-8")
        for p in site["top"].rglob("*.html")
    }
    return {p: text[text.index("<article") : text.index("</article>")] for p, text in found.items()}


def test_small_and_quick(site):
    assert site["seconds"] < 180
    assert sum(p.stat().st_size for p in site["top"].rglob("*") if p.is_file()) < 60e6


def test_every_page_has_a_picture_or_a_reason(bodies):
    bare = [
        p
        for p, body in bodies.items()
        if not re.search(r"<(img|svg|canvas|iframe)\b(?![^>]*twemoji)", body)
        and "No picture" not in body
    ]
    assert len(bodies) > 100 and not bare, bare
    excused = [
        c
        for c in CHAPTERS
        if not re.search(r"<(img|svg|canvas|iframe)\b(?![^>]*twemoji)", bodies[page_path(c)])
    ]
    assert excused == ["glossary.ipynb", "11_runs/15_demo.ipynb"], "a chapter shows a picture"


def test_figures_are_numbered(bodies):
    for chapter in CHAPTERS:
        body = bodies[page_path(chapter)]
        told = [int(n) for n in re.findall(r'id="figure-(\d+)"', body)]
        assert told == list(range(1, len(told) + 1)) and len(told) == body.count(
            'class="figure"'
        ), chapter


def test_long_code_is_folded_and_functions_have_their_source(bodies):
    page = bodies["05_data/slab.html"]
    assert page.count('<details class="source">') > 4 and 'class="api"' in page
    for chapter in CHAPTERS:
        open_ = re.sub(r"<details.*?</details>", "", bodies[page_path(chapter)], flags=re.S)
        for block in re.findall(r'<div class="highlight">(.*?)</div>', open_, re.S):
            assert block.count("\n") <= 32, (chapter, block[:200])


def test_formulas_need_no_script(bodies):
    assert any("<math" in b for b in bodies.values()) and not any(
        "katex" in b.lower() or "mathjax" in b.lower() for b in bodies.values()
    )


def test_the_journal_is_there_and_links(bodies):
    page = bodies["journal.html"]
    assert (
        all(f'<tr id="{i}">' in page for i in ROW_IDS) and "<svg" in page and "contradict" in page
    )


def test_the_map_is_drawn_from_imports(bodies):
    assert "translate uses io" in bodies["index.html"] and "package-map" not in bodies["index.html"]


@pytest.fixture(scope="module")
def chromium():
    "Debian's chromium."
    from playwright import sync_api

    with sync_api.sync_playwright() as p:
        try:
            browser = p.chromium.launch(
                executable_path="/usr/bin/chromium",
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            )
        except sync_api.Error as e:
            pytest.skip(f"no chromium: {e.message.splitlines()[0]}")
        yield browser
        browser.close()


def visits(browser, site, **how):
    "Each page of the site in one window of the browser."
    page = browser.new_context(**how).new_page()
    for path in sorted(site["top"].rglob("*.html")):
        page.goto(path.as_uri())
        yield path.relative_to(site["top"]).as_posix(), page


WIDE = "document.documentElement.scrollWidth > innerWidth"


@pytest.mark.browser
def test_no_page_is_wider_than_a_telephone(site, chromium):
    "At 390 pixels, and nobody else is asked."
    view, asked = dict(width=390, height=800), []
    wide = []
    for name, page in visits(chromium, site, viewport=view):
        if not wide and not asked:
            page.on("request", lambda r: asked.append(r.url))
        if page.evaluate(WIDE):
            wide.append(name)
    assert not wide
    assert not [u for u in asked if not u.startswith(("file://", "data:", "blob:", "about:"))]


SIDEWAYS = """() => {
    document.querySelectorAll('article details').forEach(d => d.open = true);
    return [...document.querySelectorAll('article .highlight pre > code')]
        .filter(c => c.scrollWidth > c.clientWidth + 1).map(c => c.textContent.slice(0, 60));
}"""


@pytest.mark.browser
def test_no_code_scrolls_sideways(site, chromium):
    "At 1300 pixels, also the code that is folded."
    view = dict(width=1300, height=900)
    found = {
        n: s for n, page in visits(chromium, site, viewport=view) if (s := page.evaluate(SIDEWAYS))
    }
    assert not found


COLOURS = """() => [...document.querySelectorAll('article .highlight code span')].map(s => {
    let ground = s;
    const clear = /rgba\\(0, 0, 0, 0\\)|transparent/;
    while (ground && clear.test(getComputedStyle(ground).backgroundColor))
        ground = ground.parentElement;
    const paint = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    return [getComputedStyle(s).color, getComputedStyle(ground).backgroundColor].map(colour => {
        paint.fillStyle = colour;
        paint.fillRect(0, 0, 1, 1);
        return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
    });
})"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_code_can_be_read(site, chromium, scheme):
    page = chromium.new_context(color_scheme=scheme).new_page()
    page.goto((site["top"] / "05_data/slab.html").as_uri())
    pairs = {tuple(map(tuple, pair)) for pair in page.evaluate(COLOURS)}
    assert len(pairs) > 3 and not {p for p in pairs if contrast(*p) < 4.5}


@pytest.mark.browser
def test_a_page_in_print_and_by_keyboard(site, chromium):
    "Headings carry links to themselves; folded code is open in print; what scrolls takes focus."
    page = chromium.new_context(viewport=dict(width=390, height=800)).new_page()
    page.goto((site["top"] / "07_segment/metrics.html").as_uri())
    heads = "h => h.querySelector('a.headerlink').getAttribute('href') === '#' + h.id"
    assert page.evaluate(f"[...document.querySelectorAll('article h2')].every({heads})")
    page.wait_for_timeout(1500)
    stuck = """[...document.querySelectorAll('article .md-typeset__scrollwrap, article pre > code')]
        .filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1 && e.tabIndex < 0)"""
    assert page.evaluate(f"{stuck}.length") == 0
    shut = "[...document.querySelectorAll('article details')].filter(d => !d.open).length"
    assert page.evaluate(shut) > 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(shut) == 0


@pytest.mark.browser
@pytest.mark.parametrize(
    "words, first",
    [
        ("2.5D", ("05_data/", "07_segment/")),
        ("2.5-D", ("05_data/", "07_segment/", "index")),
        ("UNet", ("07_segment/unet",)),
        ("CycleGAN", ("08_translate/", "index")),
        ("mode collapse", ("09_collapse/", "index")),
    ],
)
def test_words_of_the_field_are_found(site, chromium, words, first):
    page = chromium.new_page()
    page.goto((site["top"] / "index.html").as_uri())
    page.keyboard.press("/")
    page.keyboard.type(words)
    found = page.locator(".md-search-result__item a.md-search-result__link").first
    found.wait_for(timeout=20_000)
    place = found.get_attribute("href").split("?")[0].split("_docs/")[-1]
    assert place.startswith(first), place


@pytest.mark.browser
def test_in_a_browser(site, chromium):
    "Search finds a symbol; next and previous lead on; no page complains."
    complaints = []
    page = chromium.new_page()
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.goto((site["top"] / "05_data/slab.html").as_uri())
    for way in ("prev", "next"):
        assert page.locator(f".md-footer__link--{way}").count()
    page.keyboard.press("/")
    page.keyboard.type("reassemble")
    page.locator(".md-search-result__item").first.wait_for(timeout=20_000)
    assert "reassemble" in page.locator(".md-search-result__list").inner_text()
    assert not complaints
