"""The rewrite step: the base model says the gold answer in its own words (arXiv 2402.13669).

It writes a table of outputs, as the generate step does, and the judge decides which of them are acceptable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from tasks.artifacts.digest import digest_of
from tasks.artifacts.paid_rows import RowStore
from tasks.artifacts.store import Ref, Store
from tasks.asking import Asked, QuestionCounts, count_questions
from tasks.config import EngineConfig, ModelConfig, RewriteConfig
from tasks.engines import Message, Request
from tasks.generate.answers import paid_answers, request_for, write_outputs
from tasks.generate.filling import weights_digest
from tasks.running.process import one_process
from tasks.running.step import Context, step
from tasks.tables import schema
from tasks.tables.aligned import accepted, judged_outputs, training_batches, with_matches
from tasks.templates import PromptTemplate, TemplateFolder

# A template sees the last message of the chat, as the model is asked it, and the first gold answer.
TEMPLATES = TemplateFolder(Path(__file__).parent / "prompts", "rewrite.template", ("prompt", "gold"))
_TABLE = "rewrites"


class JudgedOutputs(NamedTuple):
    """Judged answers: the files of the tables `outputs` and `verdicts`."""

    outputs: Path
    verdicts: Path


def _outside(*, model: ModelConfig, config: RewriteConfig, **sections: object) -> Mapping[str, str]:
    return {**weights_digest(model=model), "template": digest_of(TEMPLATES.load(config.template).text)}


@step(version=1, pool="gpu", table=schema.OUTPUTS, outside=_outside, launcher=one_process)
def rewrite(
    ctx: Context, *, model: ModelConfig, engine: EngineConfig, config: RewriteConfig, examples: Ref,
    outputs: Ref | None = None, verdicts: Ref | None = None,
) -> None:  # fmt: skip
    """Let the base model rewrite gold answers. Writes `outputs.parquet` of kind rewrite, which may have no rows.

    Args:
        outputs: With it and `verdicts`, only examples without an accepted answer are rewritten; else all are.
    """
    rows = paid_answers(ctx.store, _TABLE, config, model=model, engine=engine, origin=ctx.ref["fingerprint"])
    path, passed_over = ctx.path(examples, "examples.parquet"), Counter[str]()
    judged = None
    if outputs and verdicts:
        judged = JudgedOutputs(ctx.path(outputs, "outputs.parquet"), ctx.path(verdicts, "verdicts.parquet"))
    questions = partial(_questions, path, judged, rows, config, passed_over)
    n_rows = write_outputs(ctx, rows, questions, config, model=model, engine=engine)
    ctx.account(ctx.counts_of(examples)["rows.train"], n_rows, passed_over)


def count_rewrites(
    store: Store, model: ModelConfig, engine: EngineConfig, config: RewriteConfig, examples: Path,
    judged: JudgedOutputs | None,
) -> QuestionCounts:  # fmt: skip
    """Count the rows that the step would write and the questions that it would ask. Loads no model."""
    rows = paid_answers(store, _TABLE, config, model=model, engine=engine)
    return count_questions(_questions(examples, judged, rows, config, Counter()), rows.done())


def _questions(
    path: Path, judged: JudgedOutputs | None, rows: RowStore, config: RewriteConfig, passed_over: Counter[str]
) -> Iterator[Asked[Request]]:
    """A question for each example to rewrite, in example order. The other examples are counted in `passed_over`."""
    template = TEMPLATES.load(config.template)
    passed_over.clear()
    for batch in _to_rewrite(path, judged, passed_over):
        for row in batch.to_pylist():
            messages = rewrite_prompt(template, row["messages"], row["golds"][0])
            yield Asked((row["example_id"], "rewrite", 0), request_for(messages, rows, config))


def rewrite_prompt(template: PromptTemplate, messages: list[Message], gold: str) -> list[Message]:
    """The chat of an example, with its last message replaced by the request to rewrite the gold."""
    *earlier, last = messages
    return [*earlier, {"role": "user", "content": template.render(prompt=last["content"], gold=gold)}]


def _to_rewrite(path: Path, judged: JudgedOutputs | None, passed_over: Counter[str]) -> Iterator[pa.RecordBatch]:
    training = training_batches(path, ["messages", "golds"])
    if judged is None:
        yield from training
        return
    for batch, found in with_matches(training, judged_outputs(*judged)):
        is_own = pc.and_(accepted(found), pc.equal(found.column("kind"), "answer"))
        own = found.filter(is_own).column("example_id").combine_chunks()
        wanted = batch.filter(pc.invert(pc.is_in(batch.column("example_id"), own)))
        if n_passed := batch.num_rows - wanted.num_rows:
            passed_over["own_accepted"] += n_passed
        yield wanted
