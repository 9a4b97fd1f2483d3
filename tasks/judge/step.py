"""The judge step: a verdict for every output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tasks import schema
from tasks.aligned import GRAIN, with_matches
from tasks.config import AbstentionConfig, JudgeConfig
from tasks.judge.rules import ACCEPT, REJECT, UNJUDGED, Candidate, judge_by_rules
from tasks.step import Context, step
from tasks.store import Ref

_KNOWN = ["task", "golds", "incorrect", "answerable"]
_OUTPUT = [*GRAIN, "text", "finish_reason", "problem"]


@step(version=1)
def judge(ctx: Context, *, config: JudgeConfig, abstention: AbstentionConfig, examples: Ref, outputs: Ref) -> None:
    """Decide which outputs are acceptable; writes `verdicts.parquet`."""
    known, answers = ctx.path(examples, "examples.parquet"), ctx.path(outputs, "outputs.parquet")
    n_outputs = schema.count_rows(answers, schema.OUTPUTS)
    counts: Counter[str] = Counter({ACCEPT: 0, REJECT: 0, UNJUDGED: 0})
    with schema.TableWriter(ctx.out / "verdicts.parquet", schema.VERDICTS) as writer:
        for batch, found in with_matches(_examples(known), _outputs(answers)):
            verdicts = _judge_batch(batch, found, config, abstention)
            counts.update(str(row["verdict"]) for row in verdicts)
            counts.update(f"rule.{row['decided_by']}" for row in verdicts if row["decided_by"])
            writer.write(verdicts)
            ctx.progress(writer.n_rows, n_outputs)
    ctx.account(n_outputs, writer.n_rows, {})
    ctx.counts |= dict(sorted(counts.items()))


def _examples(path: Path) -> Iterator[pa.RecordBatch]:
    columns = ["example_id", "split", *_KNOWN]
    for batch in schema.read_batches(path, schema.EXAMPLES, columns=columns):
        training = batch.filter(pc.equal(batch.column("split"), "train"))
        if training.num_rows:
            yield training


def _outputs(path: Path) -> Iterator[pa.Table]:
    for batch in schema.read_batches(path, schema.OUTPUTS, columns=_OUTPUT):
        yield pa.Table.from_batches([batch])


def _judge_batch(
    examples: pa.RecordBatch, outputs: pa.Table, config: JudgeConfig, abstention: AbstentionConfig
) -> list[dict[str, object]]:
    known = {row["example_id"]: {name: row[name] for name in _KNOWN} for row in examples.to_pylist()}
    rows: list[dict[str, object]] = []
    for row in outputs.to_pylist():
        candidate = Candidate(row["text"], row["finish_reason"], row["problem"], **known[row["example_id"]])
        verdict = judge_by_rules(candidate, config, abstention.phrases)
        rows.append({name: row[name] for name in GRAIN} | verdict._asdict() | {"p_accept": None})
    return rows
