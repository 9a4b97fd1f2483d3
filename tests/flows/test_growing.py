"""Runs of one recipe, one after the other, on data that grows: what is paid for, and which adapter is promoted."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from in_process import rehearsed

from flows.promotion.log import promoted_now, read_log
from flows.promotion.status import promotion_status
from tasks.artifacts.store import Store, open_store
from tasks.config import RunConfig, parse_recipe
from tasks.train import step as training

pytestmark = pytest.mark.slow

Record = dict[str, Any]  # Any: JSON values
N_FIRST, N_NEW = 60, 3
DEPLOYED = Path(__file__).parents[2] / "deployments" / "prefect.yaml"


class Runs(NamedTuple):
    """The runs by name, in the order in which they ran; all on one store."""

    store: Store
    records: dict[str, Record]

    def labels(self, name: str) -> list[str]:
        return [step["label"] for step in self.records[name]["steps"]]

    def step(self, name: str, label: str) -> Any:  # Any: JSON values
        return next(step for step in self.records[name]["steps"] if step["label"] == label)

    def counts(self, name: str, label: str) -> dict[str, int]:
        manifest = self.store.manifest(**self.step(name, label)["ref"])
        assert manifest is not None
        return manifest.counts

    def outcome(self, name: str) -> str:
        return str(self.records[name]["promotion"]["outcome"])

    def weights(self, name: str) -> bytes:
        """Of the run's adapter, as its step holds them after all runs."""
        return weights_in(self.store.fetch(self.step(name, "train ssr")["ref"]) / "adapter")


