"""The site: one source for its contents, every link leads somewhere, nothing from another host, no
text becomes markup.
"""

import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from conftest import TOP
from hostile import HOSTILE

from medseg.runs.page import write_page
from medseg.runs.record import page_name, one_line_value
from tools.site import chapters, quarto_for_nbs, read_sidebar


class Look(HTMLParser):
    "All elements of a page with their attributes, and all its text."

    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], []
        # colours of words, thousands a page, and the bytes of pictures hold nothing that is asked
        # here
        self.feed(re.sub(r'</?span(?: class="\w{1,3}")?>|(?<=base64,)[\w+/=]+', "", text))
        self.said = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def shape(self):
        return {(tag, name) for tag, attrs in self.found for name in [*attrs, ""]}


@pytest.fixture(scope="module")
def pages(site):
    return {
        path: Look(path.read_text(encoding="utf-8")) for path in sorted(site["top"].rglob("*.html"))
    }


def page_of(site, folder):
    return site["top"] / "log" / f"{page_name(folder)}.html"


def test_quarto_files_agree():
    inner = TOP / "nbs" / "_quarto.yml"
    assert inner.read_text() == quarto_for_nbs((TOP / "_quarto.yml").read_text()), "run make site"


def test_every_chapter_is_in_the_sidebar():
    listed = set(chapters(read_sidebar(TOP)[1]))
    there = {
        p.relative_to(TOP / "nbs").as_posix()
        for p in (TOP / "nbs").rglob("*.ipynb")
        if not re.search(r"/[._]", p.relative_to(TOP).as_posix())
    }
    assert listed == there, f"add to _quarto.yml: {sorted(there - listed)}"


def test_every_link_leads_somewhere(pages, site):
    ids = {
        path: {a[k] for _, a in look.found for k in ("id", "name") if a.get(k)}
        for path, look in pages.items()
    }
    broken, checked = [], 0
    for path, look in pages.items():
        for tag, attrs in look.found:
            for value in (attrs.get("href"), attrs.get("src")):
                if not value or urlsplit(value).scheme:
                    continue
                link = urlsplit(value)
                checked += 1
                target = (path.parent / unquote(link.path)).resolve() if link.path else path
                if target.is_dir():
                    target = target / "index.html"
                if not target.exists() or site["top"] not in target.parents:
                    broken.append((path.name, value))
                elif link.fragment and target in ids and unquote(link.fragment) not in ids[target]:
                    broken.append((path.name, value))
    assert checked > 500 and not broken, broken[:20]


def test_nothing_from_another_host(pages, site):
    for path, look in pages.items():
        for tag, attrs in look.found:
            for name in ("src", "href", "srcset", "data", "action", "poster"):
                if tag != "a" and re.match(r"(\w+:)?//", attrs.get(name) or ""):
                    raise AssertionError((path.name, tag, attrs))
    for path in site["top"].rglob("*.css"):
        assert not re.search(
            r"""(@import|url\()\s*["']?(https?:)?//""", path.read_text(encoding="utf-8")
        ), path


def test_policy_and_pictures_with_words(pages, site):
    for path, look in pages.items():
        rules = [
            a["content"]
            for t, a in look.found
            if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
        ]
        assert len(rules) == 1 and "default-src 'none'" in rules[0] and "http" not in rules[0], path
        script = next(r for r in rules[0].split(";") if "script-src" in r)
        assert "unsafe" not in script and "*" not in script, path
        for tag, attrs in look.found:
            if tag == "img":
                assert len(attrs.get("alt") or "") > 2 or path.parent.name == "log", (path, attrs)
    for folder in site["runs"].values():
        assert (
            "unsafe" not in page_of(site, folder).read_text().split("Content-Security-Policy")[1][
                :900
            ]
        )


@pytest.mark.parametrize("bad", HOSTILE, ids=lambda b: ascii(b)[1:20])
def test_hostile_text_stays_text(bad, site, pages):
    clean = pages[page_of(site, site["plain"])]
    look = pages[page_of(site, site["runs"][bad])]
    assert look.shape() <= clean.shape(), "an element or attribute that a plain run does not have"
    assert sum(t == "script" for t, _ in look.found) == sum(t == "script" for t, _ in clean.found)
    assert not [a for t, a in look.found for name in a if name.startswith("on")]
    assert not [
        a
        for _, a in look.found
        if (a.get("href") or a.get("src") or "")
        .lower()
        .lstrip()
        .startswith(("javascript:", "data:text"))
    ]
    assert (
        " ".join(one_line_value(bad, 120).split()) in look.said
    ), "the text is shown as it is, made visible where it is not"
    alone = Look(write_page(site["runs"][bad]).read_text(encoding="utf-8"))
    assert not [t for t, _ in alone.found if t in ("script", "iframe", "link", "object")]
    assert not [a for _, a in alone.found for name in a if name.startswith("on") or name == "style"]
    assert {t for t, _ in pages[site["top"] / "log.html"].found if t == "img"} == set()


