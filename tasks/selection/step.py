"""The select step: one training target per example."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from tasks.artifacts.store import Ref
from tasks.config import SelectConfig
from tasks.errors import DataError, StepError
from tasks.policies import POLICIES, TargetChoice, TargetPolicy
from tasks.running.step import Context, step
from tasks.selection.candidates import Tables, candidates, drawn_blindly
from tasks.tables import schema

_FILES = {"rewrites": "outputs", "rewrite_verdicts": "verdicts", "seen": "examples"}  # where called otherwise


@step(version=1, pool="cpu", table=schema.TARGETS)
def select(
    ctx: Context, *, config: SelectConfig, examples: Ref, outputs: Ref, verdicts: Ref, seen: Ref | None = None,
    **more: Ref,
) -> None:  # fmt: skip
    """Choose what each training row teaches; writes `targets.parquet`, one row per example_id, in that order.

    Args:
        seen: Examples that were trained on before: their rows are left out, and it is no failure if none is new.
        more: The other tables that the policy reads (`SelectConfig.reads`): rewrites, rewrite_verdicts, likelihoods.
    """
    if set(more) != set(config.reads()):
        raise StepError(f"select: policy {config.policy} reads {config.reads()}, but was given {sorted(more)}.")
    given = {"examples": examples, "outputs": outputs, "verdicts": verdicts, **more, **({"seen": seen} if seen else {})}
    tables = Tables(**{name: ctx.path(ref, f"{_FILES.get(name, name)}.parquet") for name, ref in given.items()})
    n_train = ctx.counts_of(examples)["rows.train"]
    if schema.count_rows(tables.outputs, schema.OUTPUTS) < n_train:
        raise DataError("select: fewer outputs than training rows: they are not of the same run. Run generate again.")
    policy = POLICIES[config.policy]
    answers = (found for _, found in candidates(tables))
    drawn = drawn_blindly(answers, config.seed) if "draw" in policy.reads else None
    types = Counter({"self": 0, "rewrite": 0, "gold": 0})
    n_in = 0  # without those that were seen
    with schema.TableWriter(ctx.out / "targets.parquet", schema.TARGETS) as writer:
        for rows, found in candidates(tables):
            if drawn is not None:
                found = found.append_column("drawn", pc.is_in(found.column("example_id"), drawn))
            targets = _targets(rows, found, _chosen(policy, found))
            types.update(targets.column("target_type").to_pylist())
            n_in += rows.num_rows
            writer.write(targets)
            ctx.progress(n_in, n_train)
    dropped = {"no_output": n_in - writer.n_rows, "seen": n_train - n_in if seen else 0}
    ctx.account(n_in + dropped["seen"], writer.n_rows, {reason: n for reason, n in dropped.items() if n})
    ctx.counts |= {f"target.{kind}": n for kind, n in sorted(types.items())}
    if writer.n_rows == 0 and seen is None:
        raise StepError(f"select: policy {config.policy} leaves no row to train on: no output of the model is usable.")


def _chosen(policy: TargetPolicy, candidates: pa.Table) -> TargetChoice:
    try:
        return policy.choose(candidates.select(policy.columns))
    except KeyError as error:
        raise StepError(
            f"select: policy {policy.name} reads a column of a table that it does not declare ({error}). Add the table "
            "to `reads` of its declaration in tasks/policies.py."
        ) from error


def _targets(rows: pa.Table, candidates: pa.Table, choice: TargetChoice) -> pa.Table:
    is_own, is_rewrite = pc.equal(choice.target_type, "self"), pc.equal(choice.target_type, "rewrite")
    gold, no_nll = pc.list_element(rows.column("golds"), 0), pa.scalar(None, pa.float64())
    rewrite_or_gold = pc.if_else(is_rewrite, candidates.column("rewrite_text"), gold)
    nll_of_gold = pc.if_else(is_rewrite, no_nll, candidates.column("gold_base_nll"))
    made = pa.table(
        {
            "example_id": rows.column("example_id"),
            "messages": rows.column("messages"),
            "target": pc.if_else(is_own, candidates.column("text"), rewrite_or_gold),
            "target_type": choice.target_type,
            "reason": choice.reason,
            "base_nll": pc.if_else(is_own, candidates.column("base_nll"), nll_of_gold),
        }
    )
    return made if choice.kept is None else made.filter(choice.kept)
