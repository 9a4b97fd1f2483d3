"""The target policies: what each training row teaches the model.

    gold         the gold label everywhere: plain supervised fine-tuning
    ssr          the own output where it was accepted, else the gold (arXiv 2409.04787)
    s3ft         the own output where accepted, else the own rewrite of the gold where accepted, else the gold
                 (arXiv 2502.08130)
    rewrite_all  the own rewrite of the gold where accepted, else the gold (arXiv 2402.13669)
    min_nll      as ssr, but of several accepted outputs the one most probable under the base model (arXiv 2501.14315)
    self_only    the own output, judged or not; rows without one are left out: a control
    random_mix   as many own outputs as ssr, drawn blindly among all: the control for the judge's part in ssr

All are functions of a table of candidates, one row per training example:

    example_id
    text, verdict, verdict_reason                   the own output that stands for the example; null: none
    base_nll                                        of that output, nats a token; null: not measured, or failed
    rewrite_text, rewrite_verdict, rewrite_verdict_reason    null: no rewrite was asked for
    gold_base_nll                                   as base_nll
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from tasks.config import SelectConfig
from tasks.selection.candidates import has_output
from tasks.tables.aligned import accepted


class Choice(NamedTuple):
    """For each candidate: which text is the target (self, rewrite or gold), why, and whether the row is kept."""

    target_type: pa.ChunkedArray
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
    return {
        "gold": _gold, "ssr": _ssr, "s3ft": _s3ft, "rewrite_all": _rewrite_all, "min_nll": _min_nll,
        "self_only": _self_only,
    }[config.policy]  # fmt: skip


def _gold(candidates: pa.Table) -> Choice:
    return Choice(_same("gold", candidates), _same("policy gold", candidates))


def _ssr(candidates: pa.Table) -> Choice:
    return Choice(pc.if_else(accepted(candidates), "self", "gold"), _own_reason(candidates))


def _s3ft(candidates: pa.Table) -> Choice:
    own, rewritten = accepted(candidates), _rewrite_accepted(candidates)
    both = pc.binary_join_element_wise(_own_reason(candidates), _rewrite_reason(candidates), "; ")
    return Choice(
        pc.if_else(own, "self", pc.if_else(rewritten, "rewrite", "gold")),
        pc.if_else(own, _own_reason(candidates), both),
    )


def _rewrite_all(candidates: pa.Table) -> Choice:
    return Choice(pc.if_else(_rewrite_accepted(candidates), "rewrite", "gold"), _rewrite_reason(candidates))


def _min_nll(candidates: pa.Table) -> Choice:
    own, reason = accepted(candidates), _own_reason(candidates)
    measured = pc.if_else(pc.is_valid(candidates.column("base_nll")), "lowest base_nll", "base_nll unknown")
    chosen = pc.binary_join_element_wise(reason, measured, "; ")
    return Choice(pc.if_else(own, "self", "gold"), pc.if_else(own, chosen, reason))


def _self_only(candidates: pa.Table) -> Choice:
    return Choice(_same("self", candidates), _same("policy self_only", candidates), kept=has_output(candidates))


def _random_mix(seed: int, everything: list[pa.Table]) -> Policy:
    n_wanted = sum(pc.sum(accepted(table)).as_py() or 0 for table in everything)
    drawable = (i for table in everything for i in table.filter(has_output(table)).column("example_id").to_pylist())
    drawn = set(sorted(drawable, key=lambda example_id: _ticket(seed, example_id))[:n_wanted])
    value_set = pa.array(sorted(drawn), pa.string())

    def choose(candidates: pa.Table) -> Choice:
        own = pc.is_in(candidates.column("example_id"), value_set)
        return Choice(pc.if_else(own, "self", "gold"), pc.if_else(own, "drawn", "not drawn"))

    return choose


def _ticket(seed: int, example_id: str) -> bytes:
    # From the id and not from the order of rows: another row more does not change who else is drawn first.
    return hashlib.sha256(f"{seed}:{example_id}".encode()).digest()


def _rewrite_accepted(candidates: pa.Table) -> pa.ChunkedArray:
    return pc.fill_null(pc.equal(candidates.column("rewrite_verdict"), "accept"), False)


def _own_reason(candidates: pa.Table) -> pa.ChunkedArray:
    verdict, reason = candidates.column("verdict"), candidates.column("verdict_reason")
    return pc.fill_null(pc.binary_join_element_wise(verdict, reason, ": "), "no output")


def _rewrite_reason(candidates: pa.Table) -> pa.ChunkedArray:
    verdict, reason = candidates.column("rewrite_verdict"), candidates.column("rewrite_verdict_reason")
    said = pc.binary_join_element_wise("rewrite ", verdict, "")
    return pc.fill_null(pc.binary_join_element_wise(said, reason, ": "), "no rewrite")


def _same(value: str, candidates: pa.Table) -> pa.ChunkedArray:
    return pa.chunked_array([pa.repeat(value, candidates.num_rows)])