WIDTHS = "() => [document.scrollingElement.scrollWidth, innerWidth]"


@pytest.fixture(scope="module")
def browser():
    "Debian's chromium, and what pages asked, said and complained of."
    from playwright import sync_api

    with sync_api.sync_playwright() as p:
        try:
            chromium = p.chromium.launch(
                executable_path="/usr/bin/chromium",
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            )
        except sync_api.Error as e:
            pytest.skip(f"no chromium: {e.message.splitlines()[0]}")
        page, heard = chromium.new_page(), dict(asked=[], dialogs=[], complaints=[])
        page.on("request", lambda r: heard["asked"].append(r.url))
        page.on("dialog", lambda d: (heard["dialogs"].append(d.message), d.dismiss()))
        page.on(
            "console", lambda m: heard["complaints"].append(m.text) if m.type == "error" else None
        )
        page.on("pageerror", lambda e: heard["complaints"].append(str(e)))
        yield page, heard
        chromium.close()


def quiet(heard):
    assert not heard["dialogs"] and not heard["complaints"], (
        heard["dialogs"][:3],
        heard["complaints"][:5],
    )
    assert not [
        u for u in heard["asked"] if not u.startswith(("file://", "data:", "blob:", "about:"))
    ]


@pytest.mark.browser
def test_browser_runs_nothing_and_asks_nobody(site, browser):
    "Every hostile page in a real browser: no dialog, no request outside the folder."
    page, heard = browser
    for folder in [site["plain"], *site["runs"].values()]:
        for path in (page_of(site, folder), folder / "page.html"):
            if path.exists():
                page.goto(path.as_uri())
    page.goto((site["top"] / "01_io/volume.html").as_uri())
    quiet(heard)


@pytest.mark.browser
def test_search_finds_a_symbol_and_a_run(site, browser):
    page, heard = browser
    for words, wanted in (
        ("reassemble", "05_data/slab.html"),
        ("phantom_unet", "log/phantom-unet"),
    ):
        page.goto((site["top"] / "log.html").as_uri())
        page.keyboard.press("/")
        page.keyboard.type(words)
        page.locator(f".md-search-result__item a[href*='{wanted}']").first.wait_for(timeout=20_000)
    quiet(heard)


@pytest.mark.browser
def test_the_list_of_runs_can_be_cut_and_ordered(site, browser):
    page, heard = browser
    page.goto((site["top"] / "log.html").as_uri())
    seen = (
        "() => [...document.querySelectorAll('tr[data-state]')].filter(r => !r.hidden).map(r =>"
        " r.dataset)"
    )
    every = page.evaluate(seen)
    page.get_by_label("data", exact=True).select_option("real")
    assert {r["data"] for r in page.evaluate(seen)} == {"real"}
    page.get_by_label("data", exact=True).select_option("")
    page.get_by_label("state", exact=True).select_option("finished")
    assert {r["state"] for r in page.evaluate(seen)} == {"finished"}
    page.get_by_label("until").fill("2026-11-21")
    assert {r["day"] for r in page.evaluate(seen)} == {"2026-11-21"}
    page.get_by_label("until").fill("")
    page.get_by_label("order by").select_option("mae hu")
    errors = [
        v for r in page.evaluate(seen) if (v := json.loads(r["numbers"]).get("mae hu")) is not None
    ]
    assert (
        len(errors) > 2
        and errors == sorted(errors)
        and "lowest first" in page.get_by_label("order by").inner_text()
    )
    page.get_by_label("state", exact=True).select_option("")
    page.get_by_label("order by").select_option("")
    assert page.evaluate(seen) == every
    quiet(heard)


@pytest.mark.browser
def test_a_telephone_shows_whole_pages(site, browser):
    page, heard = browser
    page.set_viewport_size(dict(width=375, height=700))
    for path in [
        site["top"] / "log.html",
        site["top"] / "budget.html",
        *sorted((site["top"] / "log").glob("compare-*.html")),
        *sorted((site["top"] / "log").glob("phantom-unet-0*.html")),
        page_of(site, site["plain"]),
        page_of(site, site["runs"]["x" * 10_000]),
    ]:
        page.goto(path.as_uri())
        wide, room = page.evaluate(WIDTHS)
        assert wide <= room, (path.name, wide, room)
    quiet(heard)


def test_comparisons_say_first_what_may_be_said(pages, site):
    made = sorted((site["top"] / "log").glob("compare-*.html"))
    assert made
    for path in made:
        assert "What may be said" in pages[path].said and "What differs" in pages[path].said, path
        assert f"log/{path.name}" in {
            a.get("href") for t, a in pages[site["top"] / "log.html"].found if t == "a"
        }
