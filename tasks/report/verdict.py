"""The verdict in sentences, and the warnings: both are computed, and claim no more than was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tasks.measures.bootstrap import MIN_CLUSTERS
from tasks.measures.statistics import Average
from tasks.policies import title_of
from tasks.report.audits import Audit, audit_warnings
from tasks.report.measured import Arm, Contrast, Measured, varied
from tasks.report.provenance import ArtifactRecord
from tasks.report.verdicts_and_targets import Acceptance
from tasks.wording import BASE, interval, listed, p_value, percent, signed

LOW_ACCEPTANCE, HIGH_ACCEPTANCE = 0.05, 0.95
LOW_COVERAGE = 0.9
WIDE_DETECTABLE = 0.03
MANY_UNSCORED = 0.02


def verdict(measured: Measured, *, confidence: float) -> list[str]:
    """The headline and the sentences that qualify it."""
    alpha = 1 - confidence
    arms = {arm.name: arm for arm in measured.arms}
    best = [arms[measured.best[policy]] for policy in _in_order(measured)]
    main, controls = best[:2], best[2:]
    sentences = ["; ".join(_outcome(arm, alpha) for arm in main) + "."]
    sentences += [_difference(c, arms, alpha) for c in _of_interest(measured, main)]
    if controls:
        sentences.append("; ".join(_outcome(arm, alpha) for arm in controls) + ".")
        sentences += [_difference(c, arms, alpha) for c in _of_interest(measured, controls)]
    if not any(arm.task for arm in measured.arms):
        sentences.append(_no_average(measured, "task-in", "in-domain task split", "what was gained"))
    if not any(arm.general for arm in measured.arms):
        sentences.append(_no_average(measured, "general", "general benchmark", "forgetting"))
    if len(measured.arms) > len(best):
        sentences.append(_choice(measured, best))
    for policy in measured.best:
        sentences += _consistency(policy, measured, arms, alpha)
    if not measured.contrasts:
        sentences.append("Only one policy was trained: there is nothing to compare it with but the base.")
    return [sentence[0].upper() + sentence[1:] for sentence in sentences if sentence]


def _in_order(measured: Measured) -> list[str]:
    """The policies in the order of the verdict: SSR (else the first that is not the reference), reference, others."""
    others = sorted((p for p in measured.best if p != measured.reference_policy), key=lambda policy: policy != "ssr")
    return [*others[:1], measured.reference_policy, *others[1:]]


def _of_interest(measured: Measured, arms: Sequence[Arm]) -> list[Contrast]:
    names = {arm.name for arm in arms}
    return [contrast for contrast in measured.contrasts if contrast.best and contrast.arm in names]


def _no_average(measured: Measured, family: str, what: str, about: str) -> str:
    """Why there is no average of a family."""
    changes = [s.change for arm in measured.arms for s in arm.scores if s.key.primary and s.key.family == family]
    is_scored = any(change and change.delta is not None for change in changes)
    why = "has enough groups of items for a test" if is_scored else "was measured"
    return f"No {what} {why}: nothing can be said about {about}."


def _outcome(arm: Arm, alpha: float) -> str:
    parts = []
    if arm.task:
        parts.append(f"{_moved(arm.task, alpha)} on the task")
    if arm.general:
        parts.append(f"changed general benchmarks by {_points(arm.general)} on average{_doubt(arm.general, alpha)}")
    elif not parts:
        parts.append("has no scores that could be tested")
    return f"{title_of(arm.policy)} ({arm.name}) {' and '.join(parts)}"


def _moved(change: Average, alpha: float) -> str:
    return f"{'lost' if change.delta < 0 else 'gained'} {_points(change)}{_doubt(change, alpha)}"


def _points(change: Average) -> str:
    return f"{signed(change.delta)} points {interval(change.low, change.high, sign=True)}"


def _doubt(change: Average, alpha: float) -> str:
    return "" if change.p_value < alpha else " (not significant)"


def _difference(contrast: Contrast, arms: dict[str, Arm], alpha: float) -> str:
    first, second = arms[contrast.arm], arms[contrast.reference]
    parts = [
        f"{where} {_points(c)}, {'significant' if c.p_value < alpha else 'not significant'} ({p_value(c.p_value)})"
        for where, c in _places(contrast)
        if c
    ]
    if not parts:
        return ""
    unequal = "" if contrast.same_training else " The two were not trained alike, which may be part of it."
    return f"The difference {title_of(first.policy)} minus {title_of(second.policy)} is {'; '.join(parts)}.{unequal}"


def _places(c: Contrast) -> tuple[tuple[str, Average | None], ...]:
    return ("on the task", c.task), ("out of domain", c.transfer), ("on general benchmarks", c.general)


def _choice(measured: Measured, best: Sequence[Arm]) -> str:
    tried = {arm.policy: sum(other.policy == arm.policy for other in measured.arms) for arm in best}
    named = [
        f"{title_of(arm.policy)} {arm.name} ({arm.settings(measured.varied_options)}, 1 of {tried[arm.policy]})"
        for arm in best
    ]
    return (
        f"Each policy stands with its arm of the highest task score: {listed(named)}. "
        "The choice was made on the items reported here, so its task score is slightly optimistic."
    )


def _consistency(policy: str, measured: Measured, arms: dict[str, Arm], alpha: float) -> Iterator[str]:
    """For task, transfer and benchmarks: do all comparisons of this policy with the reference agree?"""
    contrasts = [c for c in measured.contrasts if arms[c.arm].policy == policy]
    if len(contrasts) < 2:
        return
    pair = f"{title_of(policy)} against {title_of(measured.reference_policy)}"
    for place in range(len(_places(contrasts[0]))):
        where = _places(contrasts[0])[place][0]
        told = [(contrast, _places(contrast)[place][1]) for contrast in contrasts]
        conclusions = {_conclusion(change, alpha) for _, change in told}
        if conclusions == {"not measured"}:
            continue
        if len(conclusions) == 1:
            yield f"{where}, {pair} is {conclusions.pop()} in each of {len(told)} comparisons."
            continue
        compared = [arms[name] for contrast in contrasts for name in (contrast.arm, contrast.reference)]
        options = varied(compared, measured.options)
        cases = [
            f"{_case(contrast, arms, options)} {_points(c)} ({_conclusion(c, alpha)})" for contrast, c in told if c
        ]
        what = listed([option.replace("_", " ") for option in options])
        yield f"{where}, the conclusion on {pair} depends on the {what}: {'; '.join(cases)}."


def _conclusion(change: Average | None, alpha: float) -> str:
    if change is None:
        return "not measured"
    if change.p_value >= alpha:
        return "not significantly different"
    return "higher" if change.delta > 0 else "lower"


def _case(contrast: Contrast, arms: dict[str, Arm], options: Sequence[str]) -> str:
    first, second = arms[contrast.arm], arms[contrast.reference]
    settings = first.settings(options)
    trained = f"both at {settings}" if contrast.same_training else f"{settings} against {second.settings(options)}"
    return f"{first.name} against {second.name} ({trained})"


def warnings(
    measured: Measured, acceptance: Sequence[Acceptance], steps: Sequence[ArtifactRecord], audits: Sequence[Audit]
) -> list[str]:
    """What a reader should know before trusting the numbers, most serious first."""
    judge = (*audit_warnings(audits), *_judge(acceptance))
    scores = (*_unscored(measured), *_few_groups(measured), *_in_no_average(measured))
    return [*_accounting(steps), *judge, *scores, *_power(measured)]


def _accounting(steps: Sequence[ArtifactRecord]) -> Iterator[str]:
    for made in steps:
        if made.closes is False:
            yield f"Rows of {made.label} do not add up: {made.rows_in} in, {made.rows_out} out, {made.dropped} dropped."


def _judge(acceptance: Sequence[Acceptance]) -> Iterator[str]:
    for row in acceptance:
        if row.answerable != "all":
            continue
        accepted, what = row.rate.value, "answers" if row.kind == "answer" else f"{row.kind}s"
        seen = f"{percent(accepted)} of the judged {what} were accepted"
        is_answer = row.kind == "answer"  # of rewrites, a high share is what one hopes for
        if is_answer and accepted is not None and accepted <= LOW_ACCEPTANCE:
            yield f"Only {seen}: SSR is close to SFT. Is the judge too strict?"
        if is_answer and accepted is not None and accepted >= HIGH_ACCEPTANCE:
            yield f"{seen}: SSR teaches little but the model's own answers. Is the judge too lenient?"
        if row.coverage < LOW_COVERAGE:
            yield (
                f"Only {percent(row.coverage)} of the {what} were judged; {row.unjudged:,} unjudged ones count as "
                "gold, and the acceptance rate may not hold for them."
            )


def _unscored(measured: Measured) -> Iterator[str]:
    for model, scores in ((BASE, measured.base), *((arm.name, arm.scores) for arm in measured.arms)):
        for score in scores:
            estimate = score.estimate
            n = estimate.n + estimate.n_missing
            if score.key.primary and (n == 0 or estimate.n_missing / n > MANY_UNSCORED):
                yield f"{model}: {estimate.n_missing:,} of {n:,} items of {score.key.benchmark} have no score."


def _few_groups(measured: Measured) -> Iterator[str]:
    untested: dict[tuple[str, str], list[str]] = {}
    fewest: dict[str, int] = {}
    for arm, score in ((each, score) for each in measured.arms for score in each.scores):
        change, name = score.change, score.key.benchmark
        if change is None or change.delta is None or not score.key.primary:
            continue
        if change.standard_error is None:
            is_one = change.n_clusters == 1
            why = "its items are one group" if is_one else "all of its groups changed by the same amount"
            untested.setdefault((name, why), []).append(arm.name)
        elif change.n_clusters < MIN_CLUSTERS and change.test != "McNemar exact":
            fewest[name] = min(fewest.get(name, MIN_CLUSTERS), change.n_clusters)
    for (name, why), arms in untested.items():
        yield f"{name}: {why}. For {listed(arms)} it has no interval and no test, and is left out of the averages."
    for name, n in fewest.items():
        yield f"{name}: only {n} independent groups of items; with fewer than {MIN_CLUSTERS}, intervals are too narrow."


def _in_no_average(measured: Measured) -> Iterator[str]:
    keys = [score.key for score in measured.base]
    for name in dict.fromkeys(key.benchmark for key in keys):
        of_one = [key for key in keys if key.benchmark == name]
        if any(key.primary for key in of_one):
            continue
        if unstated := [key.metric for key in of_one if key.higher_is_better is None]:
            yield (
                f"{name}: the benchmark does not state for {listed(unstated)} whether higher is better, so no average "
                "includes it and no promotion checks it. Set `higher_is_better` in the metric_list of its YAML file."
            )
        else:
            yield f"{name}: lower is better for each of its metrics, so no average and no promotion check includes it."


def _power(measured: Measured) -> Iterator[str]:
    sizes = [arm.general.detectable for arm in measured.arms if arm.general and arm.general.detectable]
    if sizes and max(sizes) > WIDE_DETECTABLE:
        yield (
            f"The benchmarks are small: a mean drop below {100 * max(sizes):.1f} points could go unnoticed "
            "(power 80 %). No significant drop is not the same as no drop."
        )
