"""`ssr merge`: merge the adapter of an arm into its base model, and write beside it what it was made from."""

from __future__ import annotations

import json
from pathlib import Path

from flows.promotion.log import read_log
from flows.runs.records import RunRecord, StepRecord
from tasks.artifacts.store import Ref, Store
from tasks.config import ModelConfig
from tasks.errors import ConfigError, DataError
from tasks.models import model_digest
from tasks.train.merge import merge

ORIGIN = "selective_self_rehearsal.json"


def merge_arm(store: Store, record: RunRecord, arm: str | None, out: Path) -> StepRecord:
    """Merge the adapter that an arm of a run has trained.

    Args:
        arm: The name of the arm; None stands for the only one.

    Returns:
        The training step whose adapter it is.

    Raises:
        ConfigError: The run has no such arm, or several and none is named; or `out` exists.
        DataError: The adapter is gone, or the base model has changed since it was trained.
    """
    trained = _of_arm(record, arm)
    adapter = _as_promoted(store, record, trained.ref)
    manifest = store.manifest(**adapter)
    if manifest is None:
        raise DataError(
            f"{store.link(adapter)}: the adapter is gone. Run the recipe again: ssr run makes what is missing."
        )
    model = ModelConfig.model_validate(record.recipe["model"])
    if model_digest(model) != manifest.identity["outside"]["model"]:
        raise DataError(f"model.base={model.base}: has changed since {record.run_id} trained on it. Restore it.")
    merge(model, store.fetch(adapter) / "adapter", out)
    origin = {"run": record.run_id, "arm": trained.label.removeprefix("train "), "trained": trained.identity}
    (out / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n")
    return trained


def _as_promoted(store: Store, record: RunRecord, trained: Ref) -> Ref:
    """The copy of the adapter if this run promoted it, because a forced step may have replaced the original."""
    for event in reversed(read_log(store, record.name).events):
        if event.outcome == "promoted" and event.run_id == record.run_id and event.after:
            return event.after.adapter if event.after.trained == trained else trained
    return trained


def _of_arm(record: RunRecord, arm: str | None) -> StepRecord:
    trained = {step.label.removeprefix("train "): step for step in record.steps if step.ref["step"] == "train"}
    known = ", ".join(trained)
    if arm is None and len(trained) != 1:
        raise ConfigError(f"{record.run_id} has the arms {known}. Say which one: --arm {next(iter(trained), 'NAME')}")
    if arm is not None and arm not in trained:
        raise ConfigError(f"{record.run_id} has no arm {arm!r}. It has: {known}")
    return trained[arm] if arm is not None else next(iter(trained.values()))
