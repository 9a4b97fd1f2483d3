"""The select step: one training target per example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tasks import schema
from tasks.aligned import judged_outputs, with_matches
from tasks.config import SelectConfig
from tasks.errors import StepError
from tasks.selection.policies import Choice, accepted, has_output, policy_of
from tasks.step import Context, step
from tasks.store import Ref

_CANDIDATE_COLUMNS = ["example_id", "text", "verdict", "verdict_reason"]


@step(version=1)
def select(ctx: Context, *, config: SelectConfig, examples: Ref, outputs: Ref, verdicts: Ref) -> None:
    """Choose what each training row teaches; writes `targets.parquet`, one row per example_id, in that order."""
    paths = [ctx.path(examples, "examples.parquet"), ctx.path(outputs, "outputs.parquet")]
    paths.append(ctx.path(verdicts, "verdicts.parquet"))
    policy = policy_of(config, lambda: [chosen.drop_columns("verdict_reason") for _, chosen in _candidates(*paths)])
    n_train, types = ctx.counts_of(examples)["rows.train"], Counter({"self": 0, "gold": 0})
    n_in = 0
    with schema.TableWriter(ctx.out / "targets.parquet", schema.TARGETS) as writer:
        for rows, candidates in _candidates(*paths):
            targets = _targets(rows, candidates, policy(candidates))
            types.update(targets.column("target_type").to_pylist())
            n_in += rows.num_rows
            writer.write(targets)
            ctx.progress(n_in, n_train)
    ctx.account(n_train, writer.n_rows, {"no_output": n_in - writer.n_rows} if n_in > writer.n_rows else {})
    ctx.counts |= {f"target.{kind}": n for kind, n in sorted(types.items())}
    if writer.n_rows == 0:
        raise StepError(f"select: policy {config.policy} leaves no row to train on: no output of the model is usable.")


def _candidates(examples: Path, outputs: Path, verdicts: Path) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Training examples in batches, and for each row its one candidate, in the same order."""
    columns = ["example_id", "split", "messages", "golds"]
    batches = (
        batch.filter(pc.equal(batch.column("split"), "train"))
        for batch in schema.read_batches(examples, schema.EXAMPLES, columns=columns)
    )
    training = (batch for batch in batches if batch.num_rows)
    for batch, found in with_matches(training, judged_outputs(outputs, verdicts)):
        best = _best(found.filter(pc.equal(found.column("kind"), "answer")))
        place = pc.index_in(batch.column("example_id"), best.column("example_id").combine_chunks())
        chosen = best.drop_columns("example_id").take(place)
        ids = pa.chunked_array([batch.column("example_id")])
        yield pa.Table.from_batches([batch]), chosen.add_column(0, "example_id", ids).select(_CANDIDATE_COLUMNS)


def _best(found: pa.Table) -> pa.Table:
    """One candidate per example: an accepted one first, then one with an output, then the lower sample index."""
    worse = {"not_accepted": pc.invert(accepted(found)), "no_output": pc.invert(has_output(found))}
    for name, column in worse.items():
        found = found.append_column(name, column)
    ordered = found.sort_by([(name, "ascending") for name in ("example_id", *worse, "sample_index")])
    ids = ordered.column("example_id").combine_chunks()
    is_first = pa.concat_arrays([pa.array([True] * min(1, len(ids)), pa.bool_()), pc.not_equal(ids[1:], ids[:-1])])
    return ordered.filter(is_first)


def _targets(rows: pa.Table, candidates: pa.Table, choice: Choice) -> pa.Table:
    gold = pc.list_element(rows.column("golds"), 0)
    made = pa.table(
        {
            "example_id": rows.column("example_id"),
            "messages": rows.column("messages"),
            "target": pc.if_else(choice.own, candidates.column("text"), gold),
            "target_type": pc.if_else(choice.own, "self", "gold"),
            "reason": choice.reason,
            "base_nll": pa.nulls(rows.num_rows, pa.float64()),
        }
    )
    return made if choice.kept is None else made.filter(choice.kept)
