"""The report as one HTML file that works offline: the same text and figures, with the run behind each dot.

The figures are the SVG files beside it. ``eqscale.laws.plots`` names each group of dots by the table rows of its runs,
and the script in ``page.html`` looks these rows up in the table of every run.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from jinja2 import Environment, PackageLoader
from markdown_it import MarkdownIt

from eqscale.laws.axes import AXES
from eqscale.laws.render import markdown_table
from eqscale.report.exhibits import FigureGroup, number_exhibits, only_own_tags
from eqscale.report.render import Content
from eqscale.storage import write_text

_NARROW = 410.0
"""Points: a wider figure has type too small for a phone when it is shrunk to its screen, and scrolls there."""


def write_page(text: str, content: Content, folder: Path, runs: tuple[list[str], list[list[str]]]) -> None:
    """Write ``report.html``, from the text that ``render`` made, into a folder that holds the figures as SVG.

    ``runs`` are header and rows of the table of every run, which ends the page.
    """
    text += "\n" + only_own_tags(markdown_table(*runs))
    body = MarkdownIt("commonmark").enable("table").render(number_exhibits(text))
    for group in content.figures:
        body = body.replace(group.images, _embedded(group, folder))
    for path in content.study.animations:
        data = base64.b64encode(path.read_bytes()).decode()
        body = body.replace(f'src="evaluation/{path.name}"', f'src="data:image/gif;base64,{data}"')
    pages = Environment(loader=PackageLoader("eqscale.report", "."), keep_trailing_newline=True)
    title = re.search(r"<h1>(.*?)</h1>", body)
    page = pages.get_template("page.html")
    script = re.search(r"<script>(.*?)</script>", page.render(), re.DOTALL)
    assert script is not None
    text = page.render(
        title=title[1] if title else "Report",
        body=body,
        axes=AXES.values(),
        script=base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode(),
    )
    write_text(folder / "report.html", text)


def _embedded(group: FigureGroup, folder: Path) -> str:
    panels = []
    for file, axis in group.panels:
        svg = inline_svg((folder / f"{file}.svg").read_text(encoding="utf-8"), file)
        wide = " wide" * (float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1]) > _NARROW)  # type: ignore[index]
        panels.append(f'<div class="panel{wide}" data-axis="{axis}">{svg}</div>')
    return f'<div class="figure">{"".join(panels)}</div>'


def inline_svg(text: str, name: str) -> str:
    """An SVG file as an element of an HTML page: no prologue or global style, ids made unique by ``name``.

    Groups of dots (``id="runs:…"``) become ``data-runs="…"``.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>|<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'id="runs:([\d,]*)"', r'data-runs="\1"', text)
    used = set(re.findall(r'\bid="([^"]*)"', text)) & set(re.findall(r'#([\w.:-]+)["\)]', text))

    def renamed(match: re.Match[str]) -> str:
        return f'id="{name}-{match[1]}"' if match[1] in used else ""

    text = re.sub(r'\bid="([^"]*)"', renamed, text)
    text = re.sub(r'#([\w.:-]+)(?=["\)])', lambda m: f"#{name}-{m[1]}" if m[1] in used else m[0], text)
    return re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1).strip()
