"""Asks the judges: finds which replies are missing, gets them, and yields the opinions in the order of the cases.

The questions are a table on disk with one row per case, so memory does not grow with their number. Every reply is kept
in a row store and paid for once. A new threshold, panel rule or verdict parser therefore asks nothing again. A new
rubric asks only the prompts that it words differently. A failed reply is retried alone.

Not covered: how a case is made (`tasks.judge.step`, `tasks.judge.probes`), and what the opinions decide
(`tasks.judge.panel`).
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts.digest import stable_seed
from tasks.artifacts.paid_rows import LATEST_SQL, RowStore, row_key
from tasks.asking import Asked, Asking, Row, get_missing
from tasks.config import LlmJudgeConfig
from tasks.engines import Engine, Message, Request, Sampling
from tasks.errors import StepError
from tasks.judge.panel import Judge
from tasks.judge.replies import CHOICES, Opinion, opinion_of, stored
from tasks.running.step import Context
from tasks.tables.duckdb_query import query
from tasks.tables.spool import rows_of, spooled

CASES = pa.schema([("case_index", pa.int64()), ("prompt", pa.string())])
ASK_VERDICT = "Verdict: accept or reject?"
VERDICT_TOKENS = 64  # the longest verdict in free text
CHUNK_ROWS = 4_096  # how many reasonings are in memory at once
_GRAIN = pa.schema([("case_index", pa.int64()), ("repeat", pa.int32())])
_READ = ("text", "accept_logprob", "reject_logprob", "finish_reason", "problem", "retryable")


def ask(ctx: Context, judges: Sequence[Judge], cases: Sequence[Path], config: LlmJudgeConfig) -> None:
    """Get every missing reply of every judge, one judge after another: a GPU holds one of them at a time."""
    counts = {"rows_generated": 0, "rows_reused": 0, "tokens_generated": 0, "rows_retryable": 0}
    for number, judge in enumerate(judges):
        questions, replies = partial(_questions, judge, cases, config), partial(_replies, judge, config, ctx.force)
        asking = Asking(judge.model, judge.engine, judge.rows, questions, replies, label=judge.model.base)
        paid = get_missing(ctx, asking, _questions_path(ctx, number), _GRAIN)
        counts["rows_generated"] += paid.n_generated
        counts["rows_reused"] += paid.n_rows - paid.n_generated
        counts["tokens_generated"] += paid.n_tokens
    ctx.counts |= counts


def _questions_path(ctx: Context, number: int) -> Path:
    return ctx.work / f"questions-{number}.parquet"


def _questions(judge: Judge, cases: Sequence[Path], config: LlmJudgeConfig) -> Iterator[Asked[Request]]:
    """Every question to a judge, in the order of the cases."""
    for case in chain.from_iterable(spooled(path) for path in cases):
        messages: list[Message] = [{"role": "user", "content": case["prompt"]}]
        for repeat in range(config.repeats):
            key = row_key(judge.space, messages, repeat)
            yield Asked((case["case_index"], repeat), Request(key, messages, stable_seed(config.seed, key)))


# --- replies ---


def _replies(
    judge: Judge, config: LlmJudgeConfig, force: bool, engine: Engine, requests: Iterator[Request], done: Container[str]
) -> Iterator[Row]:  # fmt: skip
    """A row for the store per request that is not done, in the order in which the replies arrive.

    Args:
        force: Whether a reasoning that failed for good is asked for again.
    """
    if not config.reasoning:
        yield from map(stored, engine.generate(requests, _verdict_sampling(config), done=done))
        return
    while chunk := list(islice(requests, CHUNK_ROWS)):
        if any(request.key not in done for request in chunk):
            reasonings = _reason(engine, judge.reasonings, chunk, config, failures=not force)
            yield from _reasoned(engine, chunk, reasonings, done, config)


def _verdict_sampling(config: LlmJudgeConfig) -> Sampling:
    temperature = 0.0 if config.reasoning else config.temperature  # with reasoning, only the reasoning is sampled
    if config.verdict_by == "choice":
        return Sampling(VERDICT_TOKENS, choices=CHOICES)
    return Sampling(VERDICT_TOKENS, temperature)


def _reason(
    engine: Engine, kept: RowStore, chunk: list[Request], config: LlmJudgeConfig, *, failures: bool
) -> dict[str, Row]:
    """The reasoning for each request, by row key. A missing one is asked for and kept."""
    done = kept.done(failures=failures)
    fresh = (request for request in chunk if request.key not in done.elsewhere)
    sampling = Sampling(config.max_reasoning_tokens, config.temperature)
    for reply in engine.generate(fresh, sampling, done=done.here):
        kept.append([stored(reply)])
    kept.flush()
    return _stored_rows(kept, [request.key for request in chunk])


def _stored_rows(rows: RowStore, keys: list[str]) -> dict[str, Row]:
    """The stored rows of some keys. Of several rows of a key, one without a problem wins."""
    columns = ["row_key", "text", "n_output_tokens", "problem", "retryable"]
    found = [pq.read_table(part, columns=columns, filters=[("row_key", "in", keys)]) for part in rows.parts()]
    ordered = sorted(rows_of(b for table in found for b in table.to_batches()), key=lambda row: row["problem"] is None)
    return {row["row_key"]: row for row in ordered}


def _reasoned(
    engine: Engine, chunk: Iterable[Request], reasonings: Mapping[str, Row], done: Container[str],
    config: LlmJudgeConfig,
) -> Iterator[Row]:  # fmt: skip
    """A verdict after each reasoning. Where the reasoning failed, its row is the reply."""
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


# --- opinions ---


def opinions(
    ctx: Context, judges: Sequence[Judge], config: LlmJudgeConfig, first: int, stop: int
) -> Iterator[list[Opinion]]:
    """For each case from `first` to before `stop`, in order, every opinion of every judge.

    Failed replies that a retry may repair are counted in `rows_retryable`.

    Raises:
        StepError: A reply is missing, which is a defect of an engine.
    """
    with ExitStack() as stack:
        numbers = range(len(judges) if stop > first else 0)
        streams = [stack.enter_context(_replies_to(ctx, judges[number], number, first, stop)) for number in numbers]
        cases = groupby(heapq.merge(*streams, key=itemgetter("case_index")), key=itemgetter("case_index"))
        for case_index in range(first, stop):
            found, grouped = next(cases, (None, iter(())))
            rows = list(grouped)
            given = [opinion_of(row) for row in rows]
            if found != case_index or len(given) != config.n_opinions:
                raise StepError(f"judge: the engine gave no reply to case {case_index}. Run the same command again.")
            ctx.counts["rows_retryable"] += sum(bool(row["retryable"]) for row in rows)
            yield given


@contextmanager
def _replies_to(ctx: Context, judge: Judge, number: int, first: int, stop: int) -> Iterator[Iterator[Row]]:
    """The replies of one judge with the index of their case, in the order of cases and repeats."""
    columns = ", ".join(f"reply.{name}" for name in _READ)
    sql = f"""
        SELECT asked.case_index, {columns} FROM ({LATEST_SQL}) AS reply JOIN {{questions}} AS asked USING (row_key)
        WHERE asked.case_index >= {first} AND asked.case_index < {stop} ORDER BY asked.case_index, asked.repeat
    """
    tables: dict[str, Path | list[Path]] = {"questions": _questions_path(ctx, number), "rows": judge.rows.parts()}
    with query(sql, tables, spill=ctx.work / f"judge-{number}") as reader:
        yield rows_of(reader)
