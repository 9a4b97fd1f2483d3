"""The parts of the form of a run about its arms: their training, what they are measured on, which is promoted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from flows.form.lines import line
from flows.form.parts import FormPart
from tasks.config import ArmConfig, Policy, RunConfig
from tasks.errors import ConfigError
from tasks.wording import rate

Benchmark = Literal["mmlu", "truthfulqa_mc2", "gsm8k", "hellaswag", "lab"]
_ARM_NAMES: dict[Policy, str] = {"gold": "sft"}  # where an arm is not simply called by its policy


class TrainPart(FormPart):
    """The arms, and their training."""

    policies: list[Policy] = Field(
        default=[], title="Arms",
        description="What to compare: gold is plain fine-tuning (SFT), ssr is Selective Self-Rehearsal, the others "
        "are variants. None chosen: the arms of the recipe.",
        json_schema_extra={"uniqueItems": True},
    )  # fmt: skip
    learning_rates: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[], title="Learning rates",
        description="Each arm is trained once with each of them, for example 0.0001. None: as the recipe says.",
        json_schema_extra={"uniqueItems": True},
    )  # fmt: skip
    epochs: float | None = Field(
        default=None, gt=0, le=100, title="Epochs",
        description="Passes over the training rows, for every arm. Empty: as the recipe says.",
    )  # fmt: skip
    max_length: int | None = Field(
        default=None, gt=0, title="Longest row",
        description="In tokens, prompt and answer together; longer rows are left out and counted.",
    )  # fmt: skip

    def lines(self, recipe: RunConfig) -> Iterator[str]:
        """Override lines."""
        if self.epochs:
            yield line("train.epochs", self.epochs)
        if self.max_length:
            yield line("train.max_length", self.max_length)
        own = self.epochs and any(arm.epochs for arm in recipe.arms)
        if self.policies or self.learning_rates or own:
            arms = [arm.model_copy(update={"epochs": None}) if own else arm for arm in self._arms(recipe)]
            yield line("arms", arms)

    def _arms(self, recipe: RunConfig) -> Iterator[ArmConfig]:
        """For each policy its arms in the recipe, else those of the recipe's first policy under another name."""
        first = recipe.arms[0].policy
        for policy in self.policies or dict.fromkeys(arm.policy for arm in recipe.arms):
            found = [arm for arm in recipe.arms if arm.policy == policy]
            found = found or [_with_policy(arm, policy) for arm in recipe.arms if arm.policy == first]
            if not self.learning_rates:
                yield from found
            for learning_rate in self.learning_rates:
                # An arm that is not called by its rate keeps its name: promotion may wait for it.
                keeps = len(self.learning_rates) == 1 and not _named_by_rate(found[0])
                name = found[0].name if keeps else f"{_ARM_NAMES.get(policy, policy)}-{rate(learning_rate)}"
                yield found[0].model_copy(update={"name": name, "learning_rate": learning_rate})


class EvaluatePart(FormPart):
    """What base and arms are measured on."""

    benchmarks: list[Benchmark] = Field(
        default=[], title="Benchmarks",
        description="What must not be forgotten. None chosen: the benchmarks of the recipe. Others: see More changes.",
        json_schema_extra={"uniqueItems": True},
    )  # fmt: skip
    limit: int | None = Field(
        default=None, gt=0, title="Items a task",
        description="For a quick look: only the first so many of each (MMLU is 57 tasks). Empty: as the recipe says.",
    )  # fmt: skip
    max_task_rows: int | None = Field(
        default=None, gt=0, title="Test rows",
        description="Use at most so many held-out rows of the data. Empty: as the recipe says.",
    )  # fmt: skip

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
    task_margin: float | None = Field(
        default=None, gt=0, lt=1, title="Largest loss on the task",
        description="Against the base model and the adapter promoted now: 0.01 is one point. Empty: as the recipe "
        "says, else 0.01.",
    )  # fmt: skip
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


def _with_policy(arm: ArmConfig, policy: Policy) -> ArmConfig:
    """The same training under another policy: sft-5e-4 becomes s3ft-5e-4."""
    ending = arm.name.removeprefix(_ARM_NAMES.get(arm.policy, arm.policy)).strip("-")
    name = "-".join(filter(None, [_ARM_NAMES.get(policy, policy), ending]))
    return arm.model_copy(update={"name": name, "policy": policy})


def _named_by_rate(arm: ArmConfig) -> bool:
    return arm.learning_rate is not None and arm.name.endswith(f"-{rate(arm.learning_rate)}")
