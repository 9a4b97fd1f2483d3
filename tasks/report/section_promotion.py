"""The section on promotion: what was decided about an arm's adapter, and each check behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tasks.report.blocks import Block, Cell, Paragraph, Table
from tasks.wording import count, level, share, signed

if TYPE_CHECKING:
    from tasks.report.findings import Findings

_OUTCOMES = {
    "promoted": "The adapter of {arm} may replace what is promoted now",
    "kept": "The adapter of {arm} is not promoted",
    "current": "Nothing changes for the adapter of {arm}",
}


def promotion(found: Findings) -> Iterator[Block]:
    """The decision and its checks; nothing where the recipe promotes no adapter."""
    decision = found.promotion
    if decision is None:
        return
    outcome = _OUTCOMES[decision["outcome"]].format(arm=decision["arm"])
    rows = [[Cell(check["kind"]), *_cells(check)] for check in decision["checks"]]
    caption = (
        "Changes are paired, item by item, in points. A check passes if the one-sided lower bound of the change, at a "
        f"level of {level(decision['confidence'])}, lies above minus the margin. An adapter is not promoted either "
        "where the items are too few to show that it is no worse. The level is not adjusted for the number of checks, "
        "because all of them must pass."
    )
    yield Paragraph(f"{outcome}: {'; '.join(decision['reasons'])}.")
    yield Table(["Check", "Benchmark", "Change", "Above", "Margin", "Items", "Passed"], rows, caption, prose=True)


def _cells(check: dict[str, Any]) -> Iterator[Cell]:  # Any: JSON values
    yield Cell(check["benchmark"], f"{check['metric']}\nagainst {check['against']}")
    yield Cell(signed(check["change"]), f"{share(check['before'])} to {share(check['after'])}")
    yield Cell(signed(check["low"]), check["test"])
    yield Cell(share(check["margin"]))
    unscored = f"{count(check['n_unscored'])} unscored" if check["n_unscored"] else ""
    yield Cell(
        count(check["n"]), f"{count(check['n_gained'])} gained, {count(check['n_lost'])} lost\n{unscored}".strip()
    )
    yield Cell("yes" if check["passed"] else "no", tone="good" if check["passed"] else "bad")
