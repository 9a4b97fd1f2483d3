"""The evaluate step: a score for every item of the base or of an adapter, under identical settings, and its drift.

A part is one source of the task, one benchmark, or the drift. A finished part is kept in the work folder and on the
store, so that a killed evaluation goes on with the next part on any machine. The items of benchmarks are kept for later
runs, too: see `tasks.evaluate.benchmark_items`. The request cache of lm-evaluation-harness is not used, because its key
does not contain the model.
"""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts import unfinished
from tasks.artifacts.files import put_in_place
from tasks.artifacts.store import Ref
from tasks.config import AbstentionConfig, EngineConfig, EvaluateConfig, ModelConfig
from tasks.engines import Continuation, Engine, Likelihood, Reply, Request, Sampling, open_engine
from tasks.errors import StepError
from tasks.evaluate import benchmark_items, benchmarks, drift
from tasks.measures import metrics
from tasks.measures.refusals import refuses
from tasks.models import best_device, model_digest
from tasks.running.process import one_process
from tasks.running.step import Context, step
from tasks.tables import schema
from tasks.tables.duckdb_query import query

ItemRow = dict[str, object]
Answer = TypeVar("Answer", Reply, Likelihood)


@step(
    version=5, pool="gpu", table=schema.ITEMS, launcher=one_process,
    outside=lambda *, model, engine, config, abstention: {
        "model": model_digest(model),
        "benchmarks": benchmarks.content_digests(config),
        "metrics": {family: metrics.scored_versions(family) for family in metrics.FAMILIES},
    },
)  # fmt: skip
def evaluate(
    ctx: Context, *, model: ModelConfig, engine: EngineConfig, config: EvaluateConfig, abstention: AbstentionConfig,
    examples: Ref, adapter: Ref | None = None, base: Ref | None = None,
) -> None:  # fmt: skip
    """Score the base model, or an adapter on it; writes `items.parquet` and `scores.parquet`.

    With `drift_rows`, also `drawn.parquet` of the base, and from it `drift.parquet` of an adapter.

    Args:
        abstention: What counts as a refusal, the same as for the judge.
        base: The evaluation of the base, for an adapter's drift.
    """
    path = ctx.path(examples, "examples.parquet")
    parts: list[Path] = []
    sources = _test_sources(path)
    has_drift = config.drift_rows > 0 and (adapter is None or base is not None)
    planned = len(sources) + has_drift + len(benchmarks.names(config))
    ctx.counts["rows_retryable"] = 0
    with ExitStack() as stack:
        folder = ctx.path(adapter, "adapter") if adapter else None
        # The model is loaded at its first use: a resumed evaluation may have nothing left to ask it.
        load = functools.cache(lambda: stack.enter_context(open_engine(model, engine, work=ctx.work, adapter=folder)))
        for source in sources:
            rows = lambda asked, source=source: _task_items(asked, path, source, config, abstention)  # noqa: E731
            parts.append(_keep(ctx, f"task-{source}.parquet", rows, load, config))
            ctx.progress(len(parts), planned, f"task:{source}")
        for name in benchmarks.names(config):
            rows = lambda _, name=name: benchmarks.items(load(), name, config, abstention.phrases)  # noqa: E731
            key = benchmark_items.key_of(
                ctx.store, name, adapter, model=model, engine=engine, config=config, abstention=abstention
            )
            parts.append(_keep(ctx, f"benchmark-{Path(name).stem}.parquet", rows, load, config, key=key))
            ctx.progress(len(parts), planned, Path(name).stem)
        if has_drift:
            _write_drift(ctx, load, path, config, base)
            ctx.progress(planned, planned, "drift")
    _write(ctx, parts, _families(path))
    ctx.facts |= {"device": best_device(), "measured": ctx.store.weights_digest(adapter) if adapter else None}


def _test_sources(path: Path) -> list[str]:
    table = pq.read_table(path, columns=["source"], filters=[("split", "=", "test")])
    return sorted(set(table.column("source").to_pylist()))


def _families(path: Path) -> dict[str, str]:
    """Benchmark name -> task-in or task-out."""
    table = pq.read_table(path, columns=["source", "domain"], filters=[("split", "=", "test")])
    pairs = table.group_by(["source", "domain"]).aggregate([]).to_pylist()
    return {f"task:{pair['source']}": f"task-{pair['domain']}" for pair in pairs}


def _keep(
    ctx: Context, name: str, rows: Callable[[_Counted], Iterator[ItemRow]], load: Callable[[], Engine],
    config: EvaluateConfig, *, table: pa.Schema = schema.ITEMS, key: str = "",
) -> Path:  # fmt: skip
    """Write a part unless an earlier try on any machine has written it. A part appears whole or not at all.

    A part with rows that may succeed on another try is used by this try, but not kept for the next one.

    Args:
        key: The key of a benchmark's items, which another run may have measured; "" for a part of this run's data.

    Raises:
        StepError: More than `max_failed_share` of the part's requests to the engine failed.
    """
    path = ctx.work / name
    if path.exists() or unfinished.pull(ctx.store, ctx.ref, name):
        return path
    if key and not ctx.force and benchmark_items.get(ctx.store, key, path):
        ctx.facts.setdefault("measured_before", []).append(name)
        return path
    temporary = path.with_suffix(".part")
    asked = _Counted(load(), path.stem, config.max_failed_share)
    with schema.TableWriter(temporary, table) as writer:
        writer.write(list(rows(asked)))
    if asked.n_retryable:
        ctx.counts["rows_retryable"] += asked.n_retryable
        return temporary
    put_in_place(temporary, path)
    unfinished.push(ctx.store, ctx.ref, name)
    if key:
        benchmark_items.put(ctx.store, key, path)
    return path


