"""What was measured: every score with its interval, every arm against the base, the policies against each other.

Averages use one metric a benchmark, its primary metric. Significance is Holm-corrected over the benchmarks of an arm
within the task and within the general benchmarks. Comparisons between arms are not corrected for their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from tasks import statistics
from tasks.config import ArmConfig, RunConfig
from tasks.schema import ITEMS, SCORES, check, read_table
from tasks.statistics import Average, Comparison, Estimate, Method

BASE = "base"
LOWER_IS_BETTER = ("over_refusal", "leaked_refusal")
LEAKED_REFUSAL = "leaked_refusal"
# Each model is scored on the items that it refused itself: there are no pairs to compare.
_OWN_ITEMS = ("abstention_precision",)
_PRIMARY = {
    "task": ("modified_recall", "exact_match", "token_recall"),
    "general": ("exact_match", "acc_norm", "mc2", "acc"),
}


@dataclass(frozen=True)
class Key:
    """What a score is of."""

    benchmark: str
    metric: str
    family: str
    primary: bool

    @property
    def name(self) -> str:
        return f"{self.benchmark} {self.metric}"

    @property
    def is_task(self) -> bool:
        return self.family != "general"

    @property
    def lower_is_better(self) -> bool:
        return self.metric in LOWER_IS_BETTER


@dataclass(frozen=True)
class Score:
    """One metric of one model on one benchmark.

    Attributes:
        change: Against the base on the same items; None for the base, and where models have items of their own.
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
        task: Average change on in-domain task splits, `transfer` on out-of-domain ones, `general` on benchmarks.
        non_inferior: Whether a mean loss of report.margin on general benchmarks is ruled out.
    """

    name: str
    policy: str
    learning_rate: float
    epochs: float
    train_seed: int
    scores: list[Score]
    task: Average | None
    transfer: Average | None
    general: Average | None
    non_inferior: bool | None


@dataclass(frozen=True)
class Contrast:
    """Two arms of different policies on the same items, as `arm` minus `reference`.

    Attributes:
        same_training: Both trained with the same learning rate, epochs and seed.
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
    """All scores and comparisons of a run; `best` names the best arm on the task of each policy."""

    base: list[Score]
    arms: list[Arm]
    best: dict[str, str]
    reference_policy: str
    contrasts: list[Contrast]


Change = Callable[[Key, str, str], Comparison]


def measure(folders: Mapping[str, Path], recipe: RunConfig) -> Measured:
    """Compare all models.

    Args:
        folders: A scores artifact a model: the base under BASE, each arm under its name.
    """
    method = Method(recipe.report.confidence, recipe.report.n_bootstrap, recipe.report.seed)
    keys = _keys(folders)
    frames = {key: _items(folders, key) for key in keys}
    clusters = {key: list(frame.pop("cluster")) for key, frame in frames.items()}

    def change(key: Key, before: str, after: str) -> Comparison:
        frame = frames[key]
        return statistics.compare(
            frame[before].to_numpy(), frame[after].to_numpy(), clusters=clusters[key], method=method
        )

    def estimate(key: Key, model: str) -> Estimate:
        scores, names = frames[key][model].to_numpy(), clusters[key]
        if key.metric in _OWN_ITEMS:  # another model's items are not this one's missing scores
            scored = ~np.isnan(scores)
            scores, names = scores[scored], [name for name, keep in zip(names, scored, strict=True) if keep]
        return statistics.mean(scores, clusters=names, method=method)

    base = [Score(key, estimate(key, BASE), None, None) for key in keys]
    arms = [_arm(arm, recipe, keys, estimate, change, method) for arm in recipe.arms]
    best = _best(arms)
    reference = "gold" if "gold" in best else arms[0].policy
    contrasts = _contrasts(arms, best, reference, keys, change, method)
    return Measured(base, arms, best, reference, contrasts)


