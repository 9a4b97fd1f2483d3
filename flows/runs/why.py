"""`ssr why`: why each step of a run ran, and what every step made of one training row."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from flows.planning.reasons import differences, differences_in_words
from flows.rehearsal import STEPS
from flows.runs.records import RunRecord, StepRecord, all_runs
from tasks.artifacts.store import Ref, Store
from tasks.errors import ConfigError
from tasks.wording import counts_in_words

Entry = dict[str, Any]  # Any: JSON values; `title` is its heading


def explain_steps(store: Store, record: RunRecord, label: str | None) -> list[Entry]:
    """For each step of a run: what it made, from which inputs, how long it took, and what changed since the last run.

    Args:
        label: The label or name of a step; None stands for all.

    Raises:
        ConfigError: The run has no such step.
    """
    steps = [step for step in record.steps if label in (None, step.label, step.ref["step"])]
    if not steps:
        known = ", ".join(step.label for step in record.steps) or "none: it has not ended"
        raise ConfigError(f"{record.run_id} has no step {label!r}; its steps: {known}")
    earlier = [run for run in all_runs(store) if run.name == record.name and run.started < record.started]
    return [_explain(store, record, step, earlier[0] if earlier else None) for step in steps]


def _explain(store: Store, record: RunRecord, step: StepRecord, earlier: RunRecord | None) -> Entry:
    manifest = store.manifest(**step.ref)
    entry: Entry = {"title": step.label, "fingerprint": step.ref["fingerprint"][:16]}
    before = earlier.step(step.label) if earlier else None
    if before and earlier:
        changed = differences(before.identity, step.identity)
        entry["changed"] = differences_in_words(changed) if changed else f"nothing since {earlier.run_id}"
    if manifest is None:
        return entry | {"artifact": "gone; the same recipe makes it again"}
    entry |= {f"from {name}": f"{ref['step']}/{ref['fingerprint'][:12]}" for name, ref in manifest.inputs.items()}
    entry["counts"] = counts_in_words(manifest.counts)
    entry["took"] = f"{manifest.facts.get('seconds', 0):.1f} s on {manifest.facts.get('host', '?')}"
    entry["where"] = store.link(step.ref)
    return entry


def explain_row(store: Store, record: RunRecord, example_id: str) -> list[Entry]:
    """The rows of one example in every table, from the dataset to the targets.

    Args:
        example_id: The id, or a beginning of it that no other id has.

    Raises:
        ConfigError: The run has no such row.
    """
    entries: list[Entry] = []
    for made in record.steps:
        step = STEPS.get(made.ref["step"])  # None: of another version of this program
        if step and step.table is not None and "example_id" in step.table.names:
            entries += _rows(store, made.ref, f"{step.table_name}", example_id, made.label)
    if not entries:
        raise ConfigError(f"{record.run_id}: no row {example_id!r}. The ids are in examples.parquet and in the report.")
    if len(ids := {entry["example_id"] for entry in entries}) > 1:
        raise ConfigError(f"{record.run_id}: {len(ids)} rows begin with {example_id!r}. Give more of the id.")
    return entries


def _rows(store: Store, ref: Ref, table: str, example_id: str, title: str) -> list[Entry]:
    # "g" is greater than all digits of an id, which is hex.
    bounds = [("example_id", ">=", example_id), ("example_id", "<", example_id + "g")]
    found = pq.read_table(store.fetch(ref) / f"{table}.parquet", filters=bounds).to_pylist()
    return [{"title": f"{title}: {table}", **row} for row in found]
