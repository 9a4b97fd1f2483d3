"""How many questions a planned run still has to ask the base model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tasks.artifacts.store import Store
from tasks.asking import QuestionCounts
from tasks.config import RunConfig
from tasks.generate import JudgedOutputs, count_answers, count_rewrites
from tasks.running.step import Planned


class BaseModelQuestions(NamedTuple):
    """The questions of generate and rewrite, and how many of them nobody has paid for.

    Attributes:
        rewrites: None if no policy reads rewrites, or if verdicts that are not there yet decide which are needed.
    """

    answers: QuestionCounts
    rewrites: QuestionCounts | None


def count_questions(store: Store, recipe: RunConfig, planned: Sequence[Planned], examples: Path) -> BaseModelQuestions:
    """Count the questions that generate and rewrite would ask.

    Args:
        planned: The steps of the run.
        examples: The table of the ingest step.
    """
    answers = count_answers(store, recipe.model, recipe.engine, recipe.generate, examples)
    rewriting = next((one for one in planned if one.step.name == "rewrite"), None)
    return BaseModelQuestions(answers, _rewrites(store, recipe, rewriting, examples) if rewriting else None)


def _rewrites(store: Store, recipe: RunConfig, rewriting: Planned, examples: Path) -> QuestionCounts | None:
    judged = None
    if "verdicts" in rewriting.inputs:
        refs = [rewriting.inputs[name] for name in ("outputs", "verdicts")]
        if any(store.verified(**ref) is None for ref in refs):
            return None
        judged = JudgedOutputs(
            *(store.fetch(ref) / f"{name}.parquet" for ref, name in zip(refs, JudgedOutputs._fields, strict=True))
        )
    return count_rewrites(store, recipe.model, recipe.engine, recipe.rewrite, examples, judged)
