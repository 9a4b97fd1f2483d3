"""The form of a run in the Prefect UI: a recipe by name, the changes people make most, and lines for all others.

What is filled in becomes override lines, as `ssr run RECIPE --set` takes them. So a form can do nothing that a command
cannot, and the recipe's own checks find what is wrong with it. An empty field changes nothing.

Not here: the parts of the form (`flows.form.parts`, `flows.form.arms`), the fields of a recipe (`tasks.config`), and
when a form is read (`flows.run`).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from flows.form.arms import EvaluatePart, PromotionPart, TrainPart
from flows.form.lines import line, refuse_clashes
from flows.form.parts import DataPart, FormPart, JudgePart, Keys, ModelPart
from flows.rehearsal import STEPS, step_names
from flows.runs.recipes import RECIPES, shipped
from tasks.config import RunConfig, load_recipe
from tasks.errors import ConfigError

OverrideLine = Annotated[str, Field(pattern=r"^\s*[A-Za-z_][A-Za-z0-9_.]*\s*=.*$")]


class RunForm(FormPart):
    """A run: a recipe and what to change of it."""

    KEYS: ClassVar[Keys] = {"recipe": (), "execution": ("execution.steps",), "force": (), "overrides": ()}
    recipe: str = Field(
        default="demo", title="Recipe",
        description="What to run. " + " ".join(f"• {name}: {purpose}" for name, purpose in shipped().items()),
        json_schema_extra={"enum": list(shipped())},
    )  # fmt: skip
    name: str | None = Field(default=None, pattern=r"^([a-z0-9][a-z0-9_-]*)?$", title="Name")
    """Shown in lists and on the report: small letters, digits and dashes. Empty: the recipe's."""
    data: DataPart = Field(default_factory=DataPart, title="Data")
    """Data of your own, and how many rows to use."""
    model: ModelPart = Field(default_factory=ModelPart, title="Model")
    """The model to fine-tune, and what runs it."""
    judge: JudgePart = Field(default_factory=JudgePart, title="Judge")
    """Which of the model's own answers are good enough."""
    train: TrainPart = Field(default_factory=TrainPart, title="Training")
    """What is compared, and how it is trained."""
    evaluate: EvaluatePart = Field(default_factory=EvaluatePart, title="Evaluation")
    """What base model and arms are measured on."""
    promotion: PromotionPart = Field(default_factory=PromotionPart, title="Promotion")
    """Whether an adapter of this run may take the place of the one that is promoted now."""
    execution: Literal["as in the recipe", "inline", "deployments"] = Field(
        default="as in the recipe", title="Where steps run",
        description="inline: all on the worker that takes this run. deployments: each step on the work pool it is "
        "deployed to, such as one with GPUs.",
    )  # fmt: skip
    force: list[Annotated[str, Field(json_schema_extra={"enum": list(STEPS)})]] = Field(
        default=[], title="Run again",
        description="Steps to run again though their results are there. None chosen: whatever is there is reused.",
        json_schema_extra={"uniqueItems": True},
    )  # fmt: skip
    overrides: list[OverrideLine] = Field(
        default=[], title="More changes",
        description="Anything else of the recipe, a line each: section.key=value, such as train.lora_rank=32. "
        "A line about the same as a field that is filled in above is refused.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _is_a_run(self) -> RunForm:
        try:
            refuse_clashes(self.keys_set(), self.overrides)
            _refuse_absent(self.force, self.to_recipe())
        except ConfigError as error:
            raise PydanticCustomError("recipe", "{problem}", {"problem": str(error)}) from error
        return self

    def override_lines(self) -> list[str]:
        """The form as `--set` lines of its recipe, in the order in which they count.

        Raises:
            ConfigError: What is filled in does not fit together, or not to the recipe.
        """
        return [*self._lines_of_fields(self._load([])), *self.overrides]

    def to_recipe(self) -> RunConfig:
        """The recipe with all that is filled in.

        Raises:
            ConfigError: What is filled in does not fit together, or not to the recipe.
        """
        return self._load(self.override_lines())

    def _lines_of_fields(self, recipe: RunConfig) -> list[str]:
        parts = (self.data, self.model, self.judge, self.train, self.evaluate, self.promotion)
        lines = [one for part in parts for one in part.lines(recipe)]
        if self.name:
            lines.append(line("name", self.name))
        if self.execution != "as in the recipe":
            kept = recipe.execution.model_dump(exclude_defaults=True)
            lines.append(line("execution", {**kept, "steps": self.execution}))
        return lines

    def _load(self, lines: list[str]) -> RunConfig:
        if self.recipe not in shipped():
            raise ConfigError(f"Recipe: no {self.recipe!r} here. Shipped: {', '.join(shipped())}.")
        path = RECIPES / f"{self.recipe}.yaml"
        try:
            return load_recipe(path, lines)
        except ConfigError as error:
            # The message is written for a command and a file, and a form has neither.
            said = str(error).replace(f"{path}: ", "").removeprefix("recipe: ").replace("--set ", "")
            raise ConfigError(f"recipe {self.recipe}: {said}") from error


def form_of(recipe: RunConfig) -> dict[str, Any]:
    """The filled-in form of a recipe that is not shipped: every section is a line under More changes.

    Raises:
        ConfigError: The filled-in form would make another recipe.
    """
    said = {name: getattr(recipe, name) for name in RunConfig.model_fields if name not in ("name", "execution")}
    width = {f"execution.{name}": getattr(recipe.execution, name) for name in ("workers", "threads")}
    form: dict[str, Any] = {
        "recipe": "nightly",
        "name": recipe.name,
        "overrides": [line(key, value) for key, value in {**said, **width}.items()],
    }
    made = RunForm.model_validate({**form, "execution": recipe.execution.steps}).to_recipe()
    if made != recipe:
        raise ConfigError(f"recipe {recipe.name}: cannot be written into the form of a run. Use a shipped recipe.")
    return form


def _refuse_absent(force: list[str], recipe: RunConfig) -> None:
    there = step_names(recipe)
    if absent := [name for name in force if name not in there]:
        raise ConfigError(f"Run again: this run has no step {absent[0]}. It has: {', '.join(there)}.")
