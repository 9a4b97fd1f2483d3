"""The base and arms table for the terminal, from `report.json`."""

from __future__ import annotations

from typing import Any

from tasks.policies import title_of
from tasks.wording import MISSING, interval, setting, share, signed

HEADERS = ["Arm", "Task", "Out of domain", "General", "Worst benchmark"]


def summary_rows(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:  # Any: JSON values
    """Headers, and a row of plain strings for the base and for every arm; a cell may hold two lines.

    Args:
        report: The content of `report.json`.
    """
    arms = report["measured"]["arms"]
    families = ("task", "transfer", "general")
    before = [next((share(arm[family]["before"]) for arm in arms if arm[family]), MISSING) for family in families]
    rows = [["base", *before, MISSING]]
    for arm in arms:
        settings = ", ".join(setting(arm["training"][option]) for option in report["measured"]["varied_options"])
        name = f"{arm['name']}\n{title_of(arm['policy'])}, {settings}"
        general = arm["general"]
        worst = f"{signed(general['worst_delta'])}\n{general['worst']}" if general else MISSING
        rows.append([name, *(_mean(arm[family]) for family in families), worst])
    return HEADERS, rows


def _mean(average: dict[str, Any] | None) -> str:  # Any: JSON values
    if average is None:
        return MISSING
    change = signed(average["delta"])
    return f"{share(average['after'])} ({change})\n{interval(average['low'], average['high'], sign=True)}"
