"""The likelihood step: the base model's likelihood of each accepted output and of the gold answer.

Fine-tuning on texts of low likelihood makes a model forget (arXiv 2501.14315). Policy `min_nll` chooses by likelihood.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Iterator
from pathlib import Path

import pyarrow as pa

from tasks.artifacts.paid_rows import RowStore, row_key
from tasks.artifacts.store import Ref
from tasks.asking import Asked, Asking
from tasks.config import EngineConfig, GenerateConfig, ModelConfig
from tasks.engines import Continuation, Engine, Likelihood
from tasks.generate.filling import Row, fill, space_of, weights_digest
from tasks.running.process import one_process
from tasks.running.step import Context, step
from tasks.tables import schema
from tasks.tables.aligned import accepted, judged_outputs, training_batches, with_matches

_STORED = pa.schema(
    [("row_key", pa.string()), ("base_nll", pa.float64()), ("problem", pa.string()), ("retryable", pa.bool_())]
)


@step(version=1, pool="gpu", table=schema.LIKELIHOODS, outside=weights_digest, launcher=one_process)
def likelihood(
    ctx: Context, *, model: ModelConfig, engine: EngineConfig, config: GenerateConfig, examples: Ref, outputs: Ref,
    verdicts: Ref,
) -> None:  # fmt: skip
    """Measure accepted outputs and the first gold of each training row. Writes `likelihoods.parquet`.

    Args:
        config: Its `max_failed_share` limits the failed rows here, too: `min_nll` cannot choose a row without a value.

    Raises:
        StepError: More than `max_failed_share` of the rows have no likelihood.
    """
    rows = RowStore(ctx.store, "likelihoods", space_of(model, engine), _STORED, origin=ctx.ref["fingerprint"])
    paths = ctx.path(examples, "examples.parquet"), ctx.path(outputs, "outputs.parquet")
    judged = ctx.path(verdicts, "verdicts.parquet")
    asking = Asking(model, engine, rows, lambda: _questions(*paths, judged, rows.space), _measured)
    setting = "generate.max_failed_share"
    fill(ctx, asking, schema.LIKELIHOODS, config.max_failed_share, without="likelihood", setting=setting)


def _questions(examples: Path, outputs: Path, verdicts: Path, space: str) -> Iterator[Asked[Continuation]]:
    """Accepted outputs and the gold of each training example, sorted by (example_id, kind, sample_index)."""
    for batch, found in with_matches(
        training_batches(examples, ["messages", "golds"]), judged_outputs(outputs, verdicts)
    ):
        texts: defaultdict[str, list[tuple[str, int, str]]] = defaultdict(list)
        for row in found.filter(accepted(found)).to_pylist():
            texts[row["example_id"]].append((row["kind"], row["sample_index"], row["text"]))
        for row in batch.to_pylist():
            for kind, sample_index, text in sorted([*texts[row["example_id"]], ("gold", 0, row["golds"][0])]):
                key = row_key(space, row["messages"], text)
                yield Asked((row["example_id"], kind, sample_index), Continuation(key, row["messages"], text))


def _measured(engine: Engine, continuations: Iterator[Continuation], done: Container[str]) -> Iterator[Row]:
    return (_stored(found) for found in engine.likelihoods(continuations, done=done))


def _stored(found: Likelihood) -> Row:
    if found.nll is not None and not math.isfinite(found.nll):  # half precision overflowed
        found = Likelihood(found.key, None, f"not_finite: the likelihood is {found.nll}", retryable=False)
    return {"row_key": found.key, "base_nll": found.nll, "problem": found.problem, "retryable": found.retryable}
