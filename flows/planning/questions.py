"""What a planned run still has to ask the base model, counted before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tasks.artifacts.store import Store
from tasks.asking import QuestionCounts
from tasks.config import RunConfig
from tasks.generate import JudgedOutputs, count_answers, count_rewrites
from tasks.running.step import Planned


class Questions(NamedTuple):
    """Rows of the outputs tables, and how many of them must be paid for.

    Attributes:
        rewrites: None where no policy reads rewrites, or which are needed is decided only by the judge.
    """

    answers: QuestionCounts
    rewrites: QuestionCounts | None


def questions(store: Store, recipe: RunConfig, planned: Sequence[Planned], examples: Path) -> Questions:
    """Count what generate and rewrite would ask."""
    answers = count_answers(store, recipe.model, recipe.engine, recipe.generate, examples)
    rewriting = next((one for one in planned if one.step.name == "rewrite"), None)
    return Questions(answers, _rewrites(store, recipe, rewriting, examples) if rewriting else None)


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
