"""The sections on what was measured: base and arms, forgetting, task gain against retention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tasks.measures.metrics import leaked_refusal
from tasks.policies import title_of
from tasks.report.blocks import Block, Cell, Chart, Table, row
from tasks.wording import (
    BASE,
    MISSING,
    count,
    interval,
    level,
    listed,
    nats,
    nats_interval,
    p_value,
    share,
    signed,
    stars,
)  # fmt: skip

if TYPE_CHECKING:
    from tasks.measures.scores import Key
    from tasks.measures.statistics import Average, Comparison
    from tasks.report.findings import Findings
    from tasks.report.measured import Arm, Score


def results(found: Findings) -> Iterator[Block]:
    """The summary of base and arms, then every score: primary metrics, other metrics, leaked refusals."""
    yield _summary(found)
    keys = [score.key for score in found.measured.base]
    caption = _PRIMARY_CAPTION.format(level=level(found.confidence), alpha=f"{1 - found.confidence:g}")
    yield _scores(found, [key for key in keys if key.primary], caption)
    if others := [key for key in keys if not key.primary and key.declared != leaked_refusal]:
        yield _scores(found, others, _OTHER_CAPTION, folded="Other metrics")
    if leaked := [key for key in keys if key.declared == leaked_refusal]:
        yield _scores(found, leaked, _LEAKED_CAPTION)


_PRIMARY_CAPTION = (
    "The primary metric of each benchmark, in percent with {level} intervals; below it the paired change from base in "
    "points. * p < {alpha}, ** p < 0.01, *** p < 0.001, Holm-adjusted over the benchmarks of an arm. MDD: the smallest "
    "change that this test finds with 80 % power; a smaller drop may be missed. n: items that were compared; unscored "
    "ones are left out, not counted as wrong."
)
_OTHER_CAPTION = (
    "These metrics enter no average. Their changes are not adjusted for the number of tests and so carry no stars. "
    "Where each model is scored on items of its own, there is no paired change."
)
_LEAKED_CAPTION = (
    "Refusals among the benchmark answers, in percent. They are part of the scores above, and are shown apart because "
    "they tell why a score fell."
)


def _summary(found: Findings) -> Table:
    headers = ["Arm", "Task", "Out of domain", "General", "Relative change", "Worst benchmark", "Non-inferior"]
    best = set(found.measured.best.values())
    options = found.measured.varied_options
    rows = [_base_row(found.measured.arms), *(_arm_row(arm, options, found.confidence) for arm in found.measured.arms)]
    caption = (
        "Means over benchmarks in percent, with the paired change from base in points and its "
        f"{level(found.confidence)} interval. Bold: the arm of its policy with the highest task score. "
        "Relative change: mean over benchmarks of change divided by base. MDD: smallest change of the general mean "
        "that would be found with 80 % power. Non-inferior: the interval of the general mean rules out a loss of "
        f"{100 * found.non_inferiority_margin:g} point."
    )
    marked = frozenset(i + 1 for i, arm in enumerate(found.measured.arms) if arm.name in best)
    return Table(headers, rows, caption, marked_rows=marked)


def _base_row(arms: Sequence[Arm]) -> list[Cell]:
    families = zip(*((arm.task, arm.transfer, arm.general) for arm in arms), strict=True)
    means = [share(next((average.before for average in averages if average), None)) for averages in families]
    return row(Cell(BASE, "no training"), *means, *[MISSING] * 3)


def _arm_row(arm: Arm, options: Sequence[str], confidence: float) -> list[Cell]:
    general = _average_cell(arm.general, confidence)
    kept = MISSING if arm.non_inferior is None else "yes" if arm.non_inferior else "no"
    last = [Cell(MISSING), Cell(MISSING)]
    if arm.general:
        general = replace(general, detail=f"{general.detail}\nMDD {share(arm.general.detectable)}")
        relative = MISSING if arm.general.relative is None else f"{signed(arm.general.relative)} %"
        last = [Cell(relative), Cell(signed(arm.general.worst_delta), arm.general.worst)]
    means = [_average_cell(arm.task, confidence), _average_cell(arm.transfer, confidence), general]
    about = Cell(arm.name, f"{title_of(arm.policy)}\n{arm.settings(options)}")
    return [about, *means, *last, Cell(kept, tone="good" if arm.non_inferior else "")]


def _average_cell(average: Average | None, confidence: float) -> Cell:
    if average is None:
        return Cell(MISSING)
    mark = stars(average.p_value, confidence=confidence)
    missing = f"\nwithout {listed(average.missing)}" if average.missing else ""
    change = f"{signed(average.delta)} {interval(average.low, average.high, sign=True)}{mark}{missing}"
    return Cell(share(average.after), change, _tone(average.delta, mark))


def _scores(found: Findings, keys: Sequence[Key], caption: str, *, folded: str = "") -> Table:
    arms = found.measured.arms
    base = {score.key: score for score in found.measured.base}
    by_arm = [{score.key: score for score in arm.scores} for arm in arms]
    rows = [
        [
            Cell(key.benchmark, f"{key.metric}{_DIRECTIONS[key.higher_is_better]}\n{key.family}"),
            _score_cell(base[key], found.confidence),
            *(_score_cell(scores[key], found.confidence) for scores in by_arm),
        ]
        for key in keys
    ]
    titles = sorted({(key.declared.name, key.declared.title) for key in keys if key.declared})
    explained = "".join(f" {name}: {title}." for name, title in titles)
    return Table(["Benchmark", BASE, *(arm.name for arm in arms)], rows, caption + explained, folded)


_DIRECTIONS = {True: "", False: " (lower is better)", None: " (direction not stated)"}


def _score_cell(score: Score, confidence: float) -> Cell:
    estimate, change = score.estimate, score.change
    lines = [interval(estimate.low, estimate.high, sign=False)]
    mark = stars(score.p_holm, confidence=confidence)
    if change is None:
        lines.append(f"n {count(estimate.n)}")
    else:
        lines += _change(change, mark)
    if estimate.n_missing:
        lines.append(f"{count(estimate.n_missing)} unscored")
    tone = _tone(change.delta if change else None, mark, higher_is_better=score.key.higher_is_better)
    return Cell(share(estimate.value), "\n".join(line for line in lines if line), tone)


def _change(change: Comparison, mark: str) -> list[str]:
    if change.delta is None:
        return ["no item was scored for both"]
    seen = f"{signed(change.delta)} {interval(change.low, change.high, sign=True) or '(no interval)'}{mark}"
    return [seen, f"MDD {share(change.detectable)}, n {count(change.n_pairs)}"]


def _tone(delta: float | None, mark: str, *, higher_is_better: bool | None = True) -> str:
    """Whether a significant change is good or bad news."""
    if not mark or not delta or higher_is_better is None:
        return ""
    return "good" if (delta > 0) == higher_is_better else "bad"


def comparison(found: Findings) -> Iterator[Block]:
    """Charts of forgetting, task gain and drift, and the comparisons of arm with arm."""
    from tasks.report import charts

    arms, intervals = found.measured.arms, f"{level(found.confidence)} intervals"
    if svg := charts.forgetting(arms):
        yield Chart(
            svg, "Forgetting, compared with the base on the same items: a point left of the line is a loss, right of "
            f"it a gain. Bars are {intervals}; a bar that crosses the line is compatible with no change.",
        )  # fmt: skip
    if svg := charts.front(arms):
        yield Chart(
            svg, "Task gain (up is better) against retention (right is better). An arm above and right of another is "
            "better at both; the base stands at 0, 0. Lines join the arms of a policy in order of the learning rate; "
            f"bars are {intervals}.",
        )  # fmt: skip
    if svg := charts.drift(arms):
        yield Chart(
            svg, "Forgetting (down is worse) by drift (right is further from the base). Lines join the arms of a "
            f"policy in order of the learning rate; bars are {intervals}.",
        )  # fmt: skip
    if any(arm.drift for arm in arms):
        yield _drift(found)
    if found.measured.contrasts:
        yield _contrasts(found)


def _drift(found: Findings) -> Table:
    return Table(
        ["Arm", "Drift", "Tokens an answer", "Answers", "Unscored", "General"],
        [_drift_row(arm, found.confidence) for arm in found.measured.arms],
        _DRIFT_CAPTION.format(level=level(found.confidence)),
    )


def _drift_row(arm: Arm, confidence: float) -> list[Cell]:
    cells = [Cell(MISSING) for _ in range(4)]
    if arm.drift:
        estimate, n_tokens = arm.drift.per_token, arm.drift.mean_tokens
        reasons = [f"{name} {count(n)}" for name, n in arm.drift.unscored.items()]
        cells = [
            Cell(nats(estimate.value), nats_interval(estimate.low, estimate.high)),
            Cell(MISSING if n_tokens is None else f"{n_tokens:.1f}"), Cell(count(estimate.n)),
            Cell(count(estimate.n_missing), "\n".join(reasons)),
        ]  # fmt: skip
    return [Cell(arm.name), *cells, _average_cell(arm.general, confidence)]


_DRIFT_CAPTION = (
    "Drift is the forward KL divergence from base to arm, in nats a token with {level} intervals, 0 for the base: how "
    "much less probable an arm finds the answers that the base itself draws to the task's in-domain test prompts. More "
    "drift predicts more forgetting (arXiv 2509.04259) without any old data; it does not replace the measured change. "
    "Answers that were cut off at the token limit, or empty, are left out and counted as unscored."
)


def _contrasts(found: Findings) -> Table:
    rows = []
    for c in found.measured.contrasts:
        basis = [*(["best of each policy"] if c.best else []), *(["equal training"] if c.same_training else [])]
        cells = [_contrast_cell(change, found.confidence) for change in (c.task, c.transfer, c.general)]
        rows.append(row(f"{c.arm} minus {c.reference}", ", ".join(basis), *cells))
    return Table(
        ["Arms", "Compared as", "Task", "Out of domain", "General"], rows,
        "Arms compared with each other on the same items, in points. One learning rate alone proves little; a policy "
        "is better if it is better at each of them. The p-values are not adjusted for the number of pairs.",
    )  # fmt: skip


def _contrast_cell(change: Average | None, confidence: float) -> Cell:
    if change is None:
        return Cell(MISSING)
    tone = _tone(change.delta, stars(change.p_value, confidence=confidence))
    detail = f"{interval(change.low, change.high, sign=True)}\n{p_value(change.p_value)}"
    return Cell(signed(change.delta), detail, tone)
