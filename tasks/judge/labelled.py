"""Answers with labels of people, judged as in a run, and the agreement of the judge with the labels.

A row has `question`, `gold` or `golds`, `candidate`, `label` (accept or reject), and where it applies `document`,
`dialogue` (turns with `role` and `content` up to the answer), `answerable`, `task` and `incorrect`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tasks.config import AbstentionConfig, AuditConfig, EngineConfig, JudgeConfig, LlmJudgeConfig
from tasks.engines import Message
from tasks.errors import DataError
from tasks.judge.opinions import CASES
from tasks.judge.panel_session import ask_panel
from tasks.judge.rubrics import JudgeCase, Rubrics
from tasks.judge.rules import ACCEPT, REJECT, UNJUDGED, Candidate, first_rule, undecided
from tasks.measures.statistics import Estimate, wilson
from tasks.readers.data_files import find_files
from tasks.readers.formats import records
from tasks.readers.registry import TASKS, RawRecord
from tasks.readers.values import as_bool, as_chat, as_text, as_texts
from tasks.running.step import Context
from tasks.tables.spool import spool

ALL, RULES, LLM = "all", "rules", "llm"
_REQUIRED = ("question", "candidate", "label")


class LabelledAnswer(NamedTuple):
    """An answer and its label: whether people accept it."""

    case: JudgeCase
    incorrect: list[str]
    accept: bool


class LabelledOutcome(NamedTuple):
    """The verdict on a labelled answer. `accept` is the label; `by` is who decided: rules or llm."""

    accept: bool
    verdict: str
    by: str


@dataclass(frozen=True)
class Agreement:
    """The agreement of the judge with the labels.

    Attributes:
        by: Who decided: all, rules or llm.
        unjudged: Answers without a verdict; no figure counts them.
        kappa: Cohen's kappa (Cohen 1960); None where nothing was judged, or where chance explains all agreement.
        precision: Share labelled accept among the answers that the judge accepts.
        recall: Share accepted among the answers labelled accept.
    """

    by: str
    n: int
    unjudged: int
    true_accepts: int
    false_accepts: int
    true_rejects: int
    false_rejects: int
    agreement: Estimate
    kappa: float | None
    precision: Estimate
    recall: Estimate


# --- reading ---


def read_labelled(path: Path) -> list[LabelledAnswer]:
    """The rows of a file, or of the files in a folder, in any format that data may have.

    Raises:
        DataError: There is no file or no row, a column is missing, or a value is not what it must be.
    """
    rows = [_labelled(record) for file in find_files(str(path), key="--labels") for record in records(file)]
    if not rows:
        raise DataError(f"{path}: no row. It needs question, gold, candidate and label, a row an answer.")
    return rows


def _labelled(record: RawRecord) -> LabelledAnswer:
    row, where = record.value, record.where
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row is a JSON object, found {type(row).__name__}")
    golds = as_texts(row.get("golds") or row.get("gold"), record, "gold")
    missing = [name for name in _REQUIRED if row.get(name) is None] + ([] if golds else ["gold"])
    if missing:
        found = ", ".join(row) or "none"
        raise DataError(f"{where}: no value in column {missing[0]!r} (found {found}). Rename or fill it.")
    if row["label"] not in (ACCEPT, REJECT):
        raise DataError(f"{where}: label is {row['label']!r}. Write accept or reject.")
    task = row.get("task") or ("grounded_qa" if row.get("document") else "open")
    if task not in TASKS:
        raise DataError(f"{where}: task is {task!r}. Known: {', '.join(TASKS)}.")
    turns = as_chat(row.get("dialogue") or None, record, "dialogue")
    case = JudgeCase(
        task, as_text(row["question"], record, "question") or "",
        as_text(row.get("document"), record, "document") or None, golds,
        as_bool(row.get("answerable"), record, "answerable"), as_text(row["candidate"], record, "candidate") or "",
        [Message(role=turn["role"], content=turn["content"]) for turn in turns] or None,
    )  # fmt: skip
    return LabelledAnswer(case, as_texts(row.get("incorrect"), record, "incorrect"), row["label"] == ACCEPT)


# --- judging ---


def judge_labelled(
    ctx: Context, rows: Sequence[LabelledAnswer], *, config: JudgeConfig, engine: EngineConfig,
    abstention: AbstentionConfig,
) -> list[LabelledOutcome]:  # fmt: skip
    """The verdict of the recipe's judge on each row: rules first, then the language models."""
    ruled = [first_rule(_candidate(row), config, abstention.phrases) for row in rows]
    left = [row.case for row, verdict in zip(rows, ruled, strict=True) if verdict is None]
    by_models = iter(_by_models(ctx, left, config.llm, engine) if config.llm and left else [])
    outcomes = []
    for row, verdict in zip(rows, ruled, strict=True):
        if verdict or config.llm is None:
            outcomes.append(LabelledOutcome(row.accept, (verdict or undecided(config)).verdict, RULES))
        else:
            outcomes.append(LabelledOutcome(row.accept, next(by_models), LLM))
    return outcomes


def _candidate(row: LabelledAnswer) -> Candidate:
    case = row.case
    return Candidate(case.candidate, "stop", None, case.task, case.golds, row.incorrect, case.answerable)


def _by_models(ctx: Context, cases: Sequence[JudgeCase], config: LlmJudgeConfig, engine: EngineConfig) -> list[str]:
    """Verdicts of the language models. No probes are judged, because the labels are the audit."""
    alone = config.model_copy(update={"audit": AuditConfig(n_probes=0)})
    rubrics, path = Rubrics(config.rubric, reasoning=config.reasoning), ctx.work / "cases.parquet"
    spool(({"case_index": i, "prompt": rubrics.prompt(case)} for i, case in enumerate(cases)), path, CASES)
    session = ask_panel(ctx, alone, engine, cases=path, n_cases=len(cases), probes=[])
    return [found.verdict for found in session.verdicts()]


# --- comparing ---


def agreements(outcomes: Sequence[LabelledOutcome]) -> list[Agreement]:
    """The agreement over all rows. Where rules and models both decided some, also that of each."""
    by_whom = {by: [one for one in outcomes if one.by == by] for by in (RULES, LLM)}
    parts = {by: mine for by, mine in by_whom.items() if mine}
    return [agreement(ALL, outcomes), *(agreement(by, mine) for by, mine in parts.items() if len(parts) > 1)]


def agreement(by: str, outcomes: Sequence[LabelledOutcome]) -> Agreement:
    """Counts and figures over the outcomes with a verdict."""
    judged = [(one.accept, one.verdict == ACCEPT) for one in outcomes if one.verdict != UNJUDGED]
    both, wrongly, missed = (judged.count(pair) for pair in ((True, True), (False, True), (True, False)))
    neither = judged.count((False, False))
    return Agreement(
        by, len(outcomes), len(outcomes) - len(judged), both, wrongly, neither, missed,
        wilson(both + neither, len(judged)), _kappa(both, wrongly, neither, missed), wilson(both, both + wrongly),
        wilson(both, both + missed),
    )  # fmt: skip


def _kappa(both: int, wrongly: int, neither: int, missed: int) -> float | None:
    """(observed - expected) / (1 - expected); `expected` follows from how often each of the two says accept."""
    n = both + wrongly + neither + missed
    if n == 0:
        return None
    labelled, judged = (both + missed) / n, (both + wrongly) / n
    expected = labelled * judged + (1 - labelled) * (1 - judged)
    return None if expected == 1 else ((both + neither) / n - expected) / (1 - expected)
