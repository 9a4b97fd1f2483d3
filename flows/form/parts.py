"""The parts of the form of a run about data, model and judge, and the class of all parts.

Each part writes its fields as override lines of a recipe. Not here: the parts about the arms (`flows.form.arms`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from flows.form.lines import line
from flows.runs.recipes import RECIPES, shipped
from tasks.config import ReaderName, RunConfig, Task, load_recipe
from tasks.engine_kinds import described, engine_kinds
from tasks.errors import ConfigError

AS_IN_RECIPE = "as in the recipe"


def _for_the_form(schema: dict[str, Any]) -> None:  # Any: a JSON schema
    """Put the fields in order, and make an optional one a plain input that may stay empty.

    Pydantic writes `int | None` as a choice of two types with a default of null, and the form would show a switch in
    front of each such field. Prefect accepts null for any field that is not required and has no default.
    """
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position
        types = [one for one in field.get("anyOf", []) if one != {"type": "null"}]
        if len(types) == 1:
            del field["anyOf"]
            field |= types[0]
        if field.get("default", ...) is None:
            del field["default"]


Keys = dict[str, tuple[str, ...]]  # by field


class FormPart(BaseModel):
    """A part of the form.

    Attributes:
        KEYS: The keys of a recipe that a field sets, where they are not its own name below the name of the part.
    """

    KEYS: ClassVar[Keys] = {}
    model_config = ConfigDict(
        frozen=True, extra="forbid", str_strip_whitespace=True, json_schema_extra=_for_the_form,
        use_attribute_docstrings=True,
    )  # fmt: skip

    def keys_set(self, above: str = "") -> Iterator[tuple[str, str]]:
        """The keys of a recipe that are filled in, each with the title of its field.

        Args:
            above: The name of this part, with a dot at its end.
        """
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, FormPart):
                yield from ((f"{field.title}: {title}", key) for title, key in value.keys_set(f"{name}."))
            elif (value or None) != (field.default or None):
                yield from ((str(field.title), key) for key in self.KEYS.get(name, (f"{above}{name}",)))


class DataPart(FormPart):
    """Data of your own, in place of the recipe's."""

    KEYS: ClassVar[Keys] = dict.fromkeys(
        ("path", "hub", "reader", "task", "question", "answer", "document", "limit"), ("data.sources",)
    )
    path: str | None = Field(
        default=None, title="Path",
        description="File, folder, glob or s3:// address of JSONL, JSON, CSV or Parquet, as the worker sees it. It "
        "replaces all data of the recipe. Empty: the recipe's data.",
    )  # fmt: skip
    hub: str | None = Field(default=None, title="Hub dataset")
    """Instead of a path: a dataset id on the Hugging Face Hub."""
    reader: ReaderName = Field(default="auto", title="Format")
    """Of your rows. auto: a plain table with the columns named below."""
    task: Task = Field(
        default="open", title="Task",
        description="What a row asks for: a question with its document (grounded_qa), a free instruction (open), a "
        "number, or one of several choices.",
    )  # fmt: skip
    question: str = Field(default="question", title="Question column", description="Holds the question or instruction.")
    answer: str = Field(default="answer", title="Answer column")
    """Holds the right answer: a text, or a list of them."""
    document: str | None = Field(default=None, title="Document column")
    """Holds the document that the answer stands in, if any."""
    limit: int | None = Field(default=None, gt=0, title="Rows")
    """Use at most so many rows of each data source, yours or the recipe's. Empty: as the recipe says."""

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
            yield line("data.sources", [source])
            return
        for name, field in type(self).model_fields.items():
            if name != "limit" and (getattr(self, name) or None) != field.default:
                raise ConfigError(f"Data: {field.title} describes data of your own. Give their path or Hub dataset.")
        if self.limit:
            limited = [source.model_copy(update={"limit": self.limit}) for source in recipe.data.sources]
            yield line("data.sources", limited)


