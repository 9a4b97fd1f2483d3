"""The generate step: which rows are missing, get them, put all of them in order.

Finished rows go to the row store as they come; what is written at the end is only a sorted view of it. So a killed run
goes on, a grown dataset pays for its new rows, and a change of the judge pays for none.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks import schema
from tasks.aligned import GRAIN
from tasks.config import GenerateConfig, ModelConfig
from tasks.digest import digest_of, stable_seed
from tasks.engines import Engine, Reply, Request, Sampling
from tasks.errors import StepError
from tasks.models import load_tokenizer, model_digest, template_digest
from tasks.process import one_process
from tasks.rows import LATEST_SQL, DoneKeys, RowStore, row_key
from tasks.spool import rows_of, sorted_rows
from tasks.step import Context, step
from tasks.store import Ref, Store
from tasks.tables import query

logger = logging.getLogger(__name__)

WINDOW_ROWS = 4_096  # rows sorted by length together: enough for full batches, flat in memory

_STORED = pa.schema([f for f in schema.OUTPUTS if f.name not in ("example_id", "kind", "sample_index")])
_REQUESTED = pa.schema(
    [("example_id", pa.string()), ("kind", pa.string()), ("sample_index", pa.int32()), ("row_key", pa.string())]
)


@step(version=1, outside=lambda *, model, config: {"model": model_digest(model)}, launcher=one_process)
def generate(ctx: Context, *, model: ModelConfig, config: GenerateConfig, examples: Ref) -> None:
    """Answer every training prompt with the base model; writes `outputs.parquet`."""
    rows = RowStore(ctx.store, "outputs", _space(model, config), _STORED, origin=ctx.ref["fingerprint"])
    path = ctx.path(examples, "examples.parquet")
    requested = ctx.work / "requested.parquet"
    n_rows = _write_requested(path, requested, rows.space, config)
    done = rows.done()
    _generate_missing(ctx, path, rows, done, model=model, config=config, n_rows=n_rows)
    _write_outputs(ctx, requested, rows)
    n_failed = ctx.counts["rows_failed"]
    if n_failed > config.max_failed_share * n_rows:
        raise StepError(
            f"generate: {n_failed} of {n_rows} rows have no output ({ctx.facts['problems']}). Finished rows are kept; "
            "the same command tries again those where that may help (generate.max_failed_share allows more)."
        )


def count_missing(store: Store, model: ModelConfig, config: GenerateConfig, examples: Path) -> tuple[int, int]:
    """How many rows the step needs, and how many of them nobody has paid for yet. Loads no model."""
    rows = RowStore(store, "outputs", _space(model, config), _STORED, origin="")
    done = rows.done()
    keys = [request.key for _, _, request in _requests(examples, rows.space, config)]
    return len(keys), len(set(keys) - done.here - done.elsewhere)


def _space(model: ModelConfig, config: GenerateConfig) -> str:
    """What decides a row apart from its prompt. The engine is part of it; how rows are batched is not."""
    sampling = [config.engine, config.max_new_tokens, config.temperature, config.top_p, config.seed]
    return digest_of([model_digest(model), template_digest(load_tokenizer(model)), model.dtype, *sampling])[:32]


def _requests(path: Path, space: str, config: GenerateConfig) -> Iterator[tuple[str, int, Request]]:
    """(example_id, sample_index, request) of every training row, in example order."""
    columns = ["example_id", "split", "messages"]
    for batch in schema.read_batches(path, schema.EXAMPLES, columns=columns):
        for row in batch.to_pylist():
            if row["split"] != "train":
                continue
            for sample_index in range(config.n_samples):
                key = row_key(space, row["messages"], sample_index)
                yield row["example_id"], sample_index, Request(key, row["messages"], stable_seed(config.seed, key))


def _write_requested(path: Path, target: Path, space: str, config: GenerateConfig) -> int:
    with pq.ParquetWriter(target, _REQUESTED) as writer:
        n_rows = 0
        for window in _windows(_requests(path, space, config)):
            rows = [
                {"example_id": example_id, "kind": "answer", "sample_index": index, "row_key": request.key}
                for example_id, index, request in window
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=_REQUESTED))
            n_rows += len(rows)
    if n_rows == 0:
        raise StepError("generate: there is no training row. Look at the ingest counts: ssr why RUN ingest")
    return n_rows


def _windows(requests: Iterator[tuple[str, int, Request]]) -> Iterator[list[tuple[str, int, Request]]]:
    window = []
    for request in requests:
        window.append(request)
        if len(window) == WINDOW_ROWS:
            yield window
            window = []
    if window:
        yield window


def _generate_missing(
    ctx: Context, path: Path, rows: RowStore, done: DoneKeys, *, model: ModelConfig, config: GenerateConfig, n_rows: int
) -> None:
    sampling = Sampling(config.max_new_tokens, config.temperature, config.top_p)
    engine: Engine | None = None
    n_done, n_tokens, n_generated, started = 0, 0, 0, time.monotonic()
    seen: set[str] = set()
    n_to_do = max(0, n_rows - len(done.elsewhere))
    fresh = ((i, s, r) for i, s, r in _requests(path, rows.space, config) if r.key not in done.elsewhere)
    for window in _windows(fresh):
        requests = list(
            {r.key: r for _, _, r in window if r.key not in seen}.values()
        )  # asked once, however often it stands
        seen.update(r.key for r in requests)
        if all(r.key in done.here for r in requests):
            n_done += len(requests)
            continue
        engine = engine or _engine(model, config)
        for batch in engine.batches(requests):
            missing = {r.key for r in batch} - done.here
            if missing:
                replies = [reply for reply in engine.generate(batch, sampling) if reply.key in missing]
                rows.append([_stored(reply) for reply in replies])
                n_generated += len(replies)
                n_tokens += sum(reply.n_output_tokens or 0 for reply in replies)
            n_done += len(batch)
            speed = n_tokens / max(time.monotonic() - started, 1e-9)
            ctx.progress(n_done, n_to_do, f"{speed:,.0f} tokens/s")
    rows.flush()
    ctx.counts |= {"rows_generated": n_generated, "rows_reused": n_rows - n_generated, "tokens_generated": n_tokens}


def _engine(model: ModelConfig, config: GenerateConfig) -> Engine:
    from tasks.engines.transformers import TransformersEngine

    return TransformersEngine(model, batch_tokens=config.batch_tokens)


def _stored(reply: Reply) -> dict[str, object]:
    return {"row_key": reply.key, **{name: value for name, value in reply._asdict().items() if name != "key"}}


def _write_outputs(ctx: Context, requested: Path, rows: RowStore) -> None:
    """The finished rows, sorted by example; a prompt that stands twice gives its one answer to both."""
    columns = ", ".join(
        [f"requested.{f.name}" for f in _REQUESTED] + [f"done.{f.name}" for f in _STORED if f.name != "row_key"]
    )
    sql = f"SELECT {columns} FROM ({LATEST_SQL}) AS done JOIN {{requested}} AS requested USING (row_key)"
    problems: Counter[str] = Counter()
    unsorted = schema.OUTPUTS.remove_metadata()
    tables: dict[str, Path | list[Path]] = {"requested": requested, "rows": rows.parts()}
    shutil.rmtree(ctx.work / "sort", ignore_errors=True)
    with (
        query(sql, tables, spill=ctx.work) as reader,
        schema.TableWriter(ctx.out / "outputs.parquet", schema.OUTPUTS) as writer,
    ):
        found = sorted_rows(rows_of(reader), ctx.work / "sort", unsorted, key=GRAIN)
        while batch := list(islice(found, schema.BATCH_ROWS)):
            writer.write(batch)
            problems.update(row["problem"].partition(":")[0] for row in batch if row["problem"])
    ctx.account(pq.read_metadata(requested).num_rows, writer.n_rows, {})
    ctx.counts |= {"rows_failed": problems.total()}
    ctx.facts["problems"] = dict(sorted(problems.items()))
