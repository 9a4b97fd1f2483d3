"""The metrics. Each is declared once, here, with everything that the steps, the report and the promotion ask of it.

    @metric(title="answerable questions that are refused", higher_is_better=False, families=TASK, answerable=(True,))
    def over_refusal(item: Answered) -> float:
        return float(item.abstains)

The evaluate step scores every item with every metric that has a function and is defined on the item. An item without
an output has no score and a reason, never a 0. Metrics of benchmarks come from lm-evaluation-harness: declared here
are those that may stand for a benchmark. The direction of any other is what the benchmark itself states.

The definitions are those of SSR (arXiv 2409.04787) and of SQuAD.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tasks.errors import StepError
from tasks.measures import answers
from tasks.measures.choice_letters import choice_letter
from tasks.measures.final_numbers import final_number
from tasks.measures.words import normalise

TASK_IN, TASK_OUT, GENERAL = FAMILIES = ("task-in", "task-out", "general")
TASK = (TASK_IN, TASK_OUT)


class Answered(NamedTuple):
    """A test item and what the model said.

    Attributes:
        task: What the question asks for, as in the examples table; "" for an item of a benchmark.
        golds: Acceptable answers; none for an item of a benchmark, whose golds only the harness knows.
        answerable: None where the task has no unanswerable questions.
        abstains: Whether the output is a refusal.
    """

    task: str
    golds: Sequence[str]
    answerable: bool | None
    output: str
    abstains: bool


@dataclass(frozen=True)
class Metric:
    """One metric and everything that its readers must know. Every score lies between 0 and 1.

    Attributes:
        title: What it measures; the report prints it below the tables.
        families: The families of benchmarks that have it. A name stands for one metric in each family.
        score: The score of one item; None where the item decides nothing. Without a function, lm-evaluation-harness
            scores the items.
        answerable: The values of `Answered.answerable` on which it is defined.
        primary_rank: Of the metrics that a benchmark has scores of, the one with the lowest rank is its primary metric:
            it stands for the benchmark in averages, tests and promotion. None: never.
        own_items: The model's own answers decide which items are scored, so two models cannot be compared in pairs.
        version: Raise it when the same answer gets another score than before.
    """

    name: str
    title: str
    higher_is_better: bool
    families: tuple[str, ...]
    score: Callable[[Answered], float | None] | None = None
    answerable: tuple[bool | None, ...] = (True, False, None)
    primary_rank: int | None = None
    own_items: bool = False
    version: int = 1


_DECLARED: list[Metric] = []


def declare(declared: Metric) -> Metric:
    """Add a metric to those that are known.

    Raises:
        ValueError: The declaration is incomplete, or contradicts itself or another one.
    """
    what = f"metric {declared.name!r}"
    if not declared.families or not set(declared.families) <= set(FAMILIES):
        raise ValueError(f"{what}: families are {declared.families}. Name some of {', '.join(FAMILIES)}.")
    if declared.score is None and declared.families != (GENERAL,):
        raise ValueError(f"{what}: nothing scores it. Give it a function, or declare it for {GENERAL!r} alone.")
    if declared.primary_rank is not None and (declared.own_items or not declared.higher_is_better):
        raise ValueError(f"{what}: a primary metric is compared in pairs, higher is better. Remove primary_rank.")
    for other in _DECLARED:
        if shared := set(declared.families) & set(other.families):
            where = " and ".join(sorted(shared))
            if other.name == declared.name:
                raise ValueError(f"{what} is declared twice for {where}. Rename one of the two.")
            if declared.primary_rank is not None and other.primary_rank == declared.primary_rank:
                raise ValueError(
                    f"{what} and {other.name!r} both have primary_rank {other.primary_rank} for {where}, so that "
                    "neither is the primary metric. Give one of them another rank."
                )
    _DECLARED.append(declared)
    return declared


def metric(**declaration: Any) -> Callable[[Callable[[Answered], float | None]], Metric]:  # Any: fields of Metric
    """Declare the decorated function as a metric of its name; the arguments are the other fields of `Metric`."""

    def decorate(score: Callable[[Answered], float | None]) -> Metric:
        return declare(Metric(name=score.__name__, score=score, **declaration))

    return decorate


def find(name: str, family: str) -> Metric | None:
    """The declaration behind a metric of a table; None where there is none.

    The harness may add a filter to a name, as in `exact_match,strict-match`.
    """
    wanted = name.split(",")[0] if family == GENERAL else name
    return next((one for one in _DECLARED if one.name == wanted and family in one.families), None)


def item_scores(item: Answered, family: str) -> dict[str, float]:
    """The score of every metric that is defined on this item, by name.

    Raises:
        StepError: A metric gave a score below 0 or above 1.
    """
    found = {}
    for one in _defined_on(item.answerable, family):
        score = one.score(item) if one.score else None
        if score is None:
            continue
        if not 0 <= score <= 1:
            raise StepError(f"metric {one.name!r}: the score {score} is not between 0 and 1. Rescale it.")
        found[one.name] = score
    return found


def primary_on(answerable: bool | None, family: str) -> str:
    """The metric that counts an item of a task as unscored where the model gave no answer."""
    ranked = [one for one in _defined_on(answerable, family) if one.primary_rank is not None]
    return min(ranked, key=lambda one: one.primary_rank or 0).name


def _defined_on(answerable: bool | None, family: str) -> list[Metric]:
    return [one for one in _DECLARED if one.score and family in one.families and answerable in one.answerable]


def scored_versions(family: str) -> dict[str, int]:
    """What decides which scores the items of a family get: part of the identity of what is measured."""
    return {one.name: one.version for one in _DECLARED if one.score and family in one.families}


def declarations() -> dict[str, Any]:  # Any: JSON values
    """Everything that is declared: part of the identity of what reads scores."""
    return {" ".join([one.name, *one.families]): vars(one) | {"score": one.score is not None} for one in _DECLARED}


@metric(
    title="token recall on answerable questions, 0 where the model refuses; on the others 1 where it refuses, else 0",
    higher_is_better=True, families=TASK, answerable=(True, False), primary_rank=1, version=2,
)  # fmt: skip
def modified_recall(item: Answered) -> float:
    """SSR's measure of a task with unanswerable questions."""
    if item.abstains or not item.answerable:
        return float(item.abstains != item.answerable)
    return answers.token_recall(item.output, item.golds)


