"""How Sphinx makes HTML of these pages; `scripts/docs` runs it.

The pages stay plain Markdown, which a code host shows as well. Two things that Sphinx needs besides are
added while a page is read: the table of contents, made from the links in index.md, and what a link to a
file outside these pages means (a download).
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

from thor_policy import __version__

project = "thor-policy"
release = __version__
author = "the thor-policy authors"
extensions = ["myst_parser"]
exclude_patterns = ["examples"]
nitpicky = True
#: Blocks without a language are output. Quotes, dots and dashes stay as they are written.
highlight_language = "none"
smartquotes = False

#: Headings of these levels get the anchors that code hosts give them.
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sourcelink = False

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#:]+)(#[^)]*)?\)")


def _contents(index: str) -> str:
    """The table of contents: each page that index.md links to, under the heading that it stands under."""
    blocks = []
    for section in re.split(r"^## ", index, flags=re.MULTILINE):
        caption = [] if section.startswith("# ") else [f":caption: {section.splitlines()[0]}"]
        entries = [
            f"{title} <{target}>"
            for title, target, _ in _LINK.findall(section)
            if target.endswith(".md") and not target.startswith("../")
        ]
        blocks.append("\n".join(["```{toctree}", ":hidden:", *caption, "", *entries, "```"]))
    return "\n\n".join(blocks)


def _as_download(link: re.Match[str], page: Path, pages: Path) -> str:
    """The link, marked as a download if it leads to a file that is not a page of these documents."""
    title, target, _anchor = link.groups()
    file = (page.parent / target).resolve()
    is_page = file.suffix == ".md" and file.is_relative_to(pages) and "examples" not in file.parts
    return link.group() if is_page or not file.is_file() else f"[{title}](path:{target})"


def _prepare(app: Sphinx, docname: str, source: list[str]) -> None:
    page, pages = Path(app.env.doc2path(docname)), Path(app.srcdir)
    text = source[0]
    if docname == "index":
        text += "\n\n" + _contents(text)
    source[0] = _LINK.sub(lambda link: _as_download(link, page, pages), text)


def setup(app: Sphinx) -> None:
    app.connect("source-read", _prepare)
