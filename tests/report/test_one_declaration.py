"""A policy and a training option of an arm are declared in one place, and plan, form and report follow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import toy
from pydantic import Field
from toy_run import Run

from flows.form.arms import TrainPart
from flows.rehearsal import plan_steps
from tasks.config import ArmConfig, RunConfig, SelectConfig, load_recipe, parse_recipe
from tasks.errors import ConfigError
from tasks.policies import POLICIES, TargetChoice, target_policy
from tasks.report import summary_rows
from tasks.running.step import as_input
from tasks.selection import select


def planned(recipe: RunConfig) -> dict[str, str]:
    """The fingerprints of the steps of a run, by their labels."""
    return {one.label: one.ref["fingerprint"] for one in plan_steps(recipe)}


def numbers(folder: Path) -> Any:  # Any: JSON values
    return json.loads((folder / "report.json").read_text())


# --- a policy ---


@pytest.fixture
def probable() -> Iterator[None]:
    """A policy that teaches the answers that the base model finds probable."""

    @target_policy("probable", title="Probable", colour="#123456", description="a toy", reads=["likelihoods"])
    def choose(candidates: pa.Table) -> TargetChoice:
        own = pc.fill_null(pc.less(candidates.column("base_nll"), 1.0), False)
        return TargetChoice(pc.if_else(own, "self", "gold"), pc.if_else(own, "is probable", "is not"))

    yield
    del POLICIES["probable"]


@pytest.mark.usefixtures("probable")
def test_a_declared_policy_is_planned_selected_and_reported(run: Run, tmp_path: Path) -> None:
    arm = {"name": "toy", "policy": "probable"}
    labels = planned(parse_recipe({"arms": [arm]}, where="toy"))
    assert {"likelihood", "select probable", "train toy"} <= set(labels)
    assert "rewrite" not in labels

    tables = {name: as_input(run.artifacts[name]) for name in ("examples", "outputs", "verdicts")}
    measured = [toy.likelihood(f"{i:04x}", 0.5 if i < 7 else 2.0) for i in range(40)]
    config = SelectConfig(policy="probable")
    made = select.plan(config=config, **tables, likelihoods=toy.put(run.store, "likelihoods", measured))
    run.artifacts |= {"targets_3": made.execute(run.store)}
    run.artifacts |= {f"{kind}_3": run.artifacts[f"{kind}_0"] for kind in ("adapter", "scores")}
    arms = [*(arm.model_dump() for arm in run.recipe.arms), arm]
    run.recipe = RunConfig.model_validate({**run.recipe.model_dump(), "arms": arms})

    out = run.report(tmp_path / "out")
    found = numbers(out)
    assert found["judged"]["mixes"][-1]["arms"] == ["toy"]
    assert found["judged"]["mixes"][-1]["counts"] == {"self": 7, "rewrite": 0, "gold": 33}
    assert "Probable (toy) gained +40.0 points" in " ".join(found["verdict"])
    assert "#123456" in (out / "report.html").read_text()
    assert summary_rows(found)[1][-1][0] == "toy\nProbable, 2e-4"


def test_the_message_about_a_misspelt_policy_names_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"arms\.0\.policy: no such policy\. Known: gold, ssr, s3ft, .*'srs'"):
        parse_recipe({"arms": [{"name": "a", "policy": "srs"}]}, where="toy")


# --- a training option of an arm ---


class ToyArm(ArmConfig):
    """An arm with one option more, declared as a field and nowhere else."""

    weight_decay: float | None = Field(default=None, ge=0)


class ToyRecipe(RunConfig):
    arms: tuple[ToyArm, ...] = ()


class ToyPart(TrainPart):
    weight_decay: float | None = Field(default=None, title="Weight decay")


@pytest.fixture
def decayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of two arms of the same learning rate, one with a weight decay of its own."""
    monkeypatch.setattr("tasks.config.reading.RunConfig", ToyRecipe)
    path = tmp_path / "decayed.yaml"
    path.write_text(
        "report: {n_bootstrap: 400}\n"
        "arms: [{name: sft, policy: gold}, {name: ssr, policy: ssr, weight_decay: 0.1}, {name: slow, policy: ssr}]"
    )
    return path


def test_an_option_of_an_arm_changes_its_training_alone(decayed: Path) -> None:
    before, after = planned(load_recipe(decayed)), planned(load_recipe(decayed, ["arms.1.weight_decay=0.2"]))
    assert {label for label in before if before[label] != after[label]} == {"train ssr", "evaluate ssr", "report"}


def test_arms_with_different_options_are_never_called_equally_trained(decayed: Path, run: Run, tmp_path: Path) -> None:
    run.recipe = load_recipe(decayed)
    out = run.report(tmp_path / "out")
    found = numbers(out)
    pairs = {(c["arm"], c["reference"]): c["same_training"] for c in found["measured"]["contrasts"]}
    assert pairs == {("ssr", "sft"): False, ("slow", "sft"): True}
    assert "Weight decay</th>" in (out / "report.html").read_text()
    assert [row[0] for row in summary_rows(found)[1]] == ["base", "sft\nSFT, 0", "ssr\nSSR, 0.1", "slow\nSSR, 0"]
    assert "depends on the weight decay: ssr against sft (weight decay 0.1 against weight decay 0)" in str(found)


def test_a_line_in_a_chart_joins_arms_that_differ_in_the_learning_rate_alone(run: Run, tmp_path: Path) -> None:
    def n_lines(out: Path) -> int:
        return (out / "report.html").read_text().count("stroke-opacity: 0.6")

    before = n_lines(run.report(tmp_path / "before"))
    arms = [*(arm.model_dump() for arm in run.recipe.arms), {"name": "again", "policy": "ssr", "train_seed": 1}]
    run.recipe = RunConfig.model_validate({**run.recipe.model_dump(), "arms": arms})
    run.artifacts |= {f"{kind}_3": run.artifacts[f"{kind}_1"] for kind in ("targets", "adapter", "scores")}
    assert (before, n_lines(run.report(tmp_path / "after"))) == (2, 3)


def test_an_override_that_every_arm_replaces_is_refused_for_a_new_option_as_well(decayed: Path) -> None:
    own = [f"arms.{i}.weight_decay=0.1" for i in range(3)]
    load_recipe(decayed, ["train.weight_decay=0.2", *own[:2]])
    with pytest.raises(ConfigError, match=r"train\.weight_decay=0\.2: has no effect, every arm has its own"):
        load_recipe(decayed, ["train.weight_decay=0.2", *own])


def test_an_option_that_the_form_asks_for_holds_for_every_arm(decayed: Path) -> None:
    lines = list(ToyPart(weight_decay=0.3).lines(load_recipe(decayed)))
    recipe = load_recipe(decayed, lines)
    assert [arm.train_config(recipe.train).weight_decay for arm in recipe.arms] == [0.3] * 3


@pytest.mark.parametrize("name", ["momentum", "micro_batch_size"])
def test_an_option_that_would_change_nothing_of_what_is_learned_is_an_error_at_import(name: str) -> None:
    misnamed = type("Misnamed", (ArmConfig,), {"__annotations__": {name: int | None}, name: None})
    with pytest.raises(TypeError, match=f"Misnamed.{name}: no field of TrainConfig that changes what is learned"):
        misnamed.options()
