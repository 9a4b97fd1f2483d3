"""The section on promotion: what was decided about an arm's adapter, and each check behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasks.report.blocks import Cell, PageSection, Table
from tasks.wording import count, level, share, signed

_OUTCOMES = {
    "promoted": "The adapter of {arm} may take the place of what stands now",
    "kept": "The adapter of {arm} is not promoted",
    "current": "Nothing changes for the adapter of {arm}",
}


def promotion(decision: dict[str, Any] | None) -> Iterator[PageSection]:  # Any: JSON values
    """The section, where the recipe promotes.

    Args:
        decision: The content of `decision.json`.
    """
    if decision is None:
        return
    outcome = _OUTCOMES[decision["outcome"]].format(arm=decision["arm"])
    rows = [[Cell(check["kind"]), *_cells(check)] for check in decision["checks"]]
    caption = (
        "Paired, item by item, in points. Passed: the one-sided lower bound of the change lies above minus the margin, "
        f"at a level of {level(decision['confidence'])}. Not shown to be no worse is not the same as worse, and is "
        "kept back all the same. No correction for several checks: all of them must pass."
    )
    table = Table(["Check", "Benchmark", "Change", "Above", "Margin", "Items", "Passed"], rows, caption, prose=True)
    yield PageSection("Promotion", f"{outcome}: {'; '.join(decision['reasons'])}.", [table])


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
