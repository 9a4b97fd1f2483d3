"""The audit: from the LLM's verdicts on probes of known truth to the errors among its verdicts on the answers.

The probes give the share of acceptable answers that the judge accepts (t, its recall) and the share of wrong answers
that it accepts (f, false accepts). If it accepted a share a of the real answers, the share of right real answers is

    p = (a - f) / (t - f), clipped to [0, 1]                          (Rogan and Gladen 1978)

and of the n answers that it decided, n (1 - p) f are wrong and accepted: wrong self-targets. This assumes that the
judge errs on real answers as often as on probes. It is computed separately for each class of answerability.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from tasks.config import LlmJudgeConfig
from tasks.judge.panel import PanelVerdict
from tasks.judge.probes import JudgeProbe
from tasks.judge.rules import ACCEPT, REJECT, UNJUDGED
from tasks.measures.statistics import Estimate, wilson

ALL = "all"
THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))
LENIENT_SHARE = STRICT_SHARE = 0.2


@dataclass(frozen=True)
class Interval:
    """An estimate. Where the probes allow none, `value` is None and the bounds are the possible range."""

    value: float | None
    low: float
    high: float


@dataclass
class AnswerTally:
    """Counts of the LLM's verdicts on the real answers of one class.

    Attributes:
        unjudged: Answers without a verdict of the models; they become no targets and are in no other count.
        accepted_at: How many would be accepted at each of `THRESHOLDS`.
    """

    accept: int = 0
    reject: int = 0
    unjudged: int = 0
    accepted_at: list[int] = field(default_factory=lambda: [0] * len(THRESHOLDS))

    def add(self, found: PanelVerdict) -> None:
        """Count a verdict. An accept that the audit has withdrawn counts only in `accepted_at`."""
        if found.score is None:
            self.unjudged += 1
            return
        self.accept += found.verdict == ACCEPT
        self.reject += found.verdict == REJECT
        for i in range(bisect_right(THRESHOLDS, found.score)):
            self.accepted_at[i] += 1


@dataclass(frozen=True)
class ClassAudit:
    """The audit of one class of answerability, or of all.

    Attributes:
        right_accepted: Number of acceptable (right) probes that were accepted. The next three counts are alike.
        precision: Share of acceptable ones among the accepted probes. Half of all probes are acceptable.
        recall: Share of accepted ones among the acceptable probes.
        false_accepts: Share of accepted ones among the wrong probes.
        decided: Number of real answers that the LLM decided; it accepted `accepted` of them.
        wrong_accepted_answers: Expected number of wrong self-targets among `accepted`.
        precision_of_answers: Expected share of right answers among `accepted`; None where none was accepted.
    """

    answerable: str
    right_accepted: int
    right_rejected: int
    wrong_accepted: int
    wrong_rejected: int
    unjudged: int
    precision: Estimate
    recall: Estimate
    false_accepts: Estimate
    decided: int
    accepted: int
    wrong_accepted_answers: Interval
    precision_of_answers: Interval | None


class JudgedProbe(NamedTuple):
    """A probe with the panel's verdict on it."""

    probe: JudgeProbe
    found: PanelVerdict


def answerability(answerable: bool | None) -> str:
    """The class of an example: answerable, unanswerable, or unmarked where the task does not say."""
    return {True: "answerable", False: "unanswerable", None: "unmarked"}[answerable]


def precision_of(judged: Sequence[JudgedProbe]) -> Estimate:
    """The share of acceptable ones among the accepted probes."""
    accepted = [one.probe.acceptable for one in judged if one.found.verdict == ACCEPT]
    return wilson(sum(accepted), len(accepted))


def shortfall(judged: Sequence[JudgedProbe], config: LlmJudgeConfig) -> str | None:
    """How the judge misses `audit.min_precision`, in words; None where it does not, or where none is set."""
    least, found = config.audit.min_precision, precision_of(judged)
    if least is None or (found.value is not None and found.value >= least):
        return None
    if found.value is None:
        return f"precision not measurable: none of {len(judged)} probes was accepted"
    return f"precision of accept {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] on {found.n} accepted probes"


