"""The scores of several models side by side: the primary metric of each benchmark, and a table of items by model.

The report and the decision whether an adapter is promoted both read scores through this module.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from tasks.measures import metrics
from tasks.measures.metrics import FAMILIES, Metric
from tasks.tables.schema import ITEMS, SCORES, check_schema, read_table


@dataclass(frozen=True)
class Key:
    """The benchmark and the metric of a score.

    Attributes:
        higher_is_better: None where neither the benchmark states it nor the metric is declared here.
        primary: The metric stands for its benchmark in averages and in tests. Higher is better, always.
    """

    benchmark: str
    metric: str
    family: str
    higher_is_better: bool | None
    primary: bool

    @property
    def name(self) -> str:
        """Benchmark and metric."""
        return f"{self.benchmark} {self.metric}"

    @property
    def is_task(self) -> bool:
        """Whether this is a split of the task, and no general benchmark."""
        return self.family != metrics.GENERAL

    @property
    def declared(self) -> Metric | None:
        """The metric's declaration; None for one that only its benchmark knows."""
        return metrics.find(self.metric, self.family)

    @property
    def own_items(self) -> bool:
        """Whether each model is scored on items of its own, so that there are no pairs to compare."""
        return bool(self.declared and self.declared.own_items)


def keys_of(folders: Mapping[str, Path]) -> list[Key]:
    """Every (benchmark, metric) that any model has, the task first, primary metrics first.

    Args:
        folders: A scores artifact a model.
    """
    rows = [row for folder in folders.values() for row in read_table(folder / "scores.parquet", SCORES).to_pylist()]
    n_scored: Counter[tuple[str, str]] = Counter()
    keys: dict[tuple[str, str], Key] = {}
    for row in rows:
        at = row["benchmark"], row["metric"]
        n_scored[at] += row["n"]
        keys.setdefault(at, Key(*at, row["family"], _direction(row), primary=False))
    for benchmark in {key.benchmark for key in keys.values()}:
        found = [key for key in keys.values() if key.benchmark == benchmark]
        if primary := _primary([key for key in found if n_scored[benchmark, key.metric]] or found):
            keys[benchmark, primary.metric] = replace(primary, primary=True)
    return sorted(keys.values(), key=lambda k: (FAMILIES.index(k.family), k.benchmark, not k.primary, k.metric))


def _direction(row: Mapping[str, Any]) -> bool | None:  # Any: values of a table
    """What the benchmark states, or else what is declared here, of whether higher is better."""
    stated: bool | None = row["higher_is_better"]
    declared = metrics.find(row["metric"], row["family"])
    return stated if stated is not None or declared is None else declared.higher_is_better


def _primary(keys: Sequence[Key]) -> Key | None:
    """The primary metric of a benchmark: the lowest declared rank, else the first by name.

    None where no metric is known to be better the higher it is: such a benchmark enters no average.
    """

    def rank(key: Key) -> tuple[float, str]:
        declared = key.declared.primary_rank if key.declared else None
        return (math.inf if declared is None else declared), key.metric

    return min((key for key in keys if key.higher_is_better and not key.own_items), key=rank, default=None)


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
