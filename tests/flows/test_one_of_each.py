"""A toy policy, metric, engine kind, reader, step and training option, each declared once, in one run to its report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from in_process import steps_in_process
from pydantic import Field

from flows.rehearsal import rehearse
from tasks import engine_kinds
from tasks.artifacts.store import Ref, Store, open_store
from tasks.config import ArmConfig, RunConfig
from tasks.engine_kinds import EngineKind, register
from tasks.engines import Reply
from tasks.measures import metrics
from tasks.measures.metrics import TASK, Answered, metric
from tasks.policies import POLICIES, TargetChoice, target_policy
from tasks.readers import registry
from tasks.readers.registry import RawExample, ReaderInput, reader
from tasks.running.step import STEPS, Context, Planned, Step, step
from tasks.tables import schema


class Echo:
    """Answers with the last word of the prompt."""

    def generate(self, requests: Any, sampling: Any, *, done: Any = ()) -> Iterator[Reply]:
        for request in requests:
            if request.key not in done:
                yield Reply(request.key, f"echo {request.messages[-1]['content'].split()[-1]}", "stop", 1, 1)


@contextmanager
def open_echo(model: Any, config: Any, *, work: Path, adapter: Path | None) -> Iterator[Echo]:
    yield Echo()


class ToyArm(ArmConfig):
    """An arm with one training option more."""

    weight_decay: float | None = Field(default=None, ge=0)


class ToyRecipe(RunConfig):
    """A recipe of such arms."""

    arms: tuple[ToyArm, ...] = ()


@pytest.fixture
def toy_targets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Step]:
    """Declares one of each, and gives the step. What is declared here is gone after the test."""
    registers: list[dict[str, Any]] = [engine_kinds._KINDS, POLICIES, registry.READERS, STEPS]
    before = [dict(known) for known in registers]
    monkeypatch.setattr(metrics, "_DECLARED", list(metrics._DECLARED))
    monkeypatch.setattr("tasks.report.step.RunConfig", ToyRecipe)
    yield _declare()
    for known, kept in zip(registers, before, strict=True):
        known.clear()
        known.update(kept)


def _declare() -> Step:
    @target_policy("echoing", title="Echoing", colour="#123456", description="a toy")
    def choose(candidates: pa.Table) -> TargetChoice:
        own = pc.fill_null(pc.starts_with(candidates.column("text"), "echo"), False)
        return TargetChoice(pc.if_else(own, "self", "gold"), pc.if_else(own, "it echoes", "it does not"))

    @metric(title="answers that echo the question", higher_is_better=False, families=TASK)
    def echoes(item: Answered) -> float:
        return float(item.output.startswith("echo"))

    @reader("pairs", title="Pairs", files="Lines of two words", task="open")
    def pairs(source: ReaderInput) -> Iterator[RawExample]:
        for record in source.records:
            question, answer = record.value["pair"]
            yield RawExample(question, None, None, [answer], [], None, None)

    @step(version=1, pool="cpu", table=schema.TARGETS)
    def toy_targets(ctx: Context, *, examples: Ref) -> None:
        batches = schema.read_batches(ctx.path(examples, "examples.parquet"), schema.EXAMPLES)
        rows = [row for batch in batches for row in batch.to_pylist()]
        made = [
            {"example_id": row["example_id"], "messages": row["messages"], "target": "toy", "target_type": "gold",
             "reason": "a toy reason", "base_nll": None} for row in rows
        ]  # fmt: skip
        with schema.TableWriter(ctx.out / "targets.parquet", schema.TARGETS) as writer:
            writer.write(made)
        ctx.account(len(rows), len(rows), {})

    register(EngineKind(name="echo", description="a toy", opens=f"{__name__}:open_echo", loads_weights=True, reads=()))
    return toy_targets


def run(recipe: RunConfig, store: Store, toy: Step) -> Path:
    """The folder of the report of a run whose method has one step more, which the report reads."""

    def execute(step: Step, label: str, after: Planned | None = None, /, **parts: Any) -> Planned:
        if step.name == "report":
            parts["toy"] = execute(toy, "toy", examples=parts["examples"])
        planned = step.plan(label, **parts)
        planned.execute(store)
        return planned

    with steps_in_process():
        return store.fetch(rehearse(execute, recipe).ref)


@pytest.mark.slow
def test_one_of_each_is_declared_once_and_shows_in_the_report(
    toy_targets: Step, tiny_model: Path, tmp_path: Path
) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps({"pair": [f"Say word {i}", f"word {i}"]}) + "\n" for i in range(16)))
    recipe = ToyRecipe.model_validate({
        "model": {"base": str(tiny_model)},
        "engine": {"kind": "echo"},
        "data": {"sources": [{"path": str(data), "reader": "pairs"}]},
        "train": {"epochs": 1, "max_length": 64, "lora_rank": 2},
        "arms": [{"name": "sft", "policy": "gold"}, {"name": "toy", "policy": "echoing", "weight_decay": 0.1}],
        "evaluate": {"benchmarks": [], "drift_rows": 0},
        "report": {"n_bootstrap": 200},
    })  # fmt: skip
    out = run(recipe, open_store(str(tmp_path / "store")), toy_targets)
    page, found = (out / "report.html").read_text(), json.loads((out / "report.json").read_text())

    assert "Echoing" in page
    assert found["judged"]["mixes"][-1]["counts"]["self"] > 0, "the policy chose answers of the engine kind"
    assert "answers that echo the question" in page, "the metric"
    assert "reader: pairs" in found["recipe_yaml"]
    assert "kind: echo" in found["recipe_yaml"]
    assert "echo " in page, "what the engine kind answered"
    assert "Weight decay</th>" in page, "the training option"
    labels = [made["label"] for made in found["steps"]]
    assert labels[1:3] == ["generate", "toy_targets"], "the step stands where its inputs let it"
    for label in labels:
        assert label in page