def weights_in(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def weekly() -> tuple[str, ...]:
    """What the shipped weekly schedule forces."""
    pipeline = yaml.safe_load(DEPLOYED.read_text())["deployments"][0]
    (schedule,) = (one for one in pipeline["schedules"] if one["slug"] == "weekly-full")
    return tuple(schedule["parameters"]["run"]["force"])


def sums(path: Path, first: int, n: int) -> None:
    rows = [{"question": f"What is {i} plus {i % 7}?", "answer": str(i + i % 7)} for i in range(first, first + n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe(folder: Path, model: Path, name: str, **promotion: Any) -> RunConfig:
    # A model of random weights is right nowhere, before and after: with wide margins that is no loss.
    wide = {"arm": "ssr", "benchmark_margin": 0.9, "task_margin": 0.9}
    raw = {
        "name": name,
        "model": {"base": str(model)},
        "data": {
            "sources": [
                {"name": "days", "path": str(folder / "days"), "task": "number", "split": "train"},
                {"name": "held", "path": str(folder / "held.jsonl"), "task": "number", "split": "test"},
            ]
        },
        "generate": {"max_new_tokens": 4},
        "train": {"epochs": 1, "batch_size": 4, "micro_batch_size": 4, "max_length": 256, "lora_rank": 4},
        "arms": [{"name": "ssr", "policy": "ssr"}],
        "evaluate": {"benchmarks": ["lab_sums"], "limit": 5, "max_new_tokens": 4},
        "promotion": wide | promotion,
        "report": {"n_bootstrap": 200},
        "execution": {"threads": 1},
    }
    return parse_recipe(raw, where="toy")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, prefect_server: None) -> Runs:
    folder = tmp_path_factory.mktemp("growing")
    (folder / "days").mkdir()
    store, records = str(folder / "store"), {}
    every = recipe(folder, tiny_model, "every")
    only_new = recipe(folder, tiny_model, "only-new", train_on="new")
    strict = recipe(folder, tiny_model, "strict", benchmark_margin=0.001)

    sums(folder / "days" / "day-1.jsonl", 0, N_FIRST)
    sums(folder / "held.jsonl", 1000, 10)
    for name, run in (("first", every), ("new first", only_new), ("strict", strict)):
        records[name] = rehearsed(run, store)

    sums(folder / "days" / "day-2.jsonl", N_FIRST, N_NEW)
    with pytest.MonkeyPatch.context() as patch:
        # Prefect gives a run that is tried again its old id.
        patch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", str(uuid.uuid4()))
        records["grown"] = rehearsed(every, store)
        records["tried again"] = rehearsed(every, store)
    records["unchanged"] = rehearsed(every, store)
    records["new grown"] = rehearsed(only_new, store)
    records["new unchanged"] = rehearsed(only_new, store)
    with pytest.MonkeyPatch.context() as patch:
        # The same training with other weights, as by another library or on a GPU; the margin is wide no more.
        patch.setattr(training, "adapter_weights", doubled(training.adapter_weights))
        records["weekly"] = rehearsed(recipe(folder, tiny_model, "every", benchmark_margin=0.001), store, weekly())
    return Runs(open_store(store), records)


def doubled(weights: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    return lambda model: {name: 2 * matrix for name, matrix in weights(model).items()}


def test_the_first_run_is_compared_with_the_base_and_promoted(runs: Runs) -> None:
    assert runs.outcome("first") == "promoted"
    assert "evaluate current" not in runs.labels("first")
    assert runs.counts("first", "generate")["rows_generated"] == N_FIRST


def test_five_percent_more_rows_cost_five_percent(runs: Runs) -> None:
    counts = runs.counts("grown", "generate")
    assert (counts["rows_generated"], counts["rows_reused"]) == (N_NEW, N_FIRST)
    assert runs.counts("grown", "train ssr")["rows_in"] == N_FIRST + N_NEW


def test_the_second_run_is_compared_with_the_adapter_of_the_first_on_the_same_items(runs: Runs) -> None:
    assert runs.outcome("grown") == "promoted"
    measured = runs.store.manifest(**runs.step("grown", "evaluate current")["ref"])
    assert measured is not None
    assert measured.inputs["adapter"] == read_log(runs.store, "every").events[0].after.adapter
    assert measured.inputs["examples"] == runs.step("grown", "ingest")["ref"]
    decision = json.loads((runs.store.fetch(runs.step("grown", "promote")["ref"]) / "decision.json").read_text())
    assert {(check["kind"], check["against"]) for check in decision["checks"]} == {
        ("task", "base"), ("task", "current"), ("benchmark", "base"),
    }  # fmt: skip


def test_current_follows_and_keeps_its_history(runs: Runs) -> None:
    now = promoted_now(runs.store, "every")
    assert now is not None
    assert now.trained == runs.step("grown", "train ssr")["ref"]
    assert runs.store.read_json("current", "every.json")["run_id"] == runs.records["grown"]["run_id"]
    events = [
        (event.run_id, event.outcome) for event in read_log(runs.store, "every").events if event.outcome == "promoted"
    ]
    assert events == [(runs.records[name]["run_id"], "promoted") for name in ("first", "grown")]


def test_a_promoted_run_that_is_tried_again_plans_and_decides_the_same(runs: Runs) -> None:
    assert runs.records["tried again"]["steps"] == runs.records["grown"]["steps"]
    assert runs.records["tried again"]["promotion"] == runs.records["grown"]["promotion"]


def test_a_run_without_new_data_makes_the_promoted_adapter_and_changes_nothing(runs: Runs) -> None:
    assert runs.outcome("unchanged") == "current"
    assert runs.step("unchanged", "train ssr") == runs.step("grown", "train ssr")


def test_the_weekly_run_trains_and_measures_again_and_leaves_what_is_promoted_if_it_refuses_the_other_weights(
    runs: Runs,
) -> None:
    assert runs.step("weekly", "train ssr") == runs.step("grown", "train ssr")
    assert runs.outcome("weekly") == "kept"
    (shown,) = promotion_status(runs.store, "every")
    assert (shown["current"]["run_id"], shown["current"]["intact"]) == (runs.records["grown"]["run_id"], True)
    promoted = weights_in(Path(shown["current"]["folder"]))
    assert runs.store.read_json("current", "every.json")["folder"] == shown["current"]["folder"]
    assert promoted != runs.weights("weekly")
    assert learned(runs.weights("weekly")).keys() == learned(promoted).keys()
    assert all((learned(runs.weights("weekly"))[name] == 2 * one).all() for name, one in learned(promoted).items())
    # Each with its own scores: the promoted one as a rival, measured again, too.
    for label in ("evaluate ssr", "evaluate current"):
        measured = runs.store.manifest(**runs.step("weekly", label)["ref"])
        assert measured is not None
        assert measured.facts["started"] > started(runs, "new unchanged")


def started(runs: Runs, name: str) -> float:
    return datetime.fromisoformat(runs.records[name]["started"]).timestamp()


def test_what_is_not_shown_to_be_no_worse_is_kept_back_and_current_points_to_nothing(runs: Runs) -> None:
    assert runs.outcome("strict") == "kept"
    assert "items are needed" in runs.records["strict"]["promotion"]["reasons"][0]
    assert promoted_now(runs.store, "strict") is None
    assert [event.outcome for event in read_log(runs.store, "strict").events] == ["kept"]


def test_the_report_says_what_was_decided(runs: Runs) -> None:
    page = (runs.store.fetch(runs.step("strict", "report")["ref"]) / "report.md").read_text()
    assert "The adapter of ssr is not promoted" in page


def test_training_on_new_rows_goes_on_from_the_promoted_adapter_with_those_rows_alone(runs: Runs) -> None:
    assert runs.step("new first", "train ssr") == runs.step("first", "train ssr")
    counts = runs.counts("new grown", "select ssr")
    assert (counts["rows_in"], counts["rows_out"], counts["dropped.seen"]) == (N_FIRST + N_NEW, N_NEW, N_FIRST)
    trained = runs.store.manifest(**runs.step("new grown", "train ssr")["ref"])
    assert trained is not None
    assert trained.inputs["start"] == read_log(runs.store, "only-new").events[0].after.adapter
    assert (trained.counts["rows_in"], trained.counts["optimiser_steps"]) == (N_NEW, 1)
    assert trained.counts["trainable_parameters"] == runs.counts("first", "train ssr")["trainable_parameters"]
    assert runs.weights("new grown") != runs.weights("first")
    # One step from where it went on. A fresh adapter, whose B matrices begin at 0, would be as far as that is long.
    first, grown = learned(runs.weights("first")), learned(runs.weights("new grown"))
    assert distance(grown, first) < distance(first, {}) / 2


def learned(weights: bytes) -> dict[str, Any]:
    """The B matrices of an adapter."""
    from safetensors.numpy import load

    return {key: matrix for key, matrix in load(weights).items() if "lora_B" in key}


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Between the matrices of two adapters; what is missing counts as 0."""
    return float(sum(((matrix - other.get(key, 0)) ** 2).sum() for key, matrix in one.items()) ** 0.5)


def test_without_a_new_row_the_same_steps_are_found_done(runs: Runs) -> None:
    assert runs.outcome("new grown") == "promoted"
    assert runs.outcome("new unchanged") == "current"
    assert runs.step("new unchanged", "train ssr") == runs.step("new grown", "train ssr")
    # Nor is it measured again as the promoted one: these are the scores that it was promoted for.
    arm, rival = (
        runs.store.manifest(**runs.step("new unchanged", f"evaluate {whose}")["ref"]) for whose in ("ssr", "current")
    )
    assert arm is not None
    assert rival is not None
    assert rival.facts["started"] == arm.facts["started"]
