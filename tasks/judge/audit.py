"""The audit: what the LLM's verdicts on probes of known truth say of its verdicts on the answers.

Probes give the share of acceptable answers that the judge accepts (t, its recall) and of others that it accepts
(f, false accepts). With the share a that it accepted of the real answers, the share of real answers that are right is

    p = (a - f) / (t - f), clipped to [0, 1]                          (Rogan and Gladen 1978)

and n (1 - p) f of the n answers that it decided are wrong and accepted: wrong self-targets. That holds as far as the
judge errs on real answers as it does on probes, apart for each class of answerability.
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
    """An estimate; `value` is None where the probes cannot tell, the bounds then are what is possible."""

    value: float | None
    low: float
    high: float


@dataclass
class AnswerTally:
    """What the LLM made of real answers of one class.

    Attributes:
        unjudged: Without a verdict of the models; they are no targets and count nowhere else.
        accepted_at: How many would be accepted at each of `THRESHOLDS`.
    """

    accept: int = 0
    reject: int = 0
    unjudged: int = 0
    accepted_at: list[int] = field(default_factory=lambda: [0] * len(THRESHOLDS))

    def add(self, decision: PanelVerdict) -> None:
        """Count a decision. One that an imprecise judge lost is neither accepted nor undecided."""
        if decision.score is None:
            self.unjudged += 1
            return
        self.accept += decision.verdict == ACCEPT
        self.reject += decision.verdict == REJECT
        for place in range(bisect_right(THRESHOLDS, decision.score)):
            self.accepted_at[place] += 1


@dataclass(frozen=True)
class ClassAudit:
    """The audit of one class of answerability, or of all.

    Attributes:
        right_accepted: Acceptable probes that were accepted; the other three alike.
        precision: Acceptable among the accepted probes; half of all probes are acceptable.
        recall: Accepted among the acceptable probes.
        false_accepts: Accepted among the other probes.
        decided: Real answers that the LLM decided; `accepted` of them.
        wrong_accepted_answers: Expected number of wrong self-targets among `accepted`.
        precision_of_answers: Expected share of right ones among `accepted`; None without any.
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
    """A probe with what the LLM made of it."""

    probe: JudgeProbe
    decision: PanelVerdict


def answerability(answerable: bool | None) -> str:
    """The class of an example: answerable, unanswerable, or unmarked where the task does not say."""
    return {True: "answerable", False: "unanswerable", None: "unmarked"}[answerable]


def precision_of(judged: Sequence[JudgedProbe]) -> Estimate:
    """Acceptable among the accepted probes."""
    accepted = [one.probe.acceptable for one in judged if one.decision.verdict == ACCEPT]
    return wilson(sum(accepted), len(accepted))


def shortfall(judged: Sequence[JudgedProbe], config: LlmJudgeConfig) -> str | None:
    """How the judge misses the precision that the recipe asks for; None where it does not, or none is asked for."""
    least, found = config.audit.min_precision, precision_of(judged)
    if least is None or (found.value is not None and found.value >= least):
        return None
    if found.value is None:
        return f"precision not measurable: none of {len(judged)} probes was accepted"
    return f"precision of accept {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] on {found.n} accepted probes"


def summary(
    judged: Sequence[JudgedProbe], seen: Mapping[str, AnswerTally], config: LlmJudgeConfig, *, fell_short: str | None
) -> dict[str, Any]:  # Any: JSON values
    """The audit for the manifest and the report, as JSON values.

    Args:
        seen: What the LLM made of the real answers, by class.
    """
    names = sorted({answerability(one.probe.case.answerable) for one in judged} | set(seen))
    classes = [_line(name, judged, seen.get(name, AnswerTally())) for name in names]
    lines = [_all_classes(judged, seen, classes), *(classes if len(classes) > 1 else [])]
    return {
        "n_probes": len(judged),
        "threshold": config.threshold,
        "min_precision": config.audit.min_precision,
        "below": config.audit.below,
        "fell_short": fell_short,
        "classes": [asdict(line) for line in lines],
        "kinds": _kinds(judged),
        "sweep": _sweep(judged, list(seen.values()), config),
        "warnings": _warnings(lines[0]),
    }


def _line(name: str, judged: Sequence[JudgedProbe], seen: AnswerTally) -> ClassAudit:
    mine = [one for one in judged if name in (ALL, answerability(one.probe.case.answerable))]
    counts = Counter((one.probe.acceptable, one.decision.verdict) for one in mine)
    right, wrong = counts[True, ACCEPT], counts[False, ACCEPT]
    recall = wilson(right, right + counts[True, REJECT])
    false_accepts = wilson(wrong, wrong + counts[False, REJECT])
    n_wrong = expected_wrong(seen.accept, seen.accept + seen.reject, recall, false_accepts)
    return ClassAudit(
        name, right, counts[True, REJECT], wrong, counts[False, REJECT],
        counts[True, UNJUDGED] + counts[False, UNJUDGED], precision_of(mine), recall, false_accepts,
        seen.accept + seen.reject, seen.accept, n_wrong, _share_right(n_wrong, seen.accept),
    )  # fmt: skip


