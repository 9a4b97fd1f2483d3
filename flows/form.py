"""The form of a run in the Prefect UI: a recipe by name, the changes people make most, and lines for all others.

What is filled in becomes override lines, the very ones that `ssr run RECIPE --set` takes; so a form can do nothing
that a command cannot, and whatever is wrong with it the recipe's own checks say. An empty field changes nothing.

Not here: the fields of a recipe (`tasks.config`), and when a form is read (`flows.run`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from flows.recipes import RECIPES, shipped
from flows.rehearsal import rehearse
from tasks.config import ArmConfig, Policy, Reader, RunConfig, Section, Task, load_recipe
from tasks.errors import ConfigError
from tasks.report.wording import rate
from tasks.step import Planned, Step
from tasks.store import Ref

Benchmark = Literal["mmlu", "truthfulqa_mc2", "gsm8k", "hellaswag", "lab"]
StepName = Literal[
    "ingest", "generate", "judge", "rewrite", "likelihood", "select", "train", "measure", "evaluate", "report",
    "promote",
]  # fmt: skip
Line = Annotated[str, Field(pattern=r"^\s*[A-Za-z_][A-Za-z0-9_.]*\s*=.*$")]
_ARM_NAMES: dict[Policy, str] = {"gold": "sft"}  # where an arm is not simply called by its policy


def _for_the_form(schema: dict[str, Any]) -> None:  # Any: a JSON schema
    """Put the fields in order, and make an optional one a plain input that may stay empty.

    Pydantic writes `int | None` as a choice of two types, with a default of null: the form shows that as a switch in
    front of each field. Prefect takes null for any field that is not required and has no default.
    """
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position
        types = [one for one in field.get("anyOf", []) if one != {"type": "null"}]
        if len(types) == 1:
            del field["anyOf"]
            field |= types[0]
        if field.get("default", ...) is None:
            del field["default"]


class FormPart(BaseModel):
    """A part of the form."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, json_schema_extra=_for_the_form)


class DataPart(FormPart):
    """Data of your own, in place of the recipe's."""

    path: str | None = Field(
        default=None, title="Path",
        description="File, folder, glob or s3:// address of JSONL, JSON, CSV or Parquet, as the worker sees it. It "
        "replaces all data of the recipe. Empty: the recipe's data.",
    )  # fmt: skip
    hub: str | None = Field(
        default=None, title="Hub dataset", description="Instead of a path: a dataset id on the Hugging Face Hub."
    )
    reader: Reader = Field(
        default="auto", title="Format", description="Of your rows. auto: a plain table with the columns named below."
    )
    task: Task = Field(
        default="open", title="Task",
        description="What a row asks for: a question with its document (grounded_qa), a free instruction (open), a "
        "number, or one of several choices.",
    )  # fmt: skip
    question: str = Field(default="question", title="Question column", description="Holds the question or instruction.")
    answer: str = Field(
        default="answer", title="Answer column", description="Holds the right answer: a text, or a list of them."
    )
    document: str | None = Field(
        default=None, title="Document column", description="Holds the document that the answer stands in, if any."
    )
    limit: int | None = Field(
        default=None, gt=0, title="Rows",
        description="Use at most so many rows of each data source, yours or the recipe's. Empty: as the recipe says.",
    )  # fmt: skip

    def lines(self, recipe: RunConfig) -> Iterator[str]:
        """Override lines.

        Raises:
            ConfigError: What is filled in does not fit together, or not to the recipe.
        """
        if self.path and self.hub:
            raise ConfigError("Data: give either a path or a Hub dataset, not both.")
        if self.path or self.hub:
            _refuse_lab(recipe)
            columns = {"question": self.question, "answer": self.answer, "document": self.document or None}
            source: dict[str, Any] = {  # Any: JSON values
                "path": self.path or None, "hub": self.hub or None, "reader": self.reader, "task": self.task,
                "fields": columns, "limit": self.limit,
            }  # fmt: skip
            yield _line("data.sources", [source])
            return
        for name, field in type(self).model_fields.items():
            if name != "limit" and (getattr(self, name) or None) != field.default:
                raise ConfigError(f"Data: {field.title} describes data of your own. Give their path or Hub dataset.")
        if self.limit:
            limited = [source.model_copy(update={"limit": self.limit}) for source in recipe.data.sources]
            yield _line("data.sources", limited)


