"""The parts of the form of a run about its arms: how they are trained and measured, and which one is promoted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from flows.form.lines import line
from flows.form.parts import FormPart, Keys
from tasks.config import ArmConfig, PolicyName, RunConfig, TrainConfig
from tasks.errors import ConfigError
from tasks.policies import POLICIES, explained
from tasks.wording import rate

Benchmark = Literal["mmlu", "truthfulqa_mc2", "gsm8k", "hellaswag", "lab"]


class TrainPart(FormPart):
    """The arms, and their training."""

    KEYS: ClassVar[Keys] = {"policies": ("arms",), "learning_rates": ("arms",)}
    policies: list[PolicyName] = Field(
        default=[], title="Arms",
        description=f"What each training row teaches. {explained()} None chosen: the arms of the recipe.",
        json_schema_extra={"uniqueItems": True},
    )  # fmt: skip
    learning_rates: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[], title="Learning rates",
        description="Each arm is trained once with each of them, for example 0.0001. None: as the recipe says.",
        json_schema_extra={"uniqueItems": True},
    )  # fmt: skip
    epochs: float | None = Field(default=None, gt=0, le=100, title="Epochs")
    """Passes over the training rows, for every arm. Empty: as the recipe says."""
    max_length: int | None = Field(default=None, gt=0, title="Longest row")
    """In tokens, prompt and answer together; longer rows are left out and counted."""

    def lines(self, recipe: RunConfig) -> Iterator[str]:
        """Override lines. A training option that is filled in holds for every arm, whatever the recipe says of it."""
        said = {name: getattr(self, name) for name in type(self).model_fields if name in TrainConfig.model_fields}
        said = {name: value for name, value in said.items() if value}
        for name, value in said.items():
            yield line(f"train.{name}", value)
        nothing = {field: None for option, field in recipe.arms[0].options().items() if option in said}
        have_own = any(getattr(arm, field) is not None for arm in recipe.arms for field in nothing)
        if self.policies or self.learning_rates or have_own:
            yield line("arms", [arm.model_copy(update=nothing) for arm in self._arms(recipe)])

    def _arms(self, recipe: RunConfig) -> Iterator[ArmConfig]:
        """For each policy its arms in the recipe, else those of the recipe's first policy under another name."""
        first = recipe.arms[0].policy
        for policy in self.policies or dict.fromkeys(arm.policy for arm in recipe.arms):
            found = [arm for arm in recipe.arms if arm.policy == policy]
            found = found or [_with_policy(arm, policy) for arm in recipe.arms if arm.policy == first]
            if not self.learning_rates:
                yield from found
            for learning_rate in self.learning_rates:
                # An arm whose name does not say its rate keeps its name, because promotion may name it.
                keeps = len(self.learning_rates) == 1 and not _named_by_rate(found[0])
                name = found[0].name if keeps else f"{POLICIES[policy].arm_name}-{rate(learning_rate)}"
                yield found[0].model_copy(update={"name": name, "learning_rate": learning_rate})


class EvaluatePart(FormPart):
    """What base and arms are measured on."""

    benchmarks: list[Benchmark] = Field(default=[], title="Benchmarks", json_schema_extra={"uniqueItems": True})
    """What must not be forgotten. None chosen: the benchmarks of the recipe. Others: see More changes."""
    limit: int | None = Field(default=None, gt=0, title="Items a task")
    """For a quick look: only the first so many of each (MMLU is 57 tasks). Empty: as the recipe says."""
    max_task_rows: int | None = Field(default=None, gt=0, title="Test rows")
    """Use at most so many held-out rows of the data. Empty: as the recipe says."""

    def lines(self, recipe: RunConfig) -> Iterator[str]:
        """Override lines."""
        for name in type(self).model_fields:
            if value := getattr(self, name):
                yield line(f"evaluate.{name}", value)


class PromotionPart(FormPart):
    """Which adapter is promoted, and what it may lose."""

    arm: str | None = Field(
        default=None, title="Promoted arm",
        description="The arm whose adapter takes the place of the promoted one, if it is shown to be no worse: such as "
        "ssr. Empty: the recipe's, or none. For none in spite of the recipe, write promotion=null under More changes.",
    )  # fmt: skip
    benchmark_margin: float | None = Field(
        default=None, gt=0, lt=1, title="Largest loss on a benchmark",
        description="Against the base model, ruled out on every benchmark: 0.02 is two points. Empty: as the recipe "
        "says, else 0.02.",
    )  # fmt: skip
    task_margin: float | None = Field(default=None, gt=0, lt=1, title="Largest loss on the task")
    """Against the base model and the adapter promoted now: 0.01 is one point. Empty: as the recipe says, else 0.01."""
    train_on: Literal["as in the recipe", "all", "new"] = Field(
        default="as in the recipe", title="Rows to train on",
        description="all: a fresh adapter on all rows. new: go on from the promoted adapter, on the rows that it has "
        "not seen; for runs of one arm.",
    )  # fmt: skip

    def lines(self, recipe: RunConfig) -> Iterator[str]:
        """Override lines.

        Raises:
            ConfigError: A field is filled in where no arm is promoted.
        """
        names = [
            name for name, field in type(self).model_fields.items() if (getattr(self, name) or None) != field.default
        ]
        if names and not self.arm and recipe.promotion is None:
            title = type(self).model_fields[names[0]].title
            raise ConfigError(
                f"Promotion: {title} is for runs that promote an adapter, and recipe {recipe.name} promotes none. "
                "Name a promoted arm."
            )
        if names:
            kept = recipe.promotion.model_dump(exclude_defaults=True) if recipe.promotion else {}
            yield line("promotion", {**kept, **{name: getattr(self, name) for name in names}})


def _with_policy(arm: ArmConfig, policy: PolicyName) -> ArmConfig:
    """The same training under another policy: sft-5e-4 becomes s3ft-5e-4."""
    ending = arm.name.removeprefix(POLICIES[arm.policy].arm_name).strip("-")
    name = "-".join(filter(None, [POLICIES[policy].arm_name, ending]))
    return arm.model_copy(update={"name": name, "policy": policy})


def _named_by_rate(arm: ArmConfig) -> bool:
    return arm.learning_rate is not None and arm.name.endswith(f"-{rate(arm.learning_rate)}")
