"A chapter, as nbdev processed it, becomes HTML"

import ast
import base64
import html
import re
import subprocess
import textwrap
from dataclasses import dataclass, field
from pathlib import Path


def text(source) -> str:
    "The text of a cell or output, however the notebook stores it."
    return source if isinstance(source, str) else "".join(source or [])


def directives(source: str) -> dict[str, str]:
    "What the `#|` lines of a cell say, by name; a text may go on over lines after `>-`."
    lines = re.findall(r"^#\|(.*)$", source, re.M)
    found = {}
    for line in lines:
        if line.startswith("   ") and found:
            last = next(reversed(found))
            found[last] = f"{found[last].removeprefix('>-')} {line.strip()}".strip()
        elif named := re.match(r"\s*([\w-]+):?[ \t]*(.*)$", line):
            found[named[1]] = named[2]
    return {key: value.strip().strip("\"'") for key, value in found.items()}


def code_of(source: str) -> str:
    "The code without its `#|` lines."
    return re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip("\n")


def opening(nb: dict) -> tuple[str, str, str]:
    """The head of a chapter; ValueError if its first text cell does not begin with `# `.

    Parameters
    ----------
    nb
        a notebook

    Returns
    -------
    tuple[str, str, str]
        title, subtitle, what else the opening cell says (markdown)
    """
    first = next((text(c["source"]) for c in nb["cells"] if c["cell_type"] == "markdown"), "")
    head = re.match(r"#\s+(\S.*?)[ \t]*(?:\n+>[ \t]*(\S.*?)[ \t]*)?(?:\n|$)", first)
    if not head:
        raise ValueError(f"a chapter must begin with a title (# ...), got {first[:40]!r}")
    return head[1], head[2] or "", first[head.end() :].strip()


def _documented(processed: dict) -> dict[str, str]:
    "The documentation that nbdev made, by the name of what it documents."
    docs = {}
    for c in processed["cells"]:
        if name := re.search(r"^show_doc\((\w[\w.]*)", text(c["source"]), re.M):
            for out in c.get("outputs", []):
                told = text(out.get("data", {}).get("text/markdown", ""))
                told = re.sub(r"^---\s*(?:\[source\]\(.*?\)\{.*?\}\s*)?", "", told)
                docs[name[1]] = re.sub(
                    r"^```python\n(.*?)\n```$", _signature, told, count=1, flags=re.M | re.S
                )
    return docs


WIDE = 98  # columns of a signature