class ModelPart(FormPart):
    """The model, and what runs it."""

    KEYS: ClassVar[Keys] = {
        "engine": ("engine.kind",), "urls": ("engine.urls",),
        "max_new_tokens": ("generate.max_new_tokens", "evaluate.max_new_tokens"),
    }  # fmt: skip
    base: str | None = Field(
        default=None, title="Base model",
        description="The model to fine-tune: a folder on the worker, or a Hub id such as "
        "mistralai/Mistral-7B-Instruct-v0.2. Empty: the recipe's.",
    )  # fmt: skip
    engine: str = Field(
        default=AS_IN_RECIPE, title="Engine", description=f"What runs the model. {described()}.",
        json_schema_extra={"enum": [AS_IN_RECIPE, *(kind.name for kind in engine_kinds())]},
    )  # fmt: skip
    urls: list[str] = Field(default=[], title="Server addresses")
    """For engine openai: addresses such as http://host:8000/v1."""
    max_new_tokens: int | None = Field(default=None, gt=0, title="Longest answer")
    """In tokens, when the training questions are answered and when arms are tested. Empty: as the recipe says."""

    def lines(self, recipe: RunConfig) -> Iterator[str]:
        """Override lines. Another kind of engine starts from that kind's defaults."""
        if self.base:
            yield line("model.base", self.base)
        kind = recipe.engine.kind if self.engine == AS_IN_RECIPE else self.engine
        if self.engine != AS_IN_RECIPE or self.urls:
            kept = recipe.engine.model_dump(exclude_defaults=True) if kind == recipe.engine.kind else {}
            yield line("engine", {**kept, "kind": kind, **({"urls": self.urls} if self.urls else {})})
        if self.max_new_tokens:
            yield line("generate.max_new_tokens", self.max_new_tokens)
            yield line("evaluate.max_new_tokens", self.max_new_tokens)


class JudgePart(FormPart):
    """Which of the base model's answers are acceptable."""

    KEYS: ClassVar[Keys] = {
        "rules_only": ("judge.llm", "judge.contains_gold"), "model": ("judge.llm.judges",),
        "threshold": ("judge.llm.threshold",),
    }  # fmt: skip
    rules_only: bool = Field(default=False, title="Rules alone")
    """Judge by rules only, though the recipe has a judge model."""
    model: str | None = Field(
        default=None, title="Judge model",
        description="Judges what the rules leave open: a folder, a Hub id, or with engine openai a name on the "
        "server. Empty: the recipe's, or none.",
    )  # fmt: skip
    threshold: float | None = Field(default=None, gt=0, le=1, title="Threshold")
    """Accept an answer from this probability on, as the judge model sees it: above 0, up to 1."""
    min_token_recall: float | None = Field(default=None, gt=0, le=1, title="Token recall")
    """A rule: accept an answer that has at least this share of the right answer's words."""

    def lines(self, recipe: RunConfig) -> Iterator[str]:
        """Override lines.

        Raises:
            ConfigError: A field of the judge model is filled in where there is none.
        """
        if self.min_token_recall:
            yield line("judge.min_token_recall", self.min_token_recall)
        llm = None if self.rules_only or recipe.judge.llm is None else recipe.judge.llm
        if self.rules_only and self.model:
            raise ConfigError("Judge: with rules alone there is no judge model. Switch one of the two off.")
        if self.threshold and not (llm or self.model):
            raise ConfigError("Judge: Threshold is for a judge model, and rules judge alone here. Give a judge model.")
        if self.rules_only:
            yield line("judge.llm", None)
            if not (recipe.judge.contains_gold or self.min_token_recall):
                yield line("judge.contains_gold", True)  # or no rule would accept anything
        elif self.model or self.threshold:
            changed = llm.model_dump(exclude_defaults=True) if llm else {}
            changed |= {"judges": [{"model": {"base": self.model}}]} if self.model else {}
            changed |= {"threshold": self.threshold} if self.threshold else {}
            yield line("judge.llm", changed)


def _refuse_lab(recipe: RunConfig) -> None:
    """Refuse a recipe that is sized for the lab: on other data it would truncate answers and drop rows."""
    if not _is_lab(recipe):
        return
    others = [name for name in shipped() if not _is_lab(load_recipe(RECIPES / f"{name}.yaml"))]
    raise ConfigError(
        f"Data: recipe {recipe.name} is made for the lab, with its small model, short answers and benchmarks. "
        f"For data of your own choose another recipe: {', '.join(others)}."
    )


def _is_lab(recipe: RunConfig) -> bool:
    return any(source.reader == "lab" for source in recipe.data.sources)
