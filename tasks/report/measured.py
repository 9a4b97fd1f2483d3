"""What was measured: every score with its interval, every arm compared with the base, and the policies with each other.

An average uses the primary metric of each benchmark. The p-values of an arm are Holm-adjusted, once over the splits of
the task and once over the general benchmarks. Comparisons between arms are not adjusted for their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.config import ArmConfig, RunConfig
from tasks.measures import statistics
from tasks.measures.bootstrap import Method
from tasks.measures.non_inferiority import non_inferior
from tasks.measures.scores import Key, items_of, keys_of
from tasks.measures.statistics import Average, Comparison, Estimate
from tasks.report.drift import Drift, drift_of
from tasks.wording import BASE, setting


@dataclass(frozen=True)
class Score:
    """One metric of one model on one benchmark.

    Attributes:
        change: From the base, on the same items; None for the base, and where each model has items of its own.
        p_holm: Holm-adjusted p-value of the change; None for metrics that are not primary.
    """

    key: Key
    estimate: Estimate
    change: Comparison | None
    p_holm: float | None


@dataclass(frozen=True)
class Arm:
    """One arm: how it was trained and what it scored.

    Attributes:
        training: Every setting that changes what is learned.
        task: Average change on in-domain task splits, `transfer` on out-of-domain ones, `general` on benchmarks.
        non_inferior: Whether a mean loss of report.margin on general benchmarks is ruled out; None without benchmarks.
        drift: None where it was not measured.
    """

    name: str
    policy: str
    training: dict[str, Any]  # Any: JSON values
    scores: list[Score]
    task: Average | None
    transfer: Average | None
    general: Average | None
    non_inferior: bool | None
    drift: Drift | None

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""
        return float(self.training["learning_rate"])

    def settings(self, options: Sequence[str]) -> str:
        """These options of its training: "learning rate 2e-4, epochs 2"."""
        return ", ".join(f"{option.replace('_', ' ')} {setting(self.training[option])}" for option in options)


@dataclass(frozen=True)
class Contrast:
    """Two arms of different policies on the same items, as `arm` minus `reference`.

    Attributes:
        same_training: No setting that changes what is learned differs between the two.
        best: Each is the arm of its policy with the highest task score.
    """

    arm: str
    reference: str
    same_training: bool
    best: bool
    task: Average | None
    transfer: Average | None
    general: Average | None


@dataclass(frozen=True)
class Measured:
    """All scores and comparisons of a run.

    Attributes:
        best: By policy, the arm that is best on the task.
        options: The training options that an arm may set for itself.
        varied_options: The options in which the arms differ; the learning rate where they differ in none.
    """

    base: list[Score]
    arms: list[Arm]
    best: dict[str, str]
    reference_policy: str
    contrasts: list[Contrast]
    options: list[str]
    varied_options: list[str]


Change = Callable[[Key, str, str], Comparison]


def measure(folders: Mapping[str, Path], recipe: RunConfig) -> Measured:
    """Compare all models of a run.

    Args:
        folders: The scores artifact of each model: of the base under BASE, of each arm under its name.
    """
    method = Method(recipe.report.confidence, recipe.report.n_bootstrap, recipe.report.seed)
    keys = keys_of(folders)
    frames = {key: items_of(folders, key) for key in keys}
    clusters = {key: list(frame.pop("cluster")) for key, frame in frames.items()}

    def change(key: Key, before: str, after: str) -> Comparison:
        frame = frames[key]
        return statistics.compare(
            frame[before].to_numpy(), frame[after].to_numpy(), clusters=clusters[key], method=method
        )

    def estimate(key: Key, model: str) -> Estimate:
        scores, names = frames[key][model].to_numpy(), clusters[key]
        if key.own_items:  # an item that only another model is scored on is not a missing score of this one
            scored = ~np.isnan(scores)
            scores, names = scores[scored], [name for name, keep in zip(names, scored, strict=True) if keep]
        return statistics.mean(scores, clusters=names, method=method)

    base = [Score(key, estimate(key, BASE), None, None) for key in keys]
    arms = [
        _arm(arm, recipe, keys, estimate, change, method, drift_of(folders[arm.name], method)) for arm in recipe.arms
    ]
    best = _best(arms)
    reference = "gold" if "gold" in best else arms[0].policy
    contrasts = _contrasts(arms, best, reference, keys, change, method)
    options = list(dict.fromkeys(option for arm in recipe.arms for option in arm.options()))
    return Measured(base, arms, best, reference, contrasts, options, varied(arms, options))


def varied(arms: Sequence[Arm], options: Sequence[str]) -> list[str]:
    """The options in which these arms differ; the learning rate where they differ in none."""
    found = [option for option in options if any(arm.training[option] != arms[0].training[option] for arm in arms)]
    return found or ["learning_rate"]


def _arm(
    arm: ArmConfig, recipe: RunConfig, keys: Sequence[Key], estimate: Callable[[Key, str], Estimate], change: Change,
    method: Method, drift: Drift | None,
) -> Arm:  # fmt: skip
    changes = {key: change(key, BASE, arm.name) for key in keys if not key.own_items}
    adjusted = _adjusted(changes)
    scores = [Score(key, estimate(key, arm.name), changes.get(key), adjusted.get(key)) for key in keys]
    task, transfer, general = (_average(changes, family, method) for family in ("task-in", "task-out", "general"))
    kept = non_inferior(general.low, margin=recipe.report.margin) if general else None
    return Arm(
        arm.name, arm.policy, arm.train_config(recipe.train).identity(), scores, task, transfer, general, kept, drift,
    )  # fmt: skip


def _adjusted(changes: Mapping[Key, Comparison]) -> dict[Key, float]:
    """Holm-adjusted p-values of the primary metrics, apart for the task and for general benchmarks."""
    found: dict[Key, float] = {}
    for is_task in (True, False):
        asked = {k.name: k for k, c in changes.items() if k.primary and k.is_task == is_task and c.p_value is not None}
        adjusted = statistics.holm({name: changes[key].p_value or 0.0 for name, key in asked.items()})
        found |= {key: adjusted[name] for name, key in asked.items()}
    return found


def _average(changes: Mapping[Key, Comparison], family: str, method: Method) -> Average | None:
    chosen = {key.benchmark: c for key, c in changes.items() if key.primary and key.family == family}
    return statistics.average(chosen, method=method)


def _best(arms: Sequence[Arm]) -> dict[str, str]:
    """By policy, the arm with the highest task score; of equal ones the first."""
    best: dict[str, Arm] = {}
    for arm in arms:
        other = best.setdefault(arm.policy, arm)
        if arm.task and other.task and arm.task.after > other.task.after:
            best[arm.policy] = arm
    return {policy: arm.name for policy, arm in best.items()}


def _contrasts(
    arms: Sequence[Arm], best: Mapping[str, str], reference: str, keys: Sequence[Key], change: Change, method: Method
) -> list[Contrast]:
    """Every other policy against the reference policy: best against best, and at equal training."""
    found = []
    for arm in arms:
        for other in arms:
            if arm.policy == reference or other.policy != reference:
                continue
            same = arm.training == other.training
            both_best = best[arm.policy] == arm.name and best[reference] == other.name
            if same or both_best:
                changes = {key: change(key, other.name, arm.name) for key in keys if key.primary}
                averages = (_average(changes, family, method) for family in ("task-in", "task-out", "general"))
                found.append(Contrast(arm.name, other.name, same, both_best, *averages))
    return sorted(found, key=lambda c: not c.best)
