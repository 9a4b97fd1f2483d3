"""The generate step: the base model answers every training prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tasks.artifacts.paid_rows import RowStore
from tasks.artifacts.store import Ref, Store
from tasks.asking import Asked, QuestionCounts, count_questions
from tasks.config import EngineConfig, GenerateConfig, ModelConfig
from tasks.engines import Request
from tasks.errors import StepError
from tasks.generate.answers import paid_answers, request_for, write_outputs
from tasks.generate.filling import weights_digest
from tasks.running.process import one_process
from tasks.running.step import Context, step
from tasks.tables import schema
from tasks.tables.aligned import training_batches

_TABLE = "outputs"


@step(version=2, pool="gpu", table=schema.OUTPUTS, outside=weights_digest, launcher=one_process)
def generate(ctx: Context, *, model: ModelConfig, engine: EngineConfig, config: GenerateConfig, examples: Ref) -> None:
    """Answer every training prompt with the base model. Writes `outputs.parquet`."""
    rows = paid_answers(ctx.store, _TABLE, config, model=model, engine=engine, origin=ctx.ref["fingerprint"])
    path = ctx.path(examples, "examples.parquet")
    n_rows = write_outputs(ctx, rows, lambda: _questions(path, rows, config), config, model=model, engine=engine)
    if n_rows == 0:
        raise StepError("generate: there is no training row. Look at the ingest counts: ssr why RUN ingest")


def count_answers(
    store: Store, model: ModelConfig, engine: EngineConfig, config: GenerateConfig, examples: Path
) -> QuestionCounts:
    """Count the rows that the step would write and the questions that it would ask. Loads no model."""
    rows = paid_answers(store, _TABLE, config, model=model, engine=engine)
    return count_questions(_questions(examples, rows, config), rows.done())


def _questions(path: Path, rows: RowStore, config: GenerateConfig) -> Iterator[Asked[Request]]:
    """A question for each sample of each training example, in example order."""
    for batch in training_batches(path, ["messages"]):
        for row in batch.to_pylist():
            for i in range(config.n_samples):
                asked = request_for(row["messages"], rows, config, sample_index=i)
                yield Asked((row["example_id"], "answer", i), asked)