def summary(
    judged: Sequence[JudgedProbe], tallies: Mapping[str, AnswerTally], config: LlmJudgeConfig, *, fell_short: str | None
) -> dict[str, Any]:  # Any: JSON values
    """The audit for the manifest and the report, as JSON values.

    Args:
        tallies: Counts of the verdicts on the real answers, by class of answerability.
    """
    names = sorted({answerability(one.probe.case.answerable) for one in judged} | set(tallies))
    classes = [_class_audit(name, judged, tallies.get(name, AnswerTally())) for name in names]
    audits = [_all_classes(judged, tallies, classes), *(classes if len(classes) > 1 else [])]
    return {
        "n_probes": len(judged), "threshold": config.threshold, "min_precision": config.audit.min_precision,
        "below": config.audit.below, "fell_short": fell_short, "classes": [asdict(one) for one in audits],
        "kinds": _kinds(judged), "sweep": _sweep(judged, list(tallies.values()), config),
        "warnings": _warnings(audits[0]),
    }  # fmt: skip


def _class_audit(name: str, judged: Sequence[JudgedProbe], tally: AnswerTally) -> ClassAudit:
    mine = [one for one in judged if name in (ALL, answerability(one.probe.case.answerable))]
    counts = Counter((one.probe.acceptable, one.found.verdict) for one in mine)
    right, wrong = counts[True, ACCEPT], counts[False, ACCEPT]
    recall = wilson(right, right + counts[True, REJECT])
    false_accepts = wilson(wrong, wrong + counts[False, REJECT])
    n_wrong = expected_wrong(tally.accept, tally.accept + tally.reject, recall, false_accepts)
    return ClassAudit(
        name, right, counts[True, REJECT], wrong, counts[False, REJECT],
        counts[True, UNJUDGED] + counts[False, UNJUDGED], precision_of(mine), recall, false_accepts,
        tally.accept + tally.reject, tally.accept, n_wrong, _share_right(n_wrong, tally.accept),
    )  # fmt: skip


def _all_classes(
    judged: Sequence[JudgedProbe], tallies: Mapping[str, AnswerTally], classes: Sequence[ClassAudit]
) -> ClassAudit:
    """The audit of all classes: probes are pooled, and wrong self-targets are summed over the classes."""
    total = AnswerTally(*(sum(getattr(one, name) for one in tallies.values()) for name in (ACCEPT, REJECT)))
    pooled = _class_audit(ALL, judged, total)
    # A class without usable probes of its own takes the rates of all probes.
    parts = [
        line.wrong_accepted_answers
        if line.wrong_accepted_answers.value is not None
        else expected_wrong(line.accepted, line.decided, pooled.recall, pooled.false_accepts)
        for line in classes
        if line.accepted
    ]
    values = [part.value for part in parts]
    value = None if None in values else sum(v for v in values if v is not None)
    n_wrong = Interval(value, sum(part.low for part in parts), sum(part.high for part in parts))
    return replace(pooled, wrong_accepted_answers=n_wrong, precision_of_answers=_share_right(n_wrong, total.accept))


def expected_wrong(n_accepted: int, n_decided: int, recall: Estimate, false_accepts: Estimate) -> Interval:
    """How many of the accepted answers are wrong; the formula is at the top of this module.

    For the bounds, each rate is taken at the worse, or the better, end of its Wilson interval. Where the answers
    contradict a rate of the probes, every value of that rate that the answers allow is possible.
    """
    if not n_accepted:
        return Interval(0.0, 0.0, 0.0)
    if recall.value is None or false_accepts.value is None:
        return Interval(None, 0.0, float(n_accepted))
    rate = wilson(n_accepted, n_decided)
    assert rate.value is not None  # something was accepted

    def wrong(t: float, f: float, a: float) -> float | None:
        if t <= f:
            return None  # the judge accepts wrong answers as often as right ones, so its verdicts say nothing
        share_right = min(1.0, max(0.0, (a - f) / (t - f)))
        return min(float(n_accepted), n_decided * (1 - share_right) * f)

    # Clipping alone would give such a contradiction an interval of no width, as if it were certain.
    best = wrong(_low(recall), 0.0 if _below(rate, false_accepts) else _low(false_accepts), _high(rate))
    worst = wrong(1.0 if _below(recall, rate) else _high(recall), _high(false_accepts), _low(rate))
    return Interval(
        wrong(recall.value, false_accepts.value, rate.value), best or 0.0,
        float(n_accepted) if worst is None else worst,
    )  # fmt: skip


