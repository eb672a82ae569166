"""Tables and figures of a report, and their numbers.

An exhibit has a key, and text has marks where its number goes. ``number_exhibits`` numbers the exhibits of a whole
document in order of appearance and fills in all marks, including those before the exhibit.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from eqscale.laws.contrast import Estimate
from eqscale.laws.render import markdown_table, with_interval

UNSEEN = "–"
"""An empty cell."""

_MARK = re.compile(r"\{(anchor|name|link) (table|figure) ([\w-]+)\}")


def anchor(key: str, kind: str = "table") -> str:
    """Mark of the place of an exhibit, the target of links; ``kind`` is ``table`` or ``figure``."""
    return f"{{anchor {kind} {key}}}"


def numbered(key: str, kind: str = "table") -> str:
    """Mark that becomes ``Table 3``."""
    return f"{{name {kind} {key}}}"


def link(key: str, kind: str = "table") -> str:
    """Mark that becomes a link to an exhibit."""
    return f"{{link {kind} {key}}}"


def number_exhibits(text: str) -> str:
    """Number the exhibits of a document by order of appearance and fill in all marks.

    A link to an exhibit that the document lacks becomes ``no table`` or ``no figure``.
    """
    numbers: dict[tuple[str, str], str] = {}
    for what, kind, key in _MARK.findall(text):
        if what == "anchor":
            numbers[kind, key] = f"{kind.capitalize()} {1 + sum(other == kind for other, _ in numbers)}"

    def filled(mark: re.Match[str]) -> str:
        what, kind, key = mark.groups()
        if (kind, key) not in numbers:
            return f"no {kind}"
        if what == "anchor":
            return f'<a id="{kind}-{key}"></a>'
        shown = numbers[kind, key]
        return f"[{shown}](#{kind}-{key})" if what == "link" else shown

    return _MARK.sub(filled, text)


@dataclasses.dataclass(frozen=True)
class Table:
    """One table."""

    key: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """Anchor, caption and table; empty without rows."""
        if not self.rows:
            return ""
        caption = f"{anchor(self.key)}**{numbered(self.key)}. {self.title}.** {self.note}".rstrip()
        return f"{caption}\n\n{markdown_table(self.header, self.rows)}"


@dataclasses.dataclass(frozen=True)
class FigureGroup:
    """One figure: one image per axis, or one for all axes."""

    key: str
    title: str
    caption: str
    panels: tuple[tuple[str, str], ...]
    """File of each image, without suffix, and the name of its compute axis, if any."""

    @property
    def images(self) -> str:
        """Mark of the place of its images; valid HTML, so that Markdown keeps it as it is."""
        return f'<div class="figure" data-figure="{self.key}"></div>'


def table_of(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table with the keys of the rows as its header."""
    return markdown_table(list(rows[0]), [list(row.values()) for row in rows])


def ratio_text(row: pd.Series) -> str:
    """The ratio of a row with the columns ratio, low and high, and its interval."""
    return with_interval(row["ratio"], row["low"], row["high"])


def wide(e: Estimate) -> str:
    """A number with its wider limits: each the outer one of the model-based and the robust interval."""
    return with_interval(e.value, e.low, e.high)


def paragraphs(parts: Iterable[str]) -> str:
    """The parts as paragraphs, without empty ones."""
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


_FOREIGN_TAG = re.compile(
    r"<(?=[a-zA-Z/!?])(?!br>|/?details>|/?summary>|/a>|/div>)"
    r'(?!a id="[\w-]+"></a>|div class="lead">|div class="figure" data-figure="[\w-]+"></div>)'
)


def only_own_tags(text: str) -> str:
    """A document whose only HTML is the report's own; names and reasons come from tables of other people."""
    return _FOREIGN_TAG.sub("&lt;", text)


def figure_block(key: str, title: str, images: str, caption: str) -> str:
    """Title with its anchor, images and caption of a figure."""
    return f"### {anchor(key, 'figure')}{numbered(key, 'figure')}. {title}\n\n{images}\n\n*{caption}*"
