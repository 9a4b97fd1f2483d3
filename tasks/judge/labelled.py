"""Answers that people have labelled, judged as a run would judge them, and how far the judge agrees with the labels.

A row has `question`, `gold` or `golds`, `candidate`, `label` (accept or reject), and where it applies `document`,
`dialogue` (turns with `role` and `content` up to the answer), `answerable`, `task` and `incorrect`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.config import AbstentionConfig, AuditConfig, EngineConfig, JudgeConfig, LlmJudgeConfig, Task
from tasks.engines import Message
from tasks.errors import DataError
from tasks.judge.asking import CASES
from tasks.judge.panel_session import ask_panel, rubrics
from tasks.judge.rubrics import JudgeCase
from tasks.judge.rules import ACCEPT, REJECT, UNJUDGED, Candidate, first_rule, undecided
from tasks.measures.statistics import Estimate, wilson
from tasks.running.step import Context
from tasks.tables.spool import spool

ALL, RULES, LLM = "all", "rules", "llm"
_ROLES = ("system", "user", "assistant")
_NEEDED = ("question", "candidate", "label")

Row = Mapping[str, Any]  # Any: values of a file


class Labelled(NamedTuple):
    """An answer and what people say of it."""

    case: JudgeCase
    incorrect: list[str]
    accept: bool


class Outcome(NamedTuple):
    """What the judge says of a labelled answer. `by` is rules or llm."""

    accept: bool
    verdict: str
    by: str


@dataclass(frozen=True)
class Agreement:
    """How far the judge agrees with the labels.

    Attributes:
        by: Who decided: all, rules or llm.
        unjudged: Without a verdict; in none of the figures.
        kappa: Cohen's kappa (Cohen 1960); None where nothing was judged, or chance alone would make them agree.
        precision: Labelled accept among those that the judge accepts.
        recall: Accepted among those labelled accept.
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


def read_labelled(path: Path) -> list[Labelled]:
    """The rows of a JSON Lines or Parquet file.

    Raises:
        DataError: The file is missing, empty or of another format; a column is missing; a value is not what it must be.
    """
    rows = [_labelled(row, f"{path}:{place}") for place, row in _rows(path)]
    if not rows:
        raise DataError(f"{path}: no row. It needs question, gold, candidate and label, a row an answer.")
    return rows


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        if path.suffix == ".parquet":
            yield from ((f"row {i}", row) for i, row in enumerate(pq.read_table(path).to_pylist(), 1))
            return
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                yield f"line {i}", _object(line, f"{path}:line {i}")
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read as JSON Lines (.jsonl) or Parquet (.parquet): {error}") from error


def _object(line: str, where: str) -> Row:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{where}: a row is a JSON object, found {type(found).__name__}")
    return found


def _labelled(row: Row, where: str) -> Labelled:
    missing = [name for name in _NEEDED if name not in row]
    if "gold" not in row and "golds" not in row:
        missing.append("gold")
    if missing:
        raise DataError(f"{where}: no column {missing[0]!r} (found {', '.join(row) or 'none'}). Rename yours to it.")
    if row["label"] not in (ACCEPT, REJECT):
        raise DataError(f"{where}: label is {row['label']!r}. Write accept or reject.")
    task = row.get("task") or ("grounded_qa" if row.get("document") else "open")
    if task not in get_args(Task):
        raise DataError(f"{where}: task is {task!r}. Known: {', '.join(get_args(Task))}.")
    if row.get("answerable") not in (True, False, None):
        raise DataError(f"{where}: answerable is {row['answerable']!r}. Write true, false or null.")
    golds = _texts(row["golds"] if row.get("golds") is not None else row.get("gold"), where, "gold")
    if not golds:
        raise DataError(f"{where}: no gold answer. Give at least one.")
    document = None if row.get("document") is None else _text(row["document"], where, "document")
    case = JudgeCase(
        task, _text(row["question"], where, "question"), document, golds, row.get("answerable"),
        _text(row["candidate"], where, "candidate"), _dialogue(row.get("dialogue"), where),
    )  # fmt: skip
    return Labelled(case, _texts(row.get("incorrect"), where, "incorrect"), row["label"] == ACCEPT)


