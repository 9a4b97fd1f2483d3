"""What each training row could teach: one candidate a row, put together from the tables batch by batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from tasks.policies import CANDIDATE, has_output
from tasks.tables import schema
from tasks.tables.aligned import GRAIN, SortedReader, accepted, judged_outputs, tables_of, training_batches

_JUDGED_COLUMNS = ["text", "verdict", "verdict_reason"]


class Tables(NamedTuple):
    """The tables that a policy reads; None is one that it does not read.

    Attributes:
        seen: Examples of an earlier run, whose training rows are left out.
    """

    examples: Path
    outputs: Path
    verdicts: Path
    rewrites: Path | None = None
    rewrite_verdicts: Path | None = None
    likelihoods: Path | None = None
    seen: Path | None = None


def candidates(tables: Tables) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Training examples in batches, and for each row its candidate, in the same order.

    A candidate has the columns of `tasks.policies.CANDIDATE`, but for `drawn`.
    """
    seen = SortedReader(tables_of(tables.seen, schema.EXAMPLES, ["example_id", "split"])) if tables.seen else None
    for rows, found in _all_candidates(tables):
        if seen is None:
            yield rows, found
            continue
        known = seen.until(rows.column("example_id")[-1])
        known_ids = known.filter(pc.equal(known.column("split"), "train")).column("example_id")
        is_new = pc.invert(pc.is_in(rows.column("example_id"), known_ids.combine_chunks()))
        if pc.any(is_new).as_py():
            yield rows.filter(is_new), found.filter(is_new)


def _all_candidates(tables: Tables) -> Iterator[tuple[pa.Table, pa.Table]]:
    answers = SortedReader(judged_outputs(tables.outputs, tables.verdicts))
    rewrites = likelihoods = None
    if tables.rewrites and tables.rewrite_verdicts:
        rewrites = SortedReader(judged_outputs(tables.rewrites, tables.rewrite_verdicts))
    if tables.likelihoods:
        likelihoods = SortedReader(tables_of(tables.likelihoods, schema.LIKELIHOODS, [*GRAIN, "base_nll"]))
    for batch in training_batches(tables.examples, ["messages", "golds"]):
        ids = batch.column("example_id")
        measured = likelihoods.until(ids[-1]) if likelihoods else None
        own = _best(answers.until(ids[-1]), measured)
        rewritten = _of_kind("rewrite", rewrites.until(ids[-1])) if rewrites else None
        gold = _of_kind("gold", measured) if measured else None
        columns = {
            **_of_each(ids, own, [*_JUDGED_COLUMNS, "base_nll"]),
            **_of_each(ids, rewritten, _JUDGED_COLUMNS, prefix="rewrite_"),
            **_of_each(ids, gold, ["base_nll"], prefix="gold_"),
        }
        yield pa.Table.from_batches([batch]), pa.table({"example_id": ids, **columns})


def drawn_blindly(candidates: Iterable[pa.Table], seed: int) -> pa.Array:
    """Ids of as many examples as have an accepted answer, drawn among those whose answer can be trained on."""
    n_accepted, drawable = 0, []
    for found in candidates:
        n_accepted += pc.sum(accepted(found)).as_py() or 0
        drawable += found.filter(has_output(found)).column("example_id").to_pylist()
    drawn = sorted(drawable, key=lambda example_id: _draw_key(seed, example_id))[:n_accepted]
    return pa.array(sorted(drawn), pa.string())


def _draw_key(seed: int, example_id: str) -> bytes:
    # From the id and not from the order of rows, so that an added row does not change the order of the others.
    return hashlib.sha256(f"{seed}:{example_id}".encode()).digest()


def _of_kind(kind: str, found: pa.Table) -> pa.Table:
    return found.filter(pc.equal(found.column("kind"), kind))


def _best(judged: pa.Table, measured: pa.Table | None) -> pa.Table:
    """One answer per example: an accepted one first, then one with an output, then the lower sample index.

    Where likelihoods were measured, the lower base_nll counts before the sample index; an unknown one comes last.
    """
    answers = _of_kind("answer", judged)
    order = {"not_accepted": pc.invert(accepted(answers)), "no_output": pc.invert(has_output(answers))}
    if measured is not None:
        order["base_nll"] = _nll_of(answers, _of_kind("answer", measured))
    for name, column in order.items():
        answers = answers.append_column(name, column)
    ordered = answers.sort_by([(name, "ascending") for name in ("example_id", *order, "sample_index")])
    ids = ordered.column("example_id").combine_chunks()
    is_first = pa.concat_arrays([pa.array([True] * min(1, len(ids)), pa.bool_()), pc.not_equal(ids[1:], ids[:-1])])
    return ordered.filter(is_first)


def _nll_of(answers: pa.Table, measured: pa.Table) -> pa.ChunkedArray:
    place = pc.index_in(_sample_key(answers), _sample_key(measured).combine_chunks())
    return measured.column("base_nll").take(place)


def _sample_key(rows: pa.Table) -> pa.ChunkedArray:
    sample = pc.cast(rows.column("sample_index"), pa.string())
    return pc.binary_join_element_wise(rows.column("example_id"), sample, ":")


def _of_each(
    ids: pa.Array, found: pa.Table | None, names: list[str], *, prefix: str = ""
) -> dict[str, pa.ChunkedArray]:
    """The columns of `found` for each example: null where it has no row, and where the table is not read (None)."""
    there = [] if found is None else [name for name in names if name in found.column_names]
    columns = {name: pa.nulls(len(ids), CANDIDATE.field(f"{prefix}{name}").type) for name in names}
    if found is not None:
        place = pc.index_in(ids, found.column("example_id").combine_chunks())
        columns |= {name: found.column(name).take(place) for name in there}
    return {f"{prefix}{name}": column for name, column in columns.items()}