@metric(
    title="whether the answer is a gold answer: as text, as number or as letter, as the task says",
    higher_is_better=True, families=TASK, answerable=(None,), primary_rank=2, version=2,
)  # fmt: skip
def exact_match(item: Answered) -> float:
    """Compare as the task says: the final number, the choice letter, or the normalised text."""
    if item.task == "number":
        found = final_number(item.output)
        return float(found is not None and found in {final_number(gold) for gold in item.golds})
    if item.task == "multiple_choice":
        letter = choice_letter(item.output)
        return float(letter is not None and letter in {choice_letter(gold) for gold in item.golds})
    # A gold without a word, such as "A", must not make an empty answer right.
    said = normalise(item.output)
    return float(bool(said) and said in {normalise(gold) for gold in item.golds})


@metric(
    title="share of the gold answer's words that the answer holds, 0 where the model refuses an answerable question",
    higher_is_better=True, families=TASK, answerable=(True, None), primary_rank=3, version=2,
)  # fmt: skip
def token_recall(item: Answered) -> float:
    """The best of the golds; a refusal of an answerable question scores nothing, whatever words it shares."""
    if item.answerable and item.abstains:
        return 0.0
    return answers.token_recall(item.output, item.golds)


@metric(
    title="questions that the model rightly answers or rightly refuses",
    higher_is_better=True, families=TASK, answerable=(True, False), version=2,
)  # fmt: skip
def answerability_accuracy(item: Answered) -> float:
    """Whether the model refuses exactly where there is no answer."""
    return float(item.abstains != item.answerable)


@metric(
    title="refusals that are right",
    higher_is_better=True,
    families=TASK,
    answerable=(True, False),
    own_items=True,
    version=2,
)
def abstention_precision(item: Answered) -> float | None:
    """Defined on the items that the model itself refuses."""
    return float(not item.answerable) if item.abstains else None


@metric(
    title="unanswerable questions that the model refuses",
    higher_is_better=True,
    families=TASK,
    answerable=(False,),
    version=2,
)
def abstention_recall(item: Answered) -> float:
    """1 where the model refuses."""
    return float(item.abstains)


@metric(
    title="answerable questions that the model refuses",
    higher_is_better=False,
    families=TASK,
    answerable=(True,),
    version=2,
)
def over_refusal(item: Answered) -> float:
    """1 where the model refuses."""
    return float(item.abstains)


@metric(title="benchmark answers that are refusals", higher_is_better=False, families=(GENERAL,), version=2)
def leaked_refusal(item: Answered) -> float:
    """Scored on every benchmark whose answers are generated: it tells why a score fell."""
    return float(item.abstains)


def _harness(name: str, rank: int, title: str) -> None:
    declare(Metric(name, title, higher_is_better=True, families=(GENERAL,), primary_rank=rank))


_harness("exact_match", 1, "answers that are the gold answer after the benchmark's own filters")
_harness("acc_norm", 2, "choices that are right, by likelihood a byte")
_harness("mc2", 3, "probability that falls on the true choices")
_harness("acc", 4, "choices that are right, by likelihood")
_harness("prompt_level_strict_acc", 5, "prompts of which every instruction is followed")
