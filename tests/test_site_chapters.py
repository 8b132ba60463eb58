"The chapters on the site: a picture or a reason on every page, numbered figures, folded code, a journal that links, and no sideways scrolling."
import re

import pytest
from conftest import TOP

from medseg.log.convert import page_path
from medseg.log.journal import IDS
from medseg.log.site import chapters, read_sidebar

CHAPTERS = [c for c in chapters(read_sidebar(TOP)[1]) if not c.startswith("experiments/")]


@pytest.fixture(scope="module")
def bodies(site):
    "What stands between the menus, by the path of a page."
    found = {p.relative_to(site["top"]).as_posix(): p.read_text(encoding="utf-8") for p in site["top"].rglob("*.html")}
    return {p: text[text.index("<article"):text.index("</article>")] for p, text in found.items()}


def test_small_and_quick(site):
    assert site["seconds"] < 180
    assert sum(p.stat().st_size for p in site["top"].rglob("*") if p.is_file()) < 60e6


def test_every_page_has_a_picture_or_a_reason(bodies):
    bare = [p for p, body in bodies.items() if not re.search(r"<(img|svg|canvas|iframe)\b(?![^>]*twemoji)", body) and "No picture" not in body]
    assert len(bodies) > 100 and not bare, bare
    excused = [c for c in CHAPTERS if not re.search(r"<(img|svg|canvas|iframe)\b(?![^>]*twemoji)", bodies[page_path(c)])]
    assert excused == ["glossary.ipynb", "6_log/04_demo.ipynb"], "a chapter shows a picture"


def test_figures_are_numbered(bodies):
    for chapter in CHAPTERS:
        body = bodies[page_path(chapter)]
        told = [int(n) for n in re.findall(r'id="figure-(\d+)"', body)]
        assert told == list(range(1, len(told) + 1)) and len(told) == body.count('class="figure"'), chapter


def test_long_code_is_folded_and_functions_have_their_source(bodies):
    page = bodies["2_data/slab.html"]
    assert page.count('<details class="source">') > 4 and 'class="api"' in page
    for chapter in CHAPTERS:
        open_ = re.sub(r"<details.*?</details>", "", bodies[page_path(chapter)], flags=re.S)
        for block in re.findall(r'<div class="highlight">(.*?)</div>', open_, re.S): assert block.count("\n") <= 32, (chapter, block[:200])


def test_formulas_need_no_script(bodies): assert any("<math" in b for b in bodies.values()) and not any("katex" in b.lower() or "mathjax" in b.lower() for b in bodies.values())


def test_the_journal_is_there_and_links(bodies):
    page = bodies["journal.html"]
    assert all(f'<tr id="{i}">' in page for i in IDS) and "<svg" in page and "contradict" in page


def test_the_map_is_drawn_from_imports(bodies): assert "translate uses volumes" in bodies["index.html"] and "package-map" not in bodies["index.html"]


@pytest.mark.browser
def test_in_a_browser(site):
    "Search finds a symbol; nothing scrolls sideways at 420 px in either theme; next and previous lead on; nobody else is asked."
    from playwright import sync_api
    asked, complaints, wide = [], [], []
    with sync_api.sync_playwright() as p:
        try: browser = p.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        except sync_api.Error as e: pytest.skip(f"no chromium: {e.message.splitlines()[0]}")
        for scheme in ("light", "dark"):
            page = browser.new_context(color_scheme=scheme, viewport=dict(width=420, height=900)).new_page()
            page.on("request", lambda r: asked.append(r.url)); page.on("pageerror", lambda e: complaints.append(str(e)))
            page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
            for name in ("index", "glossary", "journal", "2_data/slab", "5_translate/leak", "6_log/stale"):
                page.goto((site["top"]/f"{name}.html").as_uri())
                if page.evaluate("document.documentElement.scrollWidth > innerWidth"): wide.append((scheme, name))
        page = browser.new_page(); page.goto((site["top"]/"2_data/slab.html").as_uri())
        assert page.locator(".md-footer__link--prev").count() and page.locator(".md-footer__link--next").count()
        page.keyboard.press("/"); page.keyboard.type("reassemble")
        page.locator(".md-search-result__item").first.wait_for(timeout=20_000)
        assert "reassemble" in page.locator(".md-search-result__list").inner_text()
        browser.close()
    assert not wide and not complaints, (wide, complaints[:5])
    assert not [u for u in asked if not u.startswith(("file://", "data:", "blob:", "about:"))]
