"""Asking the judges: which replies are missing, get them, give the opinions back in the order of the cases.

What is asked lies on disk, a row per case, so that memory does not grow with their number. Replies are rows that are
paid for once: a changed threshold, panel rule or reader of verdicts asks nothing again, a changed rubric only what it
words differently, and a failed reply is tried again alone.

Not covered: what a case is made of (`tasks.judge.step`, `tasks.judge.audit`) and what the opinions decide
(`tasks.judge.panel`).
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts.digest import stable_seed
from tasks.artifacts.paid_rows import LATEST_SQL, DoneKeys, RowStore, row_key
from tasks.config import LlmJudgeConfig
from tasks.engines import Engine, Message, Request, Sampling, open_engine
from tasks.errors import StepError
from tasks.judge.panel import Judge
from tasks.judge.replies import CHOICES, Opinion, opinion_of, stored
from tasks.running.step import Context
from tasks.tables import schema
from tasks.tables.duckdb_query import query
from tasks.tables.spool import rows_of, spooled

CASES = pa.schema([("place", pa.int64()), ("prompt", pa.string())])
ASK_VERDICT = "Verdict: accept or reject?"
VERDICT_TOKENS = 64  # of a verdict in free text
CHUNK_ROWS = 4_096  # reasonings in memory at once
_ASKED = pa.schema([("place", pa.int64()), ("repeat", pa.int32()), ("row_key", pa.string())])
_READ = ("text", "accept_logprob", "reject_logprob", "finish_reason", "problem", "retryable")
_TOLD_SECONDS = 0.2

Row = dict[str, Any]  # Any: values of a stored row


class Asked(NamedTuple):
    """One question to one judge. `place` is that of the case, from 0."""

    place: int
    repeat: int
    request: Request


def ask(ctx: Context, judges: Sequence[Judge], cases: Sequence[Path], config: LlmJudgeConfig) -> None:
    """Get every missing reply of every judge, one judge after the other: a GPU holds one of them at a time."""
    paid = {"rows_generated": 0, "rows_reused": 0, "tokens_generated": 0, "rows_retryable": 0}
    for number, judge in enumerate(judges):
        done = judge.rows.done(failures=not ctx.force)
        n_asked, n_missing = _write_asked(_asked(judge, cases, config), _asked_path(ctx, number), done)
        n_paid, n_tokens = _pay(ctx, judge, cases, config, done, n_missing) if n_missing else (0, 0)
        paid["rows_generated"] += n_paid
        paid["rows_reused"] += n_asked - n_paid
        paid["tokens_generated"] += n_tokens
    ctx.counts |= paid


def _asked_path(ctx: Context, number: int) -> Path:
    return ctx.work / f"asked-{number}.parquet"


def _asked(judge: Judge, cases: Sequence[Path], config: LlmJudgeConfig) -> Iterator[Asked]:
    """Every question to a judge, in the order of the cases."""
    for case in chain.from_iterable(spooled(path) for path in cases):
        messages: list[Message] = [{"role": "user", "content": case["prompt"]}]
        for repeat in range(config.repeats):
            key = row_key(judge.space, messages, repeat)
            yield Asked(case["place"], repeat, Request(key, messages, stable_seed(config.seed, key)))


def _write_asked(asked: Iterator[Asked], path: Path, done: DoneKeys) -> tuple[int, int]:
    """Write which row each question is; how many questions there are, and how many distinct ones are missing."""
    missing: set[str] = set()
    n_asked = 0
    with pq.ParquetWriter(path, _ASKED) as writer:
        while batch := list(islice(asked, schema.BATCH_ROWS)):
            n_asked += len(batch)
            keys = [one.request.key for one in batch]
            missing.update(key for key in keys if key not in done.here and key not in done.elsewhere)
            columns = [[one.place for one in batch], [one.repeat for one in batch], keys]
            writer.write_table(pa.table(columns, schema=_ASKED))
    return n_asked, len(missing)


def _pay(
    ctx: Context, judge: Judge, cases: Sequence[Path], config: LlmJudgeConfig, done: DoneKeys, n_missing: int
) -> tuple[int, int]:
    """Ask what is missing; how many replies came, and their tokens."""
    n_paid, n_tokens, told = 0, 0, 0.0
    with open_engine(judge.model, judge.engine, work=ctx.work) as engine:
        fresh = _distinct(_asked(judge, cases, config), done.elsewhere)
        for row in _replies(engine, judge, fresh, done.here, config, failures=not ctx.force):
            judge.rows.append([row])
            n_paid += 1
            n_tokens += row["n_output_tokens"] or 0
            if (now := time.monotonic()) - told > _TOLD_SECONDS or n_paid == n_missing:
                told = now
                ctx.progress(n_paid, n_missing, judge.model.base)
    judge.rows.flush()
    return n_paid, n_tokens


def _distinct(asked: Iterator[Asked], done: Container[str]) -> Iterator[Request]:
    """Each question once, without those that others have paid for."""
    seen: set[str] = set()
    for _, _, request in asked:
        if request.key not in seen and request.key not in done:
            seen.add(request.key)
            yield request


# --- what a judge says ---


def _replies(
    engine: Engine, judge: Judge, requests: Iterator[Request], done: Container[str], config: LlmJudgeConfig, *,
    failures: bool,
) -> Iterator[Row]:  # fmt: skip
    """A row for the store per request that is not done, as they come.

    Args:
        failures: Whether a reasoning that failed for good is done.
    """
    if not config.reasoning:
        yield from map(stored, engine.generate(requests, _verdict_sampling(config), done=done))
        return
    while chunk := list(islice(requests, CHUNK_ROWS)):
        if any(request.key not in done for request in chunk):
            reasonings = _reason(engine, judge.reasonings, chunk, config, failures=failures)
            yield from _reasoned(engine, chunk, reasonings, done, config)


def _verdict_sampling(config: LlmJudgeConfig) -> Sampling:
    temperature = 0.0 if config.reasoning else config.temperature  # of the reasoning, where there is any
    if config.verdict_by == "choice":
        return Sampling(VERDICT_TOKENS, choices=CHOICES)
    return Sampling(VERDICT_TOKENS, temperature)


def _reason(
    engine: Engine, kept: RowStore, chunk: list[Request], config: LlmJudgeConfig, *, failures: bool
) -> dict[str, Row]:
    """The reasoning for each request, by its key; those that are missing are asked for, and kept."""
    done = kept.done(failures=failures)
    fresh = (request for request in chunk if request.key not in done.elsewhere)
    sampling = Sampling(config.max_reasoning_tokens, config.temperature)
    for reply in engine.generate(fresh, sampling, done=done.here):
        kept.append([stored(reply)])
    kept.flush()
    return _kept(kept, [request.key for request in chunk])


def _kept(rows: RowStore, keys: list[str]) -> dict[str, Row]:
    """The stored rows of some keys; one without a problem counts before one with."""
    columns = ["row_key", "text", "n_output_tokens", "problem", "retryable"]
    found = [pq.read_table(part, columns=columns, filters=[("row_key", "in", keys)]) for part in rows.parts()]
    ordered = sorted(rows_of(b for table in found for b in table.to_batches()), key=lambda row: row["problem"] is None)
    return {row["row_key"]: row for row in ordered}


def _reasoned(
    engine: Engine, chunk: Iterable[Request], reasonings: Mapping[str, Row], done: Container[str],
    config: LlmJudgeConfig,
) -> Iterator[Row]:  # fmt: skip
    """Verdicts behind the reasonings; where a reasoning failed, that is the reply."""
    asked = []
    for request in chunk:
        reasoning = reasonings[request.key]
        if reasoning["problem"] is not None:
            if request.key not in done:
                yield reasoning
            continue
        ahead: list[Message] = [
            {"role": "assistant", "content": reasoning["text"]}, {"role": "user", "content": ASK_VERDICT},
        ]  # fmt: skip
        asked.append(request._replace(messages=[*request.messages, *ahead]))
    for reply in engine.generate(asked, _verdict_sampling(config), done=done):
        reasoning = reasonings[reply.key]
        row = stored(reply, reasoning=reasoning["text"])
        yield row | {"n_output_tokens": (reply.n_output_tokens or 0) + (reasoning["n_output_tokens"] or 0)}


# --- reading it back ---


def opinions(
    ctx: Context, judges: Sequence[Judge], config: LlmJudgeConfig, first: int, stop: int
) -> Iterator[list[Opinion]]:
    """For each case from `first` to before `stop`, in order, what every judge said each time it was asked.

    Replies that failed, but may succeed on another try, are counted.

    Raises:
        StepError: A reply is missing, which is a defect of an engine.
    """
    with ExitStack() as stack:
        numbers = range(len(judges) if stop > first else 0)
        streams = [stack.enter_context(_said(ctx, judges[number], number, first, stop)) for number in numbers]
        cases = groupby(heapq.merge(*streams, key=itemgetter("place")), key=itemgetter("place"))
        for place in range(first, stop):
            found, grouped = next(cases, (None, iter(())))
            rows = list(grouped)
            said = [opinion_of(row) for row in rows]
            if found != place or len(said) != config.n_opinions:
                raise StepError(f"judge: the engine gave no reply to case {place}. Run the same command again.")
            ctx.counts["rows_retryable"] += sum(bool(row["retryable"]) for row in rows)
            yield said


@contextmanager
def _said(ctx: Context, judge: Judge, number: int, first: int, stop: int) -> Iterator[Iterator[Row]]:
    columns = ", ".join(f"said.{name}" for name in _READ)
    sql = f"""
        SELECT asked.place, {columns} FROM ({LATEST_SQL}) AS said JOIN {{asked}} AS asked USING (row_key)
        WHERE asked.place >= {first} AND asked.place < {stop} ORDER BY asked.place, asked.repeat
    """
    tables: dict[str, Path | list[Path]] = {"asked": _asked_path(ctx, number), "rows": judge.rows.parts()}
    with query(sql, tables, spill=ctx.work / f"judge-{number}") as reader:
        yield rows_of(reader)
