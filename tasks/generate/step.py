"""The generate step: which rows are missing, get them, put all of them in order.

Finished rows go to the row store as they come; what is written at the end is only a sorted view of it. So a killed run
goes on, a grown dataset pays for its new rows, and a change of the judge pays for none.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Container, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tasks import schema
from tasks.aligned import GRAIN
from tasks.config import EngineConfig, GenerateConfig, ModelConfig
from tasks.digest import digest_of, stable_seed
from tasks.engines import Reply, Request, Sampling, open_engine
from tasks.errors import StepError
from tasks.models import load_tokenizer, model_digest, template_digest
from tasks.process import one_process
from tasks.rows import LATEST_SQL, DoneKeys, RowStore, row_key
from tasks.spool import rows_of, sorted_rows
from tasks.step import Context, step
from tasks.store import Ref, Store
from tasks.tables import query

logger = logging.getLogger(__name__)

_TOLD_SECONDS = 0.2  # between two words on progress
_STORED = pa.schema([f for f in schema.OUTPUTS if f.name not in ("example_id", "kind", "sample_index")])
_REQUESTED = pa.schema(
    [("example_id", pa.string()), ("kind", pa.string()), ("sample_index", pa.int32()), ("row_key", pa.string())]
)


@step(version=2, outside=lambda *, model, **sections: {"model": model_digest(model)}, launcher=one_process)
def generate(ctx: Context, *, model: ModelConfig, engine: EngineConfig, config: GenerateConfig, examples: Ref) -> None:
    """Answer every training prompt with the base model; writes `outputs.parquet`."""
    rows = RowStore(ctx.store, "outputs", _space(model, engine, config), _STORED, origin=ctx.ref["fingerprint"])
    path = ctx.path(examples, "examples.parquet")
    requested = ctx.work / "requested.parquet"
    done = rows.done()
    needed = _write_requested(path, requested, rows.space, config, done)
    _generate_missing(ctx, path, rows, done, needed, model=model, engine=engine, config=config)
    _write_outputs(ctx, requested, rows)
    n_failed = ctx.counts["rows_failed"]
    if n_failed > config.max_failed_share * needed.n_rows:
        raise StepError(
            f"generate: {n_failed} of {needed.n_rows} rows have no output ({ctx.facts['problems']}). Finished rows are "
            "kept; the same command tries again those where that may help (generate.max_failed_share allows more)."
        )


class Needed(NamedTuple):
    """What a table asks for.

    Attributes:
        n_rows: Rows of the outputs table.
        n_missing: Distinct prompts among them that nobody has paid for yet.
    """

    n_rows: int
    n_missing: int


def count_missing(
    store: Store, model: ModelConfig, engine: EngineConfig, config: GenerateConfig, examples: Path
) -> Needed:
    """What the step would need. Loads no model."""
    rows = RowStore(store, "outputs", _space(model, engine, config), _STORED, origin="")
    return _count(_requests(examples, rows.space, config), rows.done())


def _count(requests: Iterator[tuple[str, int, Request]], done: DoneKeys) -> Needed:
    missing: set[str] = set()
    n_rows = 0
    for _, _, request in requests:
        n_rows += 1
        if request.key not in done.here and request.key not in done.elsewhere:
            missing.add(request.key)
    return Needed(n_rows, len(missing))


def _space(model: ModelConfig, engine: EngineConfig, config: GenerateConfig) -> str:
    """What decides a row apart from its prompt. The engine is part of it; how rows are batched is not."""
    runs_it = {name: value for name, value in engine.identity().items() if name != "batch_tokens"}
    sampling = [runs_it, config.max_new_tokens, config.temperature, config.top_p, config.seed]
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


def _write_requested(path: Path, target: Path, space: str, config: GenerateConfig, done: DoneKeys) -> Needed:
    """Write which row each example needs, and count them."""

    def written() -> Iterator[tuple[str, int, Request]]:
        with pq.ParquetWriter(target, _REQUESTED) as writer:
            pending = _requests(path, space, config)
            while batch := list(islice(pending, schema.BATCH_ROWS)):
                rows = [
                    {"example_id": example_id, "kind": "answer", "sample_index": index, "row_key": request.key}
                    for example_id, index, request in batch
                ]
                writer.write_table(pa.Table.from_pylist(rows, schema=_REQUESTED))
                yield from batch

    needed = _count(written(), done)
    if needed.n_rows == 0:
        raise StepError("generate: there is no training row. Look at the ingest counts: ssr why RUN ingest")
    return needed


def _generate_missing(
    ctx: Context, path: Path, rows: RowStore, done: DoneKeys, needed: Needed, *,
    model: ModelConfig, engine: EngineConfig, config: GenerateConfig,
) -> None:  # fmt: skip
    n_tokens, n_generated, started, told = 0, 0, time.monotonic(), 0.0
    if needed.n_missing:
        sampling = Sampling(config.max_new_tokens, config.temperature, config.top_p)
        with open_engine(model, engine, work=ctx.work) as opened:
            fresh = _distinct(_requests(path, rows.space, config), done.elsewhere)
            started = time.monotonic()
            for reply in opened.generate(fresh, sampling, done=done.here):
                rows.append([_stored(reply)])
                n_generated += 1
                n_tokens += reply.n_output_tokens or 0
                if (now := time.monotonic()) - told > _TOLD_SECONDS or n_generated == needed.n_missing:
                    told = now
                    ctx.progress(n_generated, needed.n_missing, f"{n_tokens / max(now - started, 1e-9):,.0f} tokens/s")
    rows.flush()
    ctx.counts |= {
        "rows_generated": n_generated, "rows_reused": needed.n_rows - n_generated, "tokens_generated": n_tokens,
    }  # fmt: skip
    ctx.facts["generating_seconds"] = round(time.monotonic() - started, 3)  # without the start of the engine


def _distinct(requests: Iterator[tuple[str, int, Request]], done: Container[str]) -> Iterator[Request]:
    """Each prompt once, however often it stands, without those that others have paid for."""
    seen: set[str] = set()
    for _, _, request in requests:
        if request.key not in seen and request.key not in done:
            seen.add(request.key)
            yield request


def _stored(reply: Reply) -> dict[str, object]:
    unstored = ("key", "choice_logprobs")
    return {"row_key": reply.key, **{name: value for name, value in reply._asdict().items() if name not in unstored}}


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
