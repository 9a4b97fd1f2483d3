"""The report's charts as inline SVG. Text stays text, and colours follow the light or dark scheme of the page.

A chart is 370 points wide, so that its text is readable on a phone. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tasks.measures.statistics import Average
from tasks.policies import POLICIES
from tasks.report.findings import Curve
from tasks.report.measured import Arm
from tasks.report.verdicts_and_targets import Mix

WIDTH = 5.1  # inches of 72 points
_TEXT, _GRID = "#010203", "#040506"  # stand for colours of the page, see `_svg`
_TARGET_COLOURS = {"self": "#3b82f6", "rewrite": "#a06ee1", "gold": "#d97706"}
_MARKERS = "osD^vP*X"
_LINES = ("-", "--", ":", "-.")
_STYLE: dict[Any, Any] = {  # Any: matplotlib types its keys as one long Literal
    "svg.fonttype": "none", "svg.hashsalt": "ssr", "text.parse_math": False, "font.size": 11.5,
    "font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "text.color": _TEXT, "axes.labelcolor": _TEXT, "axes.edgecolor": _GRID, "xtick.color": _TEXT, "ytick.color": _TEXT,
    "xtick.labelcolor": _TEXT, "grid.color": _GRID, "grid.linewidth": 0.6, "legend.frameon": False,
    "figure.facecolor": "none", "axes.facecolor": "none",
}  # fmt: skip

ErrorBar = list[list[float]]  # how far the interval reaches below and above the point
Look = Mapping[str, tuple[str, str, str]]  # by arm: colour, marker, line


def look(arms: Sequence[Arm]) -> Look:
    """A colour a policy; a marker and a line style an arm of it, in order of the learning rate."""
    found = {}
    for policy in dict.fromkeys(arm.policy for arm in arms):
        of_policy = _by_rate(arm for arm in arms if arm.policy == policy)
        for i, arm in enumerate(of_policy):
            found[arm.name] = (POLICIES[policy].colour, _MARKERS[i % len(_MARKERS)], _LINES[i % len(_LINES)])
    return found


def forgetting(arms: Sequence[Arm]) -> str | None:
    """Change on each general benchmark by arm, with intervals."""
    changes = {
        arm.name: [(s.key.benchmark, s.change) for s in arm.scores if s.key.primary and not s.key.is_task and s.change]
        for arm in arms
    }
    benchmarks = list(dict.fromkeys(name for found in changes.values() for name, _ in found))
    if not benchmarks:
        return None
    pitch = 0.19 * len(arms) + 0.2
    with _figure(pitch * len(benchmarks) + 0.55 + 0.24 * len(arms)) as (figure, axes):
        for i, arm in enumerate(arms):
            colour, marker, _ = look(arms)[arm.name]
            for name, c in changes[arm.name]:
                if c.delta is None or c.low is None or c.high is None:
                    continue
                y = benchmarks.index(name) + (i - (len(arms) - 1) / 2) * 0.19 / pitch
                axes.plot([100 * c.low, 100 * c.high], [y, y], color=colour, linewidth=1.8, solid_capstyle="butt")
                axes.plot([100 * c.delta], [y], color=colour, marker=marker, markersize=5.5)
            axes.plot([], [], color=colour, marker=marker, markersize=5.5, label=arm.name)
        for edge in range(1, len(benchmarks)):
            axes.axhline(edge - 0.5, color=_GRID, linewidth=0.6)
        axes.axvline(0, color=_TEXT, linewidth=1)
        axes.set_yticks(range(len(benchmarks)), benchmarks)
        axes.set_ylim(len(benchmarks) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel("change from base, points")
        return _svg(figure, "forgetting", "Change on each general benchmark by arm")


def front(arms: Sequence[Arm]) -> str | None:
    """Task gain against retention, one point an arm; arms that differ in the learning rate alone are joined."""
    placed = [
        (arm, (100 * arm.general.delta, 100 * arm.task.delta), _error_bar(arm.general), _error_bar(arm.task))
        for arm in arms
        if arm.general and arm.task
    ]
    xlabel, ylabel = "retention: mean change on general benchmarks, points", "task gain, points"
    return _scatter(placed, arms, "front", "Task gain against retention, one point an arm", xlabel, ylabel)


def drift(arms: Sequence[Arm]) -> str | None:
    """Mean change on general benchmarks by drift, one point an arm; arms are joined as in `front`."""
    placed = []
    for arm in sorted(arms, key=lambda arm: arm.learning_rate):
        if arm.drift and arm.drift.per_token.value is not None and arm.general:
            estimate, value = arm.drift.per_token, arm.drift.per_token.value
            low, high = (value if end is None else end for end in (estimate.low, estimate.high))
            xerr = [[value - low], [high - value]]
            placed.append((arm, (value, 100 * arm.general.delta), xerr, _error_bar(arm.general)))
    xlabel, ylabel = "drift on task prompts, nats a token", "mean general change, points"
    label = "Mean change on general benchmarks by drift, one point an arm"
    return _scatter(placed, arms, "drift", label, xlabel, ylabel)


def _scatter(
    placed: Sequence[tuple[Arm, tuple[float, float], ErrorBar, ErrorBar]], arms: Sequence[Arm], name: str, label: str,
    xlabel: str, ylabel: str,
) -> str | None:  # fmt: skip
    """Arms as points with the bars of both intervals, and a line where the general change is 0."""
    if not placed:
        return None
    points = {arm.name: at for arm, at, _, _ in placed}
    with _figure(4.4) as (figure, axes):
        for line in _sweeps([arm for arm, *_ in placed]):
            joined = zip(*(points[arm.name] for arm in line), strict=True)
            axes.plot(*joined, color=POLICIES[line[0].policy].colour, linewidth=1, alpha=0.6)
        for arm, at, xerr, yerr in placed:
            colour, marker, _ = look(arms)[arm.name]
            axes.errorbar(
                *at, xerr=xerr, yerr=yerr, color=colour, marker=marker, markersize=7, elinewidth=1.2, linestyle="none",
                label=arm.name,
            )  # fmt: skip
        no_change = axes.axvline if name == "front" else axes.axhline
        no_change(0, color=_TEXT, linewidth=0.8, linestyle=":")
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid()
        axes.margins(x=0.08, y=0.12)
        return _svg(figure, name, label)


def target_mix(mixes: Sequence[Mix]) -> str | None:
    """Shares of self, rewrite and gold targets, a bar for each distinct set of targets."""
    if not mixes:
        return None
    with _figure(0.42 * len(mixes) + 0.75) as (figure, axes):
        for row, mix in enumerate(mixes):
            left = 0.0
            for kind, n in mix.counts.items():
                width = 100 * n / (mix.n_rows or 1)
                axes.barh(row, width, left=left, height=0.66, color=_TARGET_COLOURS[kind])
                if width >= 9:
                    axes.text(left + width / 2, row, f"{width:.0f} %", ha="center", va="center", color="white")
                left += width
        for kind, colour in _TARGET_COLOURS.items():
            if any(mix.counts[kind] for mix in mixes):
                axes.bar(0, 0, color=colour, label=kind)
        axes.set_yticks(range(len(mixes)), [_short(mix.arms) for mix in mixes])
        axes.set_ylim(len(mixes) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("% of the training rows")
        return _svg(figure, "mix", "Share of self, rewrite and gold targets")


def loss_curves(curves: Sequence[Curve], arms: Sequence[Arm]) -> str | None:
    """Training loss by optimiser step."""
    if not any(curve.steps for curve in curves):
        return None
    with _figure(3.0 + 0.12 * len(curves)) as (figure, axes):
        for curve in curves:
            colour, _, line = look(arms)[curve.arm]
            steps = [float("nan") if step is None else step for step in curve.steps]
            losses = [float("nan") if loss is None else loss for loss in curve.losses]
            axes.plot(steps, losses, color=colour, linestyle=line, linewidth=1.5, label=curve.arm)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("loss, nats per trained token")
        axes.grid(axis="y")
        return _svg(figure, "loss", "Training loss by step")


@contextmanager
def _figure(height: float) -> Iterator[tuple[Figure, Axes]]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.subplots()


def _put_legend_above(figure: Figure) -> None:
    names = [name for axes in figure.axes for name in axes.get_legend_handles_labels()[1]]
    columns = 3 if max(map(len, names), default=0) <= 14 else 2 if max(map(len, names)) <= 24 else 1
    figure.legend(loc="outside upper left", ncols=columns, handlelength=1.6, columnspacing=1.2, borderpad=0)


def _error_bar(change: Average) -> ErrorBar:
    return [[100 * (change.delta - change.low)], [100 * (change.high - change.delta)]]


def _by_rate(arms: Iterable[Arm]) -> list[Arm]:
    return sorted(arms, key=lambda arm: (arm.learning_rate, arm.name))


def _sweeps(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Arms that differ in the learning rate alone, in its order: no line joins two losses or two seeds."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        rest = {option: value for option, value in arm.training.items() if option != "learning_rate"}
        groups.setdefault(f"{arm.policy} {rest}", []).append(arm)
    return [_by_rate(group) for group in groups.values()]


def _short(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} +{len(names) - 1}"


def _svg(figure: Figure, name: str, label: str) -> str:
    """The figure and its legend as an SVG element whose ids are unique on the page and whose text has its colour."""
    _put_legend_above(figure)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", svg)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', _opening(label), svg, count=1)
    return svg.replace(_TEXT, "currentColor").replace(_GRID, "var(--line)")


def _opening(label: str) -> str:
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return rf'<svg viewBox="\1" role="img" aria-label="{label}" {spaces}>'