class ModelPart(FormPart):
    """The model, and what runs it."""

    base: str | None = Field(
        default=None, title="Base model",
        description="The model to fine-tune: a folder on the worker, or a Hub id such as "
        "mistralai/Mistral-7B-Instruct-v0.2. Empty: the recipe's.",
    )  # fmt: skip
    engine: Literal["as in the recipe", "vllm", "transformers", "openai"] = Field(
        default="as in the recipe", title="Engine",
        description="What runs the model. vllm: a server that the worker starts, for GPUs. transformers: inside the "
        "worker, also without a GPU. openai: servers that are there already, at the addresses below.",
    )  # fmt: skip
    urls: list[str] = Field(
        default=[], title="Server addresses", description="For engine openai: addresses such as http://host:8000/v1."
    )
    max_new_tokens: int | None = Field(
        default=None, gt=0, title="Longest answer",
        description="In tokens, when the training questions are answered and when arms are tested. Empty: as the "
        "recipe says.",
    )  # fmt: skip

    def lines(self, recipe: RunConfig) -> Iterator[str]:
        """Override lines. Another kind of engine starts from that kind's defaults."""
        if self.base:
            yield _line("model.base", self.base)
        kind = recipe.engine.kind if self.engine == "as in the recipe" else self.engine
        if kind != recipe.engine.kind or self.urls:
            kept = recipe.engine.model_dump(exclude_defaults=True) if kind == recipe.engine.kind else {}
            yield _line("engine", {**kept, "kind": kind, **({"urls": self.urls} if self.urls else {})})
        if self.max_new_tokens:
            yield _line("generate.max_new_tokens", self.max_new_tokens)
            yield _line("evaluate.max_new_tokens", self.max_new_tokens)


class JudgePart(FormPart):
    """Which of the base model's answers are acceptable."""

    rules_only: bool = Field(
        default=False, title="Rules alone", description="Judge by rules only, though the recipe has a judge model."
    )
    model: str | None = Field(
        default=None, title="Judge model",
        description="Judges what the rules leave open: a folder, a Hub id, or with engine openai a name on the "
        "server. Empty: the recipe's, or none.",
    )  # fmt: skip
    threshold: float | None = Field(
        default=None, gt=0, le=1, title="Threshold",
        description="Accept an answer from this probability on, as the judge model sees it: above 0, up to 1.",
    )  # fmt: skip
    min_token_recall: float | None = Field(
        default=None, gt=0, le=1, title="Token recall",
        description="A rule: accept an answer that has at least this share of the right answer's words.",
    )  # fmt: skip

    def lines(self, recipe: RunConfig) -> Iterator[str]:
        """Override lines.

        Raises:
            ConfigError: A field of the judge model is filled in where there is none.
        """
        if self.min_token_recall:
            yield _line("judge.min_token_recall", self.min_token_recall)
        llm = None if self.rules_only or recipe.judge.llm is None else recipe.judge.llm
        if self.rules_only and self.model:
            raise ConfigError("Judge: with rules alone there is no judge model. Switch one of the two off.")
        if self.threshold and not (llm or self.model):
            raise ConfigError("Judge: Threshold is for a judge model, and rules judge alone here. Give a judge model.")
        if self.rules_only:
            yield _line("judge.llm", None)
            if not (recipe.judge.contains_gold or self.min_token_recall):
                yield _line("judge.contains_gold", True)  # or no rule would accept anything
        elif self.model or self.threshold:
            changed = llm.model_dump(exclude_defaults=True) if llm else {}
            changed |= {"judges": [{"model": {"base": self.model}}]} if self.model else {}
            changed |= {"threshold": self.threshold} if self.threshold else {}
            yield _line("judge.llm", changed)


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
            yield _line("train.epochs", self.epochs)
        if self.max_length:
            yield _line("train.max_length", self.max_length)
        if self.policies or self.learning_rates or self.epochs:
            arms = [arm.model_copy(update={"epochs": None}) if self.epochs else arm for arm in self._arms(recipe)]
            yield _line("arms", arms)

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
        default=None, gt=0, title="Items a benchmark",
        description="For a quick look: use only the first so many. Empty: as the recipe says.",
    )  # fmt: skip
    max_task_rows: int | None = Field(
        default=None, gt=0, title="Test rows",
        description="Use at most so many held-out rows of the data. Empty: as the recipe says.",
    )  # fmt: skip

    def lines(self, recipe: RunConfig) -> Iterator[str]:
        """Override lines."""
        for name in type(self).model_fields:
            if value := getattr(self, name):
                yield _line(f"evaluate.{name}", value)


