"""What a page is made of: sections of paragraphs, tables, charts, examples and listings, without any markup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Cell:
    """A cell: its text, smaller detail below it (a line each), and whether it is good or bad news."""

    text: str
    detail: str = ""
    tone: str = ""


def row(*cells: Cell | str) -> list[Cell]:
    """A row of a table; a text becomes a cell without detail."""
    return [Cell(cell) if isinstance(cell, str) else cell for cell in cells]


@dataclass(frozen=True)
class Table:
    """A table and how to read it.

    Attributes:
        folded: A title; the table is closed until asked for.
        marked_rows: Places of rows to stand out.
        prose: Its cells hold sentences, which may break into lines; numbers may not.
    """

    headers: list[str]
    rows: list[list[Cell]]
    caption: str
    folded: str = ""
    marked_rows: frozenset[int] = frozenset()
    prose: bool = False
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Chart:
    """An inline SVG and how to read it."""

    svg: str
    caption: str
    kind: Literal["chart"] = "chart"


@dataclass(frozen=True)
class SideBySide:
    """One example: named texts beside each other."""

    title: str
    texts: list[tuple[str, str]]
    kind: Literal["example"] = "example"


@dataclass(frozen=True)
class Paragraph:
    """A sentence or more, above other blocks."""

    text: str
    kind: Literal["paragraph"] = "paragraph"


@dataclass(frozen=True)
class Listing:
    """Preformatted text."""

    text: str
    caption: str
    kind: Literal["listing"] = "listing"


Block = Table | Chart | SideBySide | Listing | Paragraph


@dataclass(frozen=True)
class PageSection:
    """A heading and what stands below it."""

    title: str
    blocks: list[Block]
