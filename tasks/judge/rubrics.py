"""Rubrics: the templates of a judge's prompts; see `tasks.templates`.

A rubric sees `question`, `dialogue` (the turns up to the answer, each with role and content; null where the question
stands alone), `document` (null where there is none), `golds` and the first of them as `gold`, `candidate`, `answerable`
(null where the task does not say) and `reasoning` (whether the verdict is asked for later). Delimiters
in every text are neutralised.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tasks.artifacts.digest import digest_of
from tasks.engines import Message
from tasks.judge.neutral import neutral
from tasks.templates import TemplateFolder

_BY_TASK = {
    "grounded_qa": "grounded-qa.v1", "open": "open.v1", "number": "number.v1", "multiple_choice": "open.v1",
}  # fmt: skip
RUBRICS = TemplateFolder(
    Path(__file__).parent / "rubrics", "judge.llm.rubric",
    ("question", "dialogue", "document", "golds", "gold", "candidate", "answerable", "reasoning"), _BY_TASK,
)  # fmt: skip


class JudgeCase(NamedTuple):
    """What a judge is shown. Each field but `candidate` has the name of its column in `examples`."""

    task: str
    question: str
    document: str | None
    golds: list[str]
    answerable: bool | None
    candidate: str
    dialogue: list[Message] | None = None


class Rubrics:
    """The rubric of each task.

    Args:
        rubric: A shipped name or a file, for all tasks; None: the shipped one of each task.
        reasoning: Whether the judge reasons before its verdict.

    Raises:
        DataError: A rubric cannot be used; see `TemplateFolder.load`.
    """

    def __init__(self, rubric: str | None, *, reasoning: bool) -> None:
        self._templates = {task: RUBRICS.load(rubric or name) for task, name in RUBRICS.by_task.items()}
        self._reasoning = reasoning

    def digests(self) -> dict[str, str]:
        """The digest of the rubric's text, by task."""
        return {task: digest_of(template.text) for task, template in self._templates.items()}

    def prompt(self, case: JudgeCase) -> str:
        """The prompt about a case, as one user message: many chat templates have no system role.

        Raises:
            DataError: The rubric does what the sandbox forbids, or fails on this case.
        """
        golds = [neutral(gold) for gold in case.golds]
        return self._templates[case.task].render(
            question=neutral(case.question), dialogue=_neutral(case.dialogue),
            document=None if case.document is None else neutral(case.document),
            golds=golds, gold=golds[0], candidate=neutral(case.candidate), answerable=case.answerable,
            reasoning=self._reasoning,
        )  # fmt: skip


def _neutral(dialogue: list[Message] | None) -> list[Message] | None:
    if dialogue is None:
        return None
    return [{"role": turn["role"], "content": neutral(turn["content"])} for turn in dialogue]
