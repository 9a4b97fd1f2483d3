"""The sections of the report in their order. `report.html` and `report.md` are both made from them and say the same.

To add one, write a function from `Findings` to blocks and give it a line in `SECTIONS`. The modules of sections are
loaded whenever a run is planned, so they import matplotlib, scipy and pandas inside functions only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.report.blocks import Block, PageSection
from tasks.report.section_origin import accounting, cost, provenance
from tasks.report.section_promotion import promotion
from tasks.report.section_results import comparison, results
from tasks.report.section_training import examples, judge_and_targets, training

if TYPE_CHECKING:
    from tasks.report.findings import Findings


@dataclass(frozen=True)
class ReportSection:
    """A section that every report has, unless it finds nothing to show.

    Attributes:
        version: Raise it when the section shows the same findings differently: reports made before are then stale.
        blocks: What stands below the title.
    """

    title: str
    version: int
    blocks: Callable[[Findings], Iterable[Block]]


def checked(sections: Sequence[ReportSection]) -> tuple[ReportSection, ...]:
    """The same sections.

    Raises:
        ValueError: Two have one title, so that a report could not tell them apart.
    """
    titles = [section.title for section in sections]
    if doubled := {title for title in titles if titles.count(title) > 1}:
        raise ValueError(f"report sections: {', '.join(sorted(doubled))}: declared twice. Give one another title.")
    return tuple(sections)


SECTIONS = checked([
    ReportSection("Promotion", 1, promotion),
    ReportSection("Base and arms", 1, results),
    ReportSection("Forgetting and task gain", 1, comparison),
    ReportSection("Judge and target mix", 1, judge_and_targets),
    ReportSection("Training", 1, training),
    ReportSection("Examples", 1, examples),
    ReportSection("Row accounting", 1, accounting),
    ReportSection("Cost", 1, cost),
    ReportSection("Provenance", 1, provenance),
])  # fmt: skip


def section_versions() -> dict[str, int]:
    """Which sections a report has: part of the identity of the report step."""
    return {section.title: section.version for section in SECTIONS}


def page_sections(found: Findings) -> list[PageSection]:
    """Every section that has something to show."""
    made = [PageSection(section.title, list(section.blocks(found))) for section in SECTIONS]
    return [section for section in made if section.blocks]