def _text(value: Any, where: str, name: str) -> str:  # Any: a value of a file
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} is {value!r}, not a text.")
    return value


def _dialogue(value: Any, where: str) -> list[Message] | None:  # Any: a value of a file
    if value is None:
        return None
    turns = value if isinstance(value, list) else [value]
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("role") not in _ROLES:
            raise DataError(
                f"{where}: dialogue has the turn {turn!r}. Write a role ({', '.join(_ROLES)}) and a content."
            )
    return [Message(role=turn["role"], content=_text(turn.get("content"), where, "content")) for turn in turns]


def _texts(value: Any, where: str, name: str) -> list[str]:  # Any: a value of a file
    if value is None:
        return []
    return [_text(one, where, name) for one in (value if isinstance(value, list) else [value])]


# --- judging ---


def judge_labelled(
    ctx: Context, rows: Sequence[Labelled], *, config: JudgeConfig, engine: EngineConfig, abstention: AbstentionConfig
) -> list[Outcome]:
    """What the recipe's judge says of each row: rules first, then the language models."""
    ruled = [first_rule(_candidate(row), config, abstention.phrases) for row in rows]
    left = [row.case for row, verdict in zip(rows, ruled, strict=True) if verdict is None]
    said = iter(_asked(ctx, left, config.llm, engine) if config.llm and left else [])
    outcomes = []
    for row, verdict in zip(rows, ruled, strict=True):
        if verdict or config.llm is None:
            outcomes.append(Outcome(row.accept, (verdict or undecided(config)).verdict, RULES))
        else:
            outcomes.append(Outcome(row.accept, next(said), LLM))
    return outcomes


def _candidate(row: Labelled) -> Candidate:
    case = row.case
    return Candidate(case.candidate, "stop", None, case.task, case.golds, row.incorrect, case.answerable)


def _asked(ctx: Context, cases: Sequence[JudgeCase], config: LlmJudgeConfig, engine: EngineConfig) -> list[str]:
    """Verdicts of the language models; no probes, since the labels are the audit."""
    alone = config.model_copy(update={"audit": AuditConfig(n_probes=0)})
    render, path = rubrics(config), ctx.work / "cases.parquet"
    spool(({"place": i, "prompt": render.prompt(case)} for i, case in enumerate(cases)), path, CASES)
    session = ask_panel(ctx, alone, engine, cases=path, n_cases=len(cases), probes=[])
    return [decision.verdict for decision in session.decisions()]


# --- comparing ---


def agreements(outcomes: Sequence[Outcome]) -> list[Agreement]:
    """The agreement of all, and where both decided something, of the rules and of the language models."""
    by_whom = {by: [one for one in outcomes if one.by == by] for by in (RULES, LLM)}
    parts = {by: mine for by, mine in by_whom.items() if mine}
    return [agreement(ALL, outcomes), *(agreement(by, mine) for by, mine in parts.items() if len(parts) > 1)]


def agreement(by: str, outcomes: Sequence[Outcome]) -> Agreement:
    """Counts and figures over the outcomes that have a verdict."""
    judged = [(one.accept, one.verdict == ACCEPT) for one in outcomes if one.verdict != UNJUDGED]
    both, wrongly, missed = (judged.count(pair) for pair in ((True, True), (False, True), (True, False)))
    neither = judged.count((False, False))
    return Agreement(
        by, len(outcomes), len(outcomes) - len(judged), both, wrongly, neither, missed,
        wilson(both + neither, len(judged)), _kappa(both, wrongly, neither, missed), wilson(both, both + wrongly),
        wilson(both, both + missed),
    )  # fmt: skip


def _kappa(both: int, wrongly: int, neither: int, missed: int) -> float | None:
    """(observed - expected) / (1 - expected), expected from how often each of the two says accept."""
    n = both + wrongly + neither + missed
    if n == 0:
        return None
    labelled, judged = (both + missed) / n, (both + wrongly) / n
    expected = labelled * judged + (1 - labelled) * (1 - judged)
    return None if expected == 1 else ((both + neither) / n - expected) / (1 - expected)