class RunForm(FormPart):
    """A run: a recipe and what to change of it."""

    recipe: str = Field(
        default="demo", title="Recipe",
        description="What to run. " + " ".join(f"• {name}: {purpose}" for name, purpose in shipped().items()),
        json_schema_extra={"enum": list(shipped())},
    )  # fmt: skip
    name: str | None = Field(
        default=None, pattern=r"^([a-z0-9][a-z0-9_-]*)?$", title="Name",
        description="Shown in lists and on the report: small letters, digits and dashes. Empty: the recipe's.",
    )  # fmt: skip
    data: DataPart = Field(
        default_factory=DataPart, title="Data", description="Data of your own, and how many rows to use."
    )
    model: ModelPart = Field(
        default_factory=ModelPart, title="Model", description="The model to fine-tune, and what runs it."
    )
    judge: JudgePart = Field(
        default_factory=JudgePart, title="Judge", description="Which of the model's own answers are good enough."
    )
    train: TrainPart = Field(
        default_factory=TrainPart, title="Training", description="What is compared, and how it is trained."
    )
    evaluate: EvaluatePart = Field(
        default_factory=EvaluatePart, title="Evaluation", description="What base model and arms are measured on."
    )
    execution: Literal["as in the recipe", "inline", "deployments"] = Field(
        default="as in the recipe", title="Where steps run",
        description="inline: all on the worker that takes this run. deployments: each step on the work pool it is "
        "deployed to, such as one with GPUs.",
    )  # fmt: skip
    force: list[StepName] = Field(
        default=[], title="Run again",
        description="Steps to run again though their results are there. None chosen: whatever is there is reused.",
        json_schema_extra={"uniqueItems": True},
    )  # fmt: skip
    overrides: list[Line] = Field(
        default=[], title="More changes",
        description="Anything else of the recipe, a line each: section.key=value, such as train.lora_rank=32.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _is_a_run(self) -> RunForm:
        try:
            _refuse_absent(self.force, self.to_recipe())
        except ConfigError as error:
            raise PydanticCustomError("recipe", "{problem}", {"problem": str(error)}) from error
        return self

    def override_lines(self) -> list[str]:
        """The form as `--set` lines of its recipe, in the order in which they count.

        Raises:
            ConfigError: What is filled in does not fit together, or not to the recipe.
        """
        recipe = self._load([])
        parts = (self.data, self.model, self.judge, self.train, self.evaluate)
        lines = [line for part in parts for line in part.lines(recipe)]
        if self.name:
            lines.append(_line("name", self.name))
        if self.execution != "as in the recipe":
            kept = recipe.execution.model_dump(exclude_defaults=True)
            lines.append(_line("execution", {**kept, "steps": self.execution}))
        return [*lines, *self.overrides]

    def to_recipe(self) -> RunConfig:
        """The recipe with all that is filled in.

        Raises:
            ConfigError: What is filled in does not fit together, or not to the recipe.
        """
        return self._load(self.override_lines())

    def _load(self, lines: list[str]) -> RunConfig:
        if self.recipe not in shipped():
            raise ConfigError(f"Recipe: no {self.recipe!r} here. Shipped: {', '.join(shipped())}.")
        path = RECIPES / f"{self.recipe}.yaml"
        try:
            return load_recipe(path, lines)
        except ConfigError as error:
            # Said for a command and a file; who fills in a form knows neither.
            said = str(error).replace(f"{path}: ", "").removeprefix("recipe: ").replace("--set ", "")
            raise ConfigError(f"recipe {self.recipe}: {said}") from error


def _line(key: str, value: Any) -> str:  # Any: JSON values and sections
    # JSON is YAML, in which override lines are written; escapes of characters beyond 16 bits are not.
    return f"{key}={json.dumps(value, default=_section_as_json, ensure_ascii=False)}"


def _section_as_json(section: Section) -> dict[str, Any]:  # Any: JSON values
    return section.model_dump(mode="json", exclude_defaults=True)


def _with_policy(arm: ArmConfig, policy: Policy) -> ArmConfig:
    """The same training under another policy: sft-5e-4 becomes s3ft-5e-4."""
    ending = arm.name.removeprefix(_ARM_NAMES.get(arm.policy, arm.policy)).strip("-")
    name = "-".join(filter(None, [_ARM_NAMES.get(policy, policy), ending]))
    return arm.model_copy(update={"name": name, "policy": policy})


def _named_by_rate(arm: ArmConfig) -> bool:
    return arm.learning_rate is not None and arm.name.endswith(f"-{rate(arm.learning_rate)}")


def _refuse_lab(recipe: RunConfig) -> None:
    """Data of one's own do not fit a recipe that is sized for the lab: its answers would be cut, its rows dropped."""
    if not _is_lab(recipe):
        return
    others = [name for name in shipped() if not _is_lab(load_recipe(RECIPES / f"{name}.yaml"))]
    raise ConfigError(
        f"Data: recipe {recipe.name} is made for the lab, with its small model, short answers and benchmarks. "
        f"For data of your own choose another recipe: {', '.join(others)}."
    )


def _is_lab(recipe: RunConfig) -> bool:
    return any(source.reader == "lab" for source in recipe.data.sources)


def _refuse_absent(force: list[StepName], recipe: RunConfig) -> None:
    there: list[str] = []

    def remember(step: Step, label: str, after: Planned | None = None, /, **parts: Section | Planned) -> Planned:
        # Not `step.plan`: that reads data and models, and a form is checked where they need not be.
        there.append(step.name)
        return Planned(step, label, Ref(step=step.name, fingerprint=label), {}, {}, {})

    rehearse(remember, recipe)
    if absent := [name for name in force if name not in there]:
        known = ", ".join(dict.fromkeys(there))
        raise ConfigError(f"Run again: this run has no step {absent[0]}. It has: {known}.")
