"""The target policies: which of the training rows teach the model its own output.

    gold        none: the gold label everywhere, plain supervised fine-tuning
    ssr         those whose output was accepted (arXiv 2409.04787)
    self_only   all that have an output, judged or not; the others are left out: a control
    random_mix  as many as ssr, drawn blindly among those with an output: the control for the judge's part in ssr

All are functions of a table of candidates, one row per training example, with the columns example_id, text (own
output or null), verdict and verdict_reason (null without an output).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from tasks.config import SelectConfig


class Choice(NamedTuple):
    """For each candidate: whether its own output is the target, why, and whether the row is kept."""

    own: pa.ChunkedArray
    reason: pa.ChunkedArray
    kept: pa.ChunkedArray | None = None


Policy = Callable[[pa.Table], Choice]


def policy_of(config: SelectConfig, candidates: Callable[[], list[pa.Table]]) -> Policy:
    """The policy of an arm.

    Args:
        candidates: All candidates (example_id, text, verdict): only random_mix needs to see them all at once.
    """
    if config.policy == "random_mix":
        return _random_mix(config.seed, candidates())
    return {"gold": _gold, "ssr": _ssr, "self_only": _self_only}[config.policy]


def has_output(candidates: pa.Table) -> pa.ChunkedArray:
    """Whether there is an own output to train on: not failed, not empty."""
    return pc.fill_null(pc.not_equal(candidates.column("text"), ""), False)


def accepted(candidates: pa.Table) -> pa.ChunkedArray:
    """Whether the judge accepted it; unjudged is not accepted."""
    return pc.fill_null(pc.equal(candidates.column("verdict"), "accept"), False)


def _gold(candidates: pa.Table) -> Choice:
    never = pc.and_(has_output(candidates), False)
    return Choice(never, _same("policy gold", candidates))


def _ssr(candidates: pa.Table) -> Choice:
    verdict = pc.binary_join_element_wise(candidates.column("verdict"), candidates.column("verdict_reason"), ": ")
    return Choice(accepted(candidates), pc.fill_null(verdict, "no output"))


def _self_only(candidates: pa.Table) -> Choice:
    has = has_output(candidates)
    return Choice(has, _same("policy self_only", candidates), kept=has)


def _random_mix(seed: int, everything: list[pa.Table]) -> Policy:
    n_wanted = sum(pc.sum(accepted(table)).as_py() or 0 for table in everything)
    drawable = (i for table in everything for i in table.filter(has_output(table)).column("example_id").to_pylist())
    drawn = set(sorted(drawable, key=lambda example_id: _ticket(seed, example_id))[:n_wanted])
    value_set = pa.array(sorted(drawn), pa.string())

    def choose(candidates: pa.Table) -> Choice:
        own = pc.is_in(candidates.column("example_id"), value_set)
        return Choice(own, pc.if_else(own, "drawn", "not drawn"))

    return choose


def _ticket(seed: int, example_id: str) -> bytes:
    # From the id and not from the order of rows: another row more does not change who else is drawn first.
    return hashlib.sha256(f"{seed}:{example_id}".encode()).digest()


def _same(reason: str, candidates: pa.Table) -> pa.ChunkedArray:
    return pa.chunked_array([pa.repeat(reason, candidates.num_rows)])
