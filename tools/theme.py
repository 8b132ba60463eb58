"The look of the site, and the policy that keeps its pages from calling anybody"

import base64
import re
from hashlib import sha256
from pathlib import Path

from tools.convert import Page


def _hashes(scripts) -> str:
    "The digests by which a policy names inline scripts."
    return " ".join(
        sorted(
            {
                f"'sha256-{base64.b64encode(sha256(s.encode()).digest()).decode()}'"
                for s in scripts
                if s.strip()
            }
        )
    )


def policy(scripts: list[str], styles: bool = False) -> str:
    """The strictest policy with which the theme works, from a disk and from a server.

    Parameters
    ----------
    scripts
        the inline scripts that may run
    styles
        may the page bring style attributes of its own?

    Returns
    -------
    str
        the content of the meta element
    """
    return (
        f"default-src 'none'; script-src 'self' {_hashes(scripts)}; style-src"
        f" 'self'{' ' + repr('unsafe-inline') if styles else ''}; img-src 'self' data:; font-src"
        " 'self'; connect-src 'self'; worker-src 'self'; frame-src 'self'; base-uri 'none';"
        " form-action 'none'"
    )


def guard(output: str, page: Page) -> str:
    "The whole page with its policy at the top of the head."
    if page.html not in output:
        raise ValueError(
            f"the theme changed the text of {page.title}: its scripts cannot be told apart"
        )
    theme = re.findall(
        r"<script(?![^>]*\bsrc=)(?![^>]*json)[^>]*>(.*?)</script>",
        output.replace(page.html, ""),
        re.S,
    )
    meta = (
        '<meta http-equiv="Content-Security-Policy"'
        f' content="{policy(theme + page.scripts, page.raw)}">'
    )
    return output.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n      {meta}', 1)


ASSETS = Path(__file__).parent / "assets"
WORKER = (ASSETS / "worker.js").read_text(encoding="utf-8")
BOOK = (ASSETS / "book.js").read_text(encoding="utf-8")


SITE_CSS = (ASSETS / "site.css").read_text(encoding="utf-8")


def _palette(scheme: str, media: str, icon: str, name: str) -> dict:
    "One of the three settings of the switch for light and dark."
    return dict(
        scheme=scheme,
        media=media,
        primary="custom",
        accent="custom",
        toggle=dict(icon=f"material/{icon}", name=name),
    )


# words of the search end at a space and at signs of code, not at the point or hyphen of "2.5-D"
SEPARATOR = r"[\s,:!=\[\]()\"`/]+|\.(?!\d)|_|-(?![Dd]\b)"


def settings(title: str, nav: list, docs: Path, out: Path) -> dict:
    "What mkdocs is told; no address of another host among it."
    dark, light = "(prefers-color-scheme: dark)", "(prefers-color-scheme: light)"
    features = [
        "navigation.top",
        "navigation.footer",
        "toc.follow",
        "content.code.copy",
        "search.highlight",
    ]
    palette = [
        _palette(
            "default",
            "(prefers-color-scheme)",
            "brightness-auto",
            "Light or dark as the system says; switch to light",
        ),
        _palette("default", light, "weather-sunny", "Light; switch to dark"),
        _palette("slate", dark, "weather-night", "Dark; switch to the system's choice"),
    ]
    return dict(
        site_name=title,
        docs_dir=str(docs),
        site_dir=str(out),
        nav=nav,
        use_directory_urls=False,
        plugins=[dict(search=dict(separator=SEPARATOR)), "offline"],
        theme=dict(
            name="material",
            font=False,
            features=features,
            palette=palette,
            icon=dict(logo="material/layers-triple-outline"),
        ),
        extra=dict(polyfills=["assets/iframe-worker.js"], generator=False),
        extra_css=["assets/site.css"],
        extra_javascript=["assets/book.js"],
        validation=dict(nav=dict(omitted_files="ignore")),
    )
