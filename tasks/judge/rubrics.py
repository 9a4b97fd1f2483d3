"""Rubrics: what a judge is asked, as versioned text files rendered by a sandboxed Jinja. Data goes in as values.

A rubric sees `question`, `document` (null where there is none), `golds` and the first of them as `gold`, `candidate`,
`answerable` (null where the task does not say) and `reasoning` (whether the verdict is asked for later); every text has
been made harmless. A shipped rubric is never edited: a change is a new file with the next version, because verdicts
already paid for belong to the old text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError
from jinja2.sandbox import SandboxedEnvironment

from tasks.errors import DataError
from tasks.judge.neutral import neutral

_FOLDER = Path(__file__).parent / "rubrics"
_BY_TASK = {"grounded_qa": "grounded-qa.v1", "open": "open.v1", "number": "number.v1", "multiple_choice": "open.v1"}
_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


class Case(NamedTuple):
    """Something to judge. A column of the same name in `examples` holds each but the candidate."""

    task: str
    question: str
    document: str | None
    golds: list[str]
    answerable: bool | None
    candidate: str


def rubric_texts(rubric: str | None) -> dict[str, str]:
    """The text of the rubric for each task.

    Raises:
        DataError: It is neither a shipped name nor a text file, or not a template.
    """
    texts = {name: _text(name) for name in {rubric or name for name in _BY_TASK.values()}}
    return {task: texts[rubric or name] for task, name in _BY_TASK.items()}


def _text(name: str) -> str:
    shipped = sorted(path.stem for path in _FOLDER.glob("*.txt"))
    path = _FOLDER / f"{name}.txt" if name in shipped else Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"judge.llm.rubric={name}: no rubric of this name, nor a text file. Set it to one of "
            f"{', '.join(shipped)} or to a file."
        ) from error
    try:
        _ENVIRONMENT.from_string(text)
    except TemplateSyntaxError as error:
        raise DataError(
            f"judge.llm.rubric={name}: line {error.lineno}: not a Jinja template: {error.message}. Correct it."
        ) from error
    return text


class Rubrics:
    """The rubric of each task, ready to render."""

    def __init__(self, texts: Mapping[str, str], *, reasoning: bool) -> None:
        self._templates: dict[str, Template] = {task: _ENVIRONMENT.from_string(text) for task, text in texts.items()}
        self._reasoning = reasoning

    def prompt(self, case: Case) -> str:
        """What a judge is asked, as one user message: many chat templates know no system role.

        Raises:
            DataError: The rubric uses a variable that it is not given, or does what the sandbox forbids.
        """
        golds = [neutral(gold) for gold in case.golds]
        try:
            return self._templates[case.task].render(
                question=neutral(case.question), document=None if case.document is None else neutral(case.document),
                golds=golds, gold=golds[0], candidate=neutral(case.candidate), answerable=case.answerable,
                reasoning=self._reasoning,
            )  # fmt: skip
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise DataError(
                f"judge.llm.rubric: it fails: {error}. It may use question, document, golds, gold, candidate, "
                "answerable and reasoning."
            ) from error