def _all_classes(
    judged: Sequence[JudgedProbe], seen: Mapping[str, AnswerTally], classes: Sequence[ClassAudit]
) -> ClassAudit:
    """The line of all: probes pooled, wrong self-targets added up over the classes, which differ in their rates."""
    total = AnswerTally(*(sum(getattr(one, name) for one in seen.values()) for name in (ACCEPT, REJECT)))
    pooled = _line(ALL, judged, total)
    concerned = [line for line in classes if line.accepted]
    # Where the probes say nothing of a class, all of them must do for it.
    parts = [
        line.wrong_accepted_answers
        if line.wrong_accepted_answers.value is not None
        else expected_wrong(line.accepted, line.decided, pooled.recall, pooled.false_accepts)
        for line in concerned
    ]
    values = [part.value for part in parts]
    value = None if None in values else sum(v for v in values if v is not None)
    n_wrong = Interval(value, sum(part.low for part in parts), sum(part.high for part in parts))
    return replace(pooled, wrong_accepted_answers=n_wrong, precision_of_answers=_share_right(n_wrong, total.accept))


def expected_wrong(n_accepted: int, n_decided: int, recall: Estimate, false_accepts: Estimate) -> Interval:
    """How many of the accepted answers are wrong; see the top of this module for the formula.

    The interval takes each rate, and the acceptance rate, at the end of its Wilson interval that is worse, or better.
    Where the answers contradict a rate of the probes, that rate is any that the answers allow.
    """
    if not n_accepted:
        return Interval(0.0, 0.0, 0.0)
    if recall.value is None or false_accepts.value is None:
        return Interval(None, 0.0, float(n_accepted))
    rate = wilson(n_accepted, n_decided)
    assert rate.value is not None  # something was accepted

    def wrong(t: float, f: float, a: float) -> float | None:
        if t <= f:
            return None  # accepts wrong answers as often as right ones: nothing can be told
        share_right = min(1.0, max(0.0, (a - f) / (t - f)))
        return min(float(n_accepted), n_decided * (1 - share_right) * f)

    # Clipped, such a contradiction would come out as certainty: an interval without any width.
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
    """Whether the whole interval of one lies below that of the other."""
    return _high(one) < _low(other)


def _share_right(n_wrong: Interval, n_accepted: int) -> Interval | None:
    if not n_accepted:
        return None
    value = None if n_wrong.value is None else 1 - n_wrong.value / n_accepted
    return Interval(value, 1 - n_wrong.high / n_accepted, 1 - n_wrong.low / n_accepted)


def _kinds(judged: Sequence[JudgedProbe]) -> list[dict[str, Any]]:  # Any: JSON values
    counts = Counter((not one.probe.acceptable, one.probe.kind, one.decision.verdict) for one in judged)
    return [
        {"kind": kind, "acceptable": not is_wrong, **{v: counts[is_wrong, kind, v] for v in (ACCEPT, REJECT, UNJUDGED)}}
        for is_wrong, kind in sorted({key[:2] for key in counts})
    ]


def _sweep(
    judged: Sequence[JudgedProbe], seen: Sequence[AnswerTally], config: LlmJudgeConfig
) -> list[dict[str, Any]]:  # Any: JSON values
    """Precision and recall of the probes, and accepted answers, at other thresholds; none where there is no scale."""
    if config.verdict_by == "text" and (config.n_opinions == 1 or config.combine == "majority"):
        return []
    scored = [(one.probe.acceptable, one.decision.score) for one in judged if one.decision.score is not None]
    n_right = sum(acceptable for acceptable, _ in scored)
    rows = []
    for place, threshold in enumerate(THRESHOLDS):
        accepted = [acceptable for acceptable, score in scored if score >= threshold]
        precision, recall = wilson(sum(accepted), len(accepted)), wilson(sum(accepted), n_right)
        rows.append({
            "threshold": threshold, "precision": precision.value, "recall": recall.value,
            "accepted_probes": len(accepted), "accepted": sum(one.accepted_at[place] for one in seen),
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
                f"the {probes} probes: in this, they do not speak for the answers."
            )
    n_probes = line.right_accepted + line.right_rejected + line.wrong_accepted + line.wrong_rejected + line.unjudged
    if line.unjudged > 0.1 * n_probes:
        found.append(f"The judge gave no verdict on {line.unjudged} of {n_probes} probes.")
    return found
