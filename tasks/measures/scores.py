"""Scores of several models side by side: which metric stands for a benchmark, and every item's score a model a column.

Read by all that compares models: the report, and the decision whether an adapter is promoted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from tasks.tables.schema import ITEMS, SCORES, check_schema, read_table

LEAKED_REFUSAL = "leaked_refusal"
LOWER_IS_BETTER = ("over_refusal", LEAKED_REFUSAL)
LOWER_MARK = " (lower is better)"  # ends the name of a benchmark's metric of which less is better
_PRIMARY = {
    "task": ("modified_recall", "exact_match", "token_recall"),
    "general": ("exact_match", "acc_norm", "mc2", "acc", "prompt_level_strict_acc"),
}


@dataclass(frozen=True)
class Key:
    """What a score is of.

    Attributes:
        primary: It stands for its benchmark, in averages and in tests. Higher is better, always.
    """

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
        return lower_is_better(self.metric)


def lower_is_better(metric: str) -> bool:
    return metric in LOWER_IS_BETTER or metric.endswith(LOWER_MARK)


def keys_of(folders: Mapping[str, Path]) -> list[Key]:
    """Every (benchmark, metric) that any model has, the task first, primary metrics first.

    Args:
        folders: A scores artifact a model.
    """
    family: dict[tuple[str, str], str] = {}
    n_scored: Counter[tuple[str, str]] = Counter()
    for folder in folders.values():
        for row in read_table(folder / "scores.parquet", SCORES).to_pylist():
            family.setdefault((row["benchmark"], row["metric"]), row["family"])
            n_scored[row["benchmark"], row["metric"]] += row["n"]
    metrics: dict[str, list[str]] = {}
    for benchmark, metric in sorted(family):
        metrics.setdefault(benchmark, []).append(metric)
    primary = {}
    for benchmark, names in metrics.items():
        scored = [name for name in names if n_scored[benchmark, name]]
        primary[benchmark] = _primary(scored or names, is_task=family[benchmark, names[0]] != "general")
    keys = [Key(benchmark, metric, kind, metric == primary[benchmark]) for (benchmark, metric), kind in family.items()]
    order = ("task-in", "task-out", "general")
    return sorted(keys, key=lambda k: (order.index(k.family), k.benchmark, not k.primary, k.metric))


def _primary(metrics: Sequence[str], *, is_task: bool) -> str | None:
    """The metric that stands for its benchmark; None where of each less is better: such a benchmark is in no average.

    lm-eval may add a filter to a name: `exact_match,strict-match`.
    """
    metrics = [metric for metric in metrics if not lower_is_better(metric)]
    for wanted in _PRIMARY["task" if is_task else "general"]:
        if found := [metric for metric in metrics if metric.split(",")[0] == wanted]:
            return found[0]
    return next(iter(metrics), None)


def items_of(folders: Mapping[str, Path], key: Key) -> pd.DataFrame:
    """Scores of one metric: a row an item, a column a model, and the cluster; NaN where a model has no score."""
    columns: dict[str, pd.Series[float]] = {}
    clusters: pd.Series[str] | None = None
    for model, folder in folders.items():
        path = folder / "items.parquet"
        check_schema(pq.read_schema(path), ITEMS, where=path)
        wanted = [("benchmark", "=", key.benchmark), ("metric", "=", key.metric)]
        rows = pq.read_table(path, columns=["item_id", "cluster", "score"], filters=wanted)
        index = pd.Index(rows.column("item_id").to_pylist(), dtype=object)
        columns[model] = pd.Series(rows.column("score").to_numpy(), index=index, dtype=np.float64)
        named = pd.Series(rows.column("cluster").to_pylist(), index=index, dtype=object)
        clusters = named if clusters is None else clusters.combine_first(named)
    frame = pd.DataFrame(columns).sort_index()
    assert clusters is not None  # there is at least one model
    names = clusters.reindex(frame.index)
    frame["cluster"] = pd.Series([n if isinstance(n, str) else None for n in names], index=frame.index, dtype=object)
    return frame