@dataclass
class _Counted:
    """The engine of one part. It counts the requests that fail, and ends the step where too many do.

    Attributes:
        part: The part's name in the message.
        n_retryable: Failed requests that may succeed on another try.
    """

    engine: Engine
    part: str
    max_failed_share: float
    n_retryable: int = 0

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, *, done: Container[str] = ()
    ) -> Iterator[Reply]:
        """As `Engine.generate`."""
        return self._counted(self.engine.generate(requests, sampling, done=done))

    def likelihoods(self, continuations: Iterable[Continuation], *, done: Container[str] = ()) -> Iterator[Likelihood]:
        """As `Engine.likelihoods`."""
        return self._counted(self.engine.likelihoods(continuations, done=done))

    def _counted(self, replies: Iterator[Answer]) -> Iterator[Answer]:
        n_rows, problems = 0, Counter[str]()
        for reply in replies:
            n_rows += 1
            if reply.problem is not None:
                problems[reply.problem.partition(":")[0]] += 1
                self.n_retryable += bool(reply.retryable)
            yield reply
        n_failed = problems.total()
        if n_failed > self.max_failed_share * n_rows:
            raise StepError(
                f"evaluate: {n_failed} of {n_rows} rows of {self.part} have no answer ({dict(problems)}). Run the same "
                "command again to try this part again; finished parts are kept. evaluate.max_failed_share is the share "
                "of rows that may fail."
            )


def _task_items(
    engine: Engine, path: Path, source: str, config: EvaluateConfig, abstention: AbstentionConfig
) -> Iterator[ItemRow]:
    table = pq.read_table(path, filters=[("split", "=", "test"), ("source", "=", source)])
    rows = {row["example_id"]: row for row in table.slice(0, config.max_task_rows).to_pylist()}
    requests = [Request(example_id, row["messages"], seed=0) for example_id, row in rows.items()]
    sampling = Sampling(config.max_new_tokens)
    for reply in engine.generate(requests, sampling):
        row = rows[reply.key]
        family = f"task-{row['domain']}"
        common: ItemRow = {
            "benchmark": f"task:{source}", "item_id": reply.key, "cluster": row["group"], "output": reply.text,
            "problem": reply.problem,
        }  # fmt: skip
        if reply.text is None:
            yield common | {"metric": metrics.primary_on(row["answerable"], family), "score": None}
            continue
        abstains = refuses(reply.text, abstention.phrases) is True
        item = metrics.Answered(row["task"], row["golds"], row["answerable"], reply.text, abstains)
        for metric, score in metrics.item_scores(item, family).items():
            yield common | {"metric": metric, "score": score}


def _write_drift(
    ctx: Context, load: Callable[[], Engine], path: Path, config: EvaluateConfig, base: Ref | None
) -> None:
    """Write the base's drawn answers, or the adapter's drift from them: a row a prompt, with a score or a reason."""
    prompts = drift.prompts(path, config)
    if base is None:
        drawing = lambda asked: drift.draw(asked, prompts, config)  # noqa: E731
        part = _keep(ctx, "drawn.parquet", drawing, load, config, table=schema.DRAWN)
    else:
        drawn = ctx.path(base, "drawn.parquet")
        comparing = lambda asked: drift.compare(asked, prompts, drawn)  # noqa: E731
        part = _keep(ctx, "drift.parquet", comparing, load, config, table=schema.DRIFT)
    shutil.copyfile(part, ctx.out / f"{part.stem}.parquet")
    problems = pq.read_table(part, columns=["problem"]).column("problem")
    ctx.counts |= {"drift_rows": len(prompts), "drift_unscored": len(problems) - problems.null_count}


def _write(ctx: Context, parts: list[Path], families: dict[str, str]) -> None:
    n_items = sum(schema.count_rows(part, schema.ITEMS) for part in parts)
    columns = ", ".join(schema.ITEMS.names)
    ordered = f"SELECT {columns} FROM {{items}} ORDER BY benchmark, metric, item_id"
    with (
        query(ordered, {"items": parts}, spill=ctx.work) as reader,
        schema.TableWriter(ctx.out / "items.parquet", schema.ITEMS) as writer,
    ):
        for batch in reader:
            writer.write(pa.Table.from_batches([batch]))
    ctx.account(n_items, writer.n_rows, {})
    means = """
        SELECT benchmark, metric, avg(score) AS value, count(score) AS n, count(*) - count(score) AS n_unscored,
            bool_and(higher_is_better) AS higher_is_better
        FROM {items} GROUP BY ALL ORDER BY benchmark, metric
    """
    with (
        query(means, {"items": ctx.out / "items.parquet"}, spill=ctx.work) as reader,
        schema.TableWriter(ctx.out / "scores.parquet", schema.SCORES) as writer,
    ):
        rows = reader.read_all().to_pylist()
        writer.write([row | {"family": families.get(row["benchmark"], metrics.GENERAL)} for row in rows])