def narrow(signature: str) -> str:
    """A signature with one parameter a line, and what is said of it on as many as it needs.

    Parameters
    ----------
    signature
        as nbdev writes it: parameters, and behind `#` what they mean

    Returns
    -------
    str
        lines of at most `WIDE` columns, unless a single word or value is longer
    """
    lines = []
    for line in re.sub(r"\n\s*# ", " ", signature).splitlines():
        indent = re.match(" *", line)[0]
        code, mark, words = line.strip().partition(" # ")
        code = re.sub(r"(?<=[:| >[])(?:\w+\.)+(?=[A-Z])", "", code)  # Volume, not its module
        *first, code = re.split(r"(?<=,) (?=\**[A-Za-z_]\w*[:=])", code)
        lines += [indent + part for part in first]
        lines += textwrap.wrap(
            code + mark + words,
            WIDE,
            initial_indent=indent,
            subsequent_indent=f"{indent}    # " if mark else f"{indent}    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _signature(found: re.Match) -> str:
    "The signature in nbdev's documentation as a block."
    return _folded(narrow(found[1]), "parameters")


def _names(code: str) -> list[str]:
    "The functions, classes and variables that `code` makes, in order."
    made = []
    for node in ast.parse(code).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            made.append(node.name)
        if isinstance(node, ast.Assign):
            made += [t.id for t in node.targets if isinstance(t, ast.Name)]
    return made


def fence(code: str, kind: str) -> str:
    "`code` as a fenced block of pandoc's markdown that it cannot close itself."
    ticks = "`" * max(3, 1 + max((len(t) for t in re.findall("`+", code)), default=0))
    return f"\n\n{ticks} {{.{kind}}}\n{code}\n{ticks}\n\n"


def _raw(markup: str) -> str:
    "HTML that pandoc passes on as it is."
    return fence(markup, "x").replace("{.x}", "{=html}", 1)


def _exported(code: str, docs: dict) -> str:
    "An exported cell as a reader wants it: what it promises, and folded below, how it does it."
    names = _names(code)
    if not names:
        return ""
    cards = [docs[name] for name in names if name in docs]
    folded = (
        '\n\n::: {.source summary="' + ", ".join(names) + '"}\n' + fence(code, "python") + ":::\n\n"
    )
    return (
        _raw('<div class="api">') + "\n\n".join(cards) + folded + _raw("</div>")
        if cards
        else folded
    )


@dataclass
class Page:
    """A chapter on its way to HTML.

    Parameters
    ----------
    markdown
        pandoc's dialect
    files
        pictures by file name
    scripts
        code of <script> elements in the outputs of the chapter itself
    html
        the body, once it is made
    raw
        an output brought HTML of its own
    """

    title: str
    subtitle: str = ""
    markdown: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    scripts: list[str] = field(default_factory=list)
    html: str = ""
    raw: bool = False


def _output(out: dict, page: Page, stem: str, alt: str) -> str:
    "One output as markdown; its picture goes to `page.files`."
    kind, data = out["output_type"], out.get("data", {})
    if kind in ("stream", "error"):
        return fence(
            re.sub(
                r"\x1b\[[\d;]*m",
                "",
                text(out["text"]) if kind == "stream" else "\n".join(out["traceback"]),
            ).rstrip(),
            "output",
        )
    for mime, ending in (("image/png", "png"), ("image/jpeg", "jpg"), ("image/svg+xml", "svg")):
        if mime in data and not ("text/html" in data and mime != "image/svg+xml"):
            return _picture(data[mime], page, f"{stem}.{ending}", alt)
    if "text/html" in data:
        page.raw = True
        page.scripts += re.findall(r"<script[^>]*>(.*?)</script>", text(data["text/html"]), re.S)
        return _raw(text(data["text/html"]))
    if "text/markdown" in data:
        return f"\n\n{text(data['text/markdown'])}\n\n"
    return fence(text(data["text/plain"]), "output") if "text/plain" in data else ""


def _picture(data, page: Page, name: str, alt: str) -> str:
    "Keep a picture as a file and show it."
    data = text(data)
    page.files[name] = data.encode() if name.endswith(".svg") else base64.b64decode(data)
    return (
        f"\n\n::: {{.figure}}\n![{_plain(alt)}]({name})\\ \n\n[Figure"
        f" {len(page.files)}]{{#figure-{len(page.files)} .number}}\n:::\n\n"
    )


def _plain(words: str) -> str:
    "Words without anything that markdown would read as markup."
    return re.sub(r"([\\`*_{}\[\]()#+!<>|$~^\"'@])", r"\\\1", " ".join(words.split()))


def _alt(said: dict, before: str) -> str:
    "Words for a picture: the author's, or the last sentences of the paragraph before it."
    if "fig-alt" in said or "fig-cap" in said:
        return said.get("fig-alt") or said["fig-cap"]
    prose = re.sub(r"^#+ .*$", "", before, flags=re.M).strip().split("\n\n")[-1]
    words, shown = re.sub(r"[`*>$]|\[(.*?)\]\(.*?\)", r"\1", " ".join(prose.split())), ""
    for sentence in reversed(re.split(r"(?<=[.?!:])\s+(?=[A-Z])", words)):
        if shown and len(shown) + len(sentence) > 300:
            break
        shown = f"{sentence} {shown}".strip()
    return "Figure: " + (shown[:400] or "made by the code above it")


def to_page(nb: dict, processed: dict, stem: str = "fig") -> Page:
    """The chapter in reading order.

    Parameters
    ----------
    nb
        the chapter
    processed
        the same notebook as nbdev's processors leave it
    stem
        pictures are called stem-1.png, stem-2.png ...

    Returns
    -------
    Page
        with markdown and files, not yet HTML
    """
    title, subtitle, rest = opening(nb)
    page, kept, docs, before = (
        Page(title, subtitle),
        {c.get("id"): c for c in processed["cells"]},
        _documented(processed),
        rest,
    )
    parts = [rest]
    for c in nb["cells"]:
        source = text(c["source"])
        if c["cell_type"] == "code":
            parts.append(_code(source, kept.get(c.get("id")), docs, page, before, stem))
        elif c["cell_type"] == "markdown" and c.get("id") in kept:
            parts.append(before := text(kept[c["id"]]["source"]))
    page.markdown = "\n\n".join(parts)
    return page


LONG = 30  # lines; a longer example is folded


def _folded(code: str, what: str = "code") -> str:
    "Code as a block; behind one line if it is long."
    lines = len(code.splitlines())
    return (
        fence(code, "python")
        if lines <= LONG
        else (
            f'\n\n::: {{.source summary="{lines} lines of {what}"}}\n{fence(code, "python")}:::\n\n'
        )
    )


def _code(source: str, shown: dict | None, docs: dict, page: Page, before: str, stem: str) -> str:
    """A code cell as markdown: documentation if it is exported, else code and outputs.

    Nothing if nbdev hid it.
    """
    said = directives(source)
    if {"export", "exporti"} & set(said) and "hide" not in said:
        return _exported(code_of(source), docs)
    if shown is None or said.get("include") == "false":
        return ""
    code = "" if said.get("echo") == "false" else _folded(code_of(text(shown["source"])))
    if said.get("output") == "false":
        return code
    outs = [
        _output(o, page, f"{stem}-{len(page.files) + 1}", _alt(said, before))
        for o in shown.get("outputs", [])
    ]
    return (code if code_of(text(shown["source"])).strip() else "") + "".join(outs)


def pandoc(markdown: str, *more: str) -> str:
    """What pandoc makes of `markdown`.

    Parameters
    ----------
    markdown
        pandoc's dialect
    *more
        further arguments, as on its command line

    Returns
    -------
    str
        HTML
    """
    import pypandoc

    # pypandoc's own call asks pandoc first, for each text, what it can read and write
    return subprocess.run(
        [
            pypandoc.get_pandoc_path(),
            "--from=markdown-implicit_figures",
            "--to=html",
            "--mathml",
            "--syntax-highlighting=none",
            "--wrap=none",
            f"--lua-filter={Path(__file__).parent / 'assets' / 'callouts.lua'}",
            *more,
        ],
        input=markdown,
        capture_output=True,
        check=True,
        encoding="utf-8",
    ).stdout


def colour(body: str) -> str:
    """`body` with the words of its Python code marked for the style sheet.

    Parameters
    ----------
    body
        HTML

    Returns
    -------
    str
        HTML
    """
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    lexer, formatter = PythonLexer(), HtmlFormatter(cssclass="highlight", wrapcode=True)
    return re.sub(
        r'<pre class="python"><code>(.*?)</code></pre>',
        lambda m: highlight(html.unescape(m[1]), lexer, formatter),
        body,
        flags=re.S,
    )


def link(body: str, where: dict[str, str]) -> str:
    """`body` with links from code words to where they are explained.

    Parameters
    ----------
    body
        HTML
    where
        name -> address, seen from this page

    Returns
    -------
    str
        HTML
    """

    def one(m):
        return f'<a href="{where[m[1]]}">{m[0]}</a>' if m[1] in where else m[0]

    parts = re.split(
        r"(<pre.*?</pre>|<h\d.*?</h\d>|<a .*?</a>|<summary>.*?</summary>)", body, flags=re.S
    )
    return "".join(
        p if i % 2 else re.sub(r"<code>([\w.-]+)(?:\(\))?</code>", one, p)
        for i, p in enumerate(parts)
    )


def finish(page: Page, where: dict[str, str]) -> Page:
    """Make the HTML of `page`.

    Parameters
    ----------
    page
        with its markdown
    where
        names to link, see `link`

    Returns
    -------
    Page
        the same, with its HTML
    """
    subtitle = f'<p class="subtitle">{html.escape(page.subtitle)}</p>' if page.subtitle else ""
    body = pandoc(page.markdown)
    body = re.sub(r'<(t[hd]) style="text-align: (\w+);">', r'<\1 class="\2">', body)
    body = re.sub(r"<colgroup>.*?</colgroup>", "", body, flags=re.S)
    body = re.sub(r'<table style="[^"]*">', "<table>", body)
    body = re.sub(
        r'href="(?!\w+:)([^"]*?)\.ipynb(#[^"]*)?"',
        lambda m: f'href="{page_path(m[1])}{m[2] or ""}"',
        body,
    )
    body = _linked_headings(link(body, where))
    page.html = f"<h1>{html.escape(page.title)}</h1>\n{subtitle}\n{body}"
    return page


def _linked_headings(body: str) -> str:
    "Each heading with a link to itself."
    return re.sub(
        r'(<h([2-4])[^>]*?\bid="([^"]+)"[^>]*>.*?)(</h\2>)',
        r'\1<a class="headerlink" href="#\3" title="Link to this section">¶</a>\4',
        body,
        flags=re.S,
    )


def page_path(chapter: str) -> str:
    """Where the page of a chapter lies.

    Parameters
    ----------
    chapter
        path of a notebook inside the book, with or without its ending

    Returns
    -------
    str
        path of its page: as Quarto names it, without the number
    """
    folder, _, name = chapter.removesuffix(".ipynb").rpartition("/")
    return f"{folder}/" * bool(folder) + re.sub(r"^\d+[a-zA-Z0-9]*_", "", name.lower()) + ".html"


def headings(body: str) -> list[dict]:
    """The headings of a page below its title.

    Parameters
    ----------
    body
        HTML

    Returns
    -------
    list[dict]
        level, id, name (plain text), children; nested
    """
    tops, open_ = [], []
    for level, id, words in re.findall(
        r'<h([2-4])[^>]*?\bid="([^"]+)"[^>]*>(.*?)</h\1>', body, re.S
    ):
        words = re.sub(r'<a class="headerlink".*?</a>', "", words)
        name = html.unescape(re.sub(r"<[^>]+>", "", words)).strip()
        one = dict(
            level=int(level), id=id, name=html.escape(name), html=html.escape(name), children=[]
        )
        while open_ and open_[-1]["level"] >= one["level"]:
            open_.pop()
        (open_[-1]["children"] if open_ else tops).append(one)
        open_.append(one)
    return tops