def _keys(folders: Mapping[str, Path]) -> list[Key]:
    """Every (benchmark, metric) that any model has, the task first, primary metrics first."""
    family: dict[tuple[str, str], str] = {}
    for folder in folders.values():
        for row in read_table(folder / "scores.parquet", SCORES).to_pylist():
            family.setdefault((row["benchmark"], row["metric"]), row["family"])
    metrics: dict[str, list[str]] = {}
    for benchmark, metric in sorted(family):
        metrics.setdefault(benchmark, []).append(metric)
    keys = [
        Key(benchmark, metric, kind, metric == _primary(metrics[benchmark], is_task=kind != "general"))
        for (benchmark, metric), kind in family.items()
    ]
    order = ("task-in", "task-out", "general")
    return sorted(keys, key=lambda k: (order.index(k.family), k.benchmark, not k.primary, k.metric))


def _primary(metrics: Sequence[str], *, is_task: bool) -> str | None:
    """The metric that stands for its benchmark. lm-eval may add a filter to a name: `exact_match,strict-match`."""
    for wanted in _PRIMARY["task" if is_task else "general"]:
        if found := [metric for metric in metrics if metric.split(",")[0] == wanted]:
            return found[0]
    return next((metric for metric in metrics if metric != LEAKED_REFUSAL), None)


def _items(folders: Mapping[str, Path], key: Key) -> pd.DataFrame:
    """Scores of one metric: a row an item, a column a model, and the cluster; NaN where a model has no score."""
    columns: dict[str, pd.Series[float]] = {}
    clusters: pd.Series[str] | None = None
    for model, folder in folders.items():
        path = folder / "items.parquet"
        check(pq.read_schema(path), ITEMS, where=path)
        wanted = [("benchmark", "=", key.benchmark), ("metric", "=", key.metric)]
        rows = pq.read_table(path, columns=["item_id", "cluster", "score"], filters=wanted)
        index = pd.Index(rows.column("item_id").to_pylist(), dtype=object)
        columns[model] = pd.Series(rows.column("score").to_numpy(), index=index, dtype=np.float64)
        named = pd.Series(rows.column("cluster").to_pylist(), index=index, dtype=object)
        clusters = named if clusters is None else clusters.combine_first(named)
    frame = pd.DataFrame(columns).sort_index()
    assert clusters is not None  # there is a base
    names = clusters.reindex(frame.index)
    frame["cluster"] = pd.Series([n if isinstance(n, str) else None for n in names], index=frame.index, dtype=object)
    return frame


def _arm(
    arm: ArmConfig, recipe: RunConfig, keys: Sequence[Key], estimate: Callable[[Key, str], Estimate], change: Change,
    method: Method,
) -> Arm:  # fmt: skip
    changes = {key: change(key, BASE, arm.name) for key in keys if key.metric not in _OWN_ITEMS}
    adjusted = _adjusted(changes)
    scores = [Score(key, estimate(key, arm.name), changes.get(key), adjusted.get(key)) for key in keys]
    train = arm.train_config(recipe.train)
    task, transfer, general = (_average(changes, family, method) for family in ("task-in", "task-out", "general"))
    kept = statistics.non_inferior(general.low, margin=recipe.report.margin) if general else None
    return Arm(
        arm.name, arm.policy, train.learning_rate, train.epochs, train.seed, scores, task, transfer, general, kept
    )  # fmt: skip


def _adjusted(changes: Mapping[Key, Comparison]) -> dict[Key, float]:
    """Holm-adjusted p-values of the primary metrics: task and general benchmarks answer two questions."""
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
    """The arm of each policy with the highest task score; the first one where nothing tells them apart."""
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
            same = _training(arm) == _training(other)
            both_best = best[arm.policy] == arm.name and best[reference] == other.name
            if same or both_best:
                changes = {key: change(key, other.name, arm.name) for key in keys if key.primary}
                averages = (_average(changes, family, method) for family in ("task-in", "task-out", "general"))
                found.append(Contrast(arm.name, other.name, same, both_best, *averages))
    return sorted(found, key=lambda c: not c.best)


def _training(arm: Arm) -> tuple[float, float, int]:
    return arm.learning_rate, arm.epochs, arm.train_seed
