"""Rows of the tables with everything filled in that a test does not care about, and a way to publish them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.artifacts.digest import digest_of
from tasks.artifacts.store import Manifest, Ref, Store, describe_files
from tasks.running.step import Planned, step
from tasks.tables import schema

Row = dict[str, Any]  # Any: values of a table

_STEPS = {"examples": "ingest", "outputs": "generate", "verdicts": "judge", "likelihoods": "likelihood"}
_SCHEMAS: dict[str, pa.Schema] = {
    "examples": schema.EXAMPLES, "outputs": schema.OUTPUTS, "verdicts": schema.VERDICTS,
    "likelihoods": schema.LIKELIHOODS,
}  # fmt: skip


def example(example_id: str, **changes: Any) -> Row:
    row = {
        "example_id": example_id, "source": "toy", "split": "train", "domain": "in", "task": "open",
        "messages": [{"role": "user", "content": f"Q {example_id}?"}], "question": f"Q {example_id}?",
        "dialogue": None, "document": None, "golds": [f"gold {example_id}"], "incorrect": [], "answerable": None,
        "group": None,
    }  # fmt: skip
    return row | changes


def output(example_id: str, text: str | None, sample_index: int = 0, **changes: Any) -> Row:
    failed = text is None
    row = {
        "example_id": example_id, "kind": "answer", "sample_index": sample_index,
        "row_key": f"{example_id}-{sample_index}", "text": text, "finish_reason": None if failed else "stop",
        "n_prompt_tokens": 3, "n_output_tokens": 2, "problem": "timeout: 60 s" if failed else None,
        "retryable": True if failed else None,
    }  # fmt: skip
    return row | changes


def verdict(example_id: str, state: str, sample_index: int = 0, **changes: Any) -> Row:
    row = {
        "example_id": example_id, "kind": "answer", "sample_index": sample_index, "verdict": state,
        "decided_by": None if state == "unjudged" else "exact_match", "reason": f"because {state}", "p_accept": None,
    }  # fmt: skip
    return row | changes


def likelihood(example_id: str, base_nll: float | None, sample_index: int = 0, kind: str = "answer") -> Row:
    return {
        "example_id": example_id, "kind": kind, "sample_index": sample_index, "base_nll": base_nll,
        "problem": "context_overflow: 600 > 512" if base_nll is None else None,
    }  # fmt: skip


def write(path: Path, table: str, rows: Iterable[Row]) -> None:
    with schema.TableWriter(path, _SCHEMAS[table]) as writer:
        writer.write(list(rows))


def put(store: Store, table: str, rows: Iterable[Row]) -> Planned:
    """Publish a table as the step that makes it would, and stand in for that step as an input."""
    rows = list(rows)
    ref = Ref(step=_STEPS[table], fingerprint=digest_of([table, rows]))
    with store.staging(**ref) as folder:
        write(folder / f"{table}.parquet", table, rows)
        counts = {"rows.train": sum(row.get("split") == "train" for row in rows)}
        store.publish(folder, Manifest(**ref, identity={}, inputs={}, files=describe_files(folder), counts=counts))
    return as_input(ref)


def as_input(ref: Ref) -> Planned:
    return Planned(step=_never, label="", ref=ref, identity={}, sections={}, inputs={})


def bytes_of(store: Store, made: Ref, name: str) -> bytes:
    return (store.fetch(made) / name).read_bytes()


def counts_of(store: Store, made: Ref) -> Mapping[str, int]:
    manifest = store.manifest(**made)
    assert manifest is not None
    return manifest.counts


@step(version=1, pool="cpu", table=None)
def _never(ctx: object) -> None:
    raise AssertionError("an input is never run by the step that reads it")
