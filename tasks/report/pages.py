"""The two pages, from the same sections: `report.html` for people, `report.md` for the Prefect UI."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from tasks.report.blocks import Block, PageSection
from tasks.report.findings import Findings

# Characters that Markdown or HTML reads as markup. They are written as character references, which neither does.
_MARKUP = re.compile(r"""[\\`*_{}\[\]<>|~$&@#!"']""")
_LINK = re.compile(r"(://|www\.)", re.IGNORECASE)


def html_page(found: Findings, sections: Sequence[PageSection]) -> str:
    """One self-contained page: no script, nothing loaded."""

    def runs(section: PageSection) -> list[tuple[str, list[Block]]]:
        return [(kind, list(run)) for kind, run in itertools.groupby(section.blocks, lambda block: block.kind)]

    shown = [{"title": section.title, "runs": runs(section)} for section in sections]
    return _environment().get_template("report.html.j2").render(found=found, sections=shown)


def markdown_page(found: Findings, sections: Sequence[PageSection]) -> str:
    """The same content as Markdown; for charts, their captions."""
    page = _environment().get_template("report.md.j2").render(found=found, sections=sections)
    return re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"


def inert(text: str) -> str:
    """Any text as one line of Markdown in which nothing acts as markup or as a link."""
    line = " ⏎ ".join(part.strip() for part in text.splitlines() if part.strip())
    escaped = _MARKUP.sub(lambda found: f"&#{ord(found[0])};", line)
    return _LINK.sub(lambda found: found[0].replace("/", "&#47;").replace(".", "&#46;"), escaped)


def fenced(text: str) -> str:
    """A block of code whose fence is longer than any run of backticks inside it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"


def _environment() -> Environment:
    """The templates. Each value is escaped for HTML, except in the Markdown template, which uses the filter `inert`."""
    environment = Environment(
        loader=PackageLoader("tasks.report"), undefined=StrictUndefined, keep_trailing_newline=True,
        autoescape=select_autoescape(disabled_extensions=("md.j2",), default=True),
    )  # fmt: skip
    environment.filters |= {"inert": inert, "fenced": fenced}
    return environment