def _low(estimate: Estimate) -> float:
    return 0.0 if estimate.low is None else estimate.low


def _high(estimate: Estimate) -> float:
    return 1.0 if estimate.high is None else estimate.high


def _below(one: Estimate, other: Estimate) -> bool:
    """Whether the whole interval of `one` is below that of `other`."""
    return _high(one) < _low(other)


def _share_right(n_wrong: Interval, n_accepted: int) -> Interval | None:
    if not n_accepted:
        return None
    value = None if n_wrong.value is None else 1 - n_wrong.value / n_accepted
    return Interval(value, 1 - n_wrong.high / n_accepted, 1 - n_wrong.low / n_accepted)


def _kinds(judged: Sequence[JudgedProbe]) -> list[dict[str, Any]]:  # Any: JSON values
    counts = Counter((not one.probe.acceptable, one.probe.kind, one.found.verdict) for one in judged)
    return [
        {"kind": kind, "acceptable": not is_wrong, **{v: counts[is_wrong, kind, v] for v in (ACCEPT, REJECT, UNJUDGED)}}
        for is_wrong, kind in sorted({key[:2] for key in counts})
    ]


def _sweep(
    judged: Sequence[JudgedProbe], tallies: Sequence[AnswerTally], config: LlmJudgeConfig
) -> list[dict[str, Any]]:  # Any: JSON values
    """Precision and recall on the probes, and accepted answers, at each threshold; empty without probabilities."""
    if config.verdict_by == "text" and (config.n_opinions == 1 or config.combine == "majority"):
        return []
    scored = [(one.probe.acceptable, one.found.score) for one in judged if one.found.score is not None]
    n_right = sum(acceptable for acceptable, _ in scored)
    rows = []
    for i, threshold in enumerate(THRESHOLDS):
        accepted = [acceptable for acceptable, score in scored if score >= threshold]
        precision, recall = wilson(sum(accepted), len(accepted)), wilson(sum(accepted), n_right)
        rows.append({
            "threshold": threshold, "precision": precision.value, "recall": recall.value,
            "accepted_probes": len(accepted), "accepted": sum(one.accepted_at[i] for one in tallies),
        })  # fmt: skip
    return rows


def _warnings(line: ClassAudit) -> list[str]:
    found = []
    lenient, missed = line.false_accepts, line.right_rejected / max(1, line.right_accepted + line.right_rejected)
    if lenient.value is not None and lenient.value > LENIENT_SHARE:
        found.append(f"The judge accepts {100 * lenient.value:.0f} % of the wrong probes: it is lenient.")
    if missed > STRICT_SHARE:
        found.append(f"The judge rejects {100 * missed:.0f} % of the right probes: it is strict.")
    rate = wilson(line.accepted, line.decided)
    for contradicts, more, probes, share in (
        (_below(line.recall, rate), "more", "right", line.recall.value),
        (_below(rate, lenient), "less", "wrong", lenient.value),
    ):
        if contradicts and rate.value is not None and share is not None:
            found.append(
                f"The judge accepts {100 * rate.value:.0f} % of the answers, {more} than the {100 * share:.0f} % of "
                f"the {probes} probes: the probes are not representative of the answers."
            )
    n_probes = line.right_accepted + line.right_rejected + line.wrong_accepted + line.wrong_rejected + line.unjudged
    if line.unjudged > 0.1 * n_probes:
        found.append(f"The judge gave no verdict on {line.unjudged} of {n_probes} probes.")
    return found
