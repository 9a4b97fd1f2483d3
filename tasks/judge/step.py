"""The judge step: a verdict on every output. Rules decide first, language models judge the rest, and are audited.

The rules' verdicts and the cases for the language models are tables on disk in the order of the outputs, so memory does
not grow with their number and the verdicts have the same order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tasks.artifacts.store import Ref
from tasks.config import AbstentionConfig, EngineConfig, JudgeConfig, LlmJudgeConfig
from tasks.errors import StepError
from tasks.judge.opinions import CASES
from tasks.judge.panel import outside
from tasks.judge.rubrics import JudgeCase, Rubrics
from tasks.judge.rules import ACCEPT, REJECT, UNJUDGED, Candidate, Verdict, first_rule, undecided
from tasks.running.process import one_process
from tasks.running.step import Context, step
from tasks.tables import schema
from tasks.tables.aligned import GRAIN, tables_of, training_batches, with_matches
from tasks.tables.spool import spool, spooled

if TYPE_CHECKING:
    from tasks.judge.audit import AnswerTally
    from tasks.judge.panel_session import PanelSession

Row = dict[str, Any]  # Any: values of a table's row

_RULED = pa.schema(
    [schema.VERDICTS.field(name).with_nullable(True) for name in (*GRAIN, "verdict", "decided_by", "reason")]
    + [pa.field("task", pa.string()), pa.field("answerable", pa.bool_())]
)


@step(version=4, pool="gpu", table=schema.VERDICTS, outside=outside, launcher=one_process)
def judge(
    ctx: Context, *, config: JudgeConfig, engine: EngineConfig, abstention: AbstentionConfig, examples: Ref,
    outputs: Ref,
) -> None:  # fmt: skip
    """Decide which outputs are acceptable. Writes `verdicts.parquet`, and `audit.parquet` where probes were judged."""
    known, answers = ctx.path(examples, "examples.parquet"), ctx.path(outputs, "outputs.parquet")
    n_outputs = schema.count_rows(answers, schema.OUTPUTS)
    ruled = ctx.work / "ruled.parquet"
    n_ruled = spool(_with_progress(ctx, _by_rules(known, answers, config, abstention), n_outputs), ruled, _RULED)
    tasks = frozenset(row["task"] for row in spooled(ruled, columns=["task", "verdict"]) if row["verdict"] is None)
    if config.llm is None or not tasks:
        _write(ctx, (_row(row, _ruled(row) or undecided(config)) for row in spooled(ruled)))
    else:
        _judge_by_models(ctx, config.llm, engine, abstention, known=known, answers=answers, ruled=ruled, tasks=tasks)
    ctx.account(n_outputs, n_ruled, {})


# --- rules ---


def _by_rules(known: Path, answers: Path, config: JudgeConfig, abstention: AbstentionConfig) -> Iterator[Row]:
    """Every output with the verdict of the rules; the verdict is None where no rule decides."""
    for example, output in _pairs(known, answers, ["task", "golds", "incorrect", "answerable"]):
        candidate = Candidate(
            output["text"], output["finish_reason"], output["problem"], example["task"], example["golds"],
            example["incorrect"], example["answerable"],
        )  # fmt: skip
        verdict = first_rule(candidate, config, abstention.phrases)
        ruled = verdict._asdict() if verdict else {"verdict": None, "decided_by": None, "reason": None}
        yield {**output, **ruled, "task": example["task"], "answerable": example["answerable"]}


def _with_progress(ctx: Context, rows: Iterator[Row], n_rows: int) -> Iterator[Row]:
    for number, row in enumerate(rows, 1):
        yield row
        if number % schema.BATCH_ROWS == 0 or number == n_rows:
            ctx.progress(number, n_rows, "rules")


def _pairs(known: Path, answers: Path, columns: list[str]) -> Iterator[tuple[Row, Row]]:
    """Every output after its example, in the order of the outputs."""
    outputs = tables_of(answers, schema.OUTPUTS, [*GRAIN, "text", "finish_reason", "problem"])
    for batch, found in with_matches(training_batches(known, columns), outputs):
        examples = {row["example_id"]: row for row in batch.to_pylist()}
        for output in found.to_pylist():
            yield examples[output["example_id"]], output


def _ruled(row: Row) -> Verdict | None:
    return Verdict(row["verdict"], row["decided_by"], row["reason"]) if row["verdict"] else None


def _row(ruled: Row, verdict: Verdict, p_accept: float | None = None) -> Row:
    return {**{name: ruled[name] for name in GRAIN}, **verdict._asdict(), "p_accept": p_accept}


def _write(ctx: Context, rows: Iterable[Row]) -> None:
    """Write `verdicts.parquet`; counts rows by verdict and by what decided them."""
    counts: Counter[str] = Counter({ACCEPT: 0, REJECT: 0, UNJUDGED: 0})
    pending = iter(rows)
    with schema.TableWriter(ctx.out / "verdicts.parquet", schema.VERDICTS) as writer:
        while batch := list(islice(pending, schema.BATCH_ROWS)):
            counts.update(row["verdict"] for row in batch)
            deciders = [row["decided_by"] for row in batch if row["decided_by"]]
            counts.update(by if by.startswith("llm") else f"rule.{by}" for by in deciders)
            writer.write(batch)
    ctx.counts |= dict(sorted(counts.items()))


# --- language models ---


def _judge_by_models(
    ctx: Context, config: LlmJudgeConfig, engine: EngineConfig, abstention: AbstentionConfig, *,
    known: Path, answers: Path, ruled: Path, tasks: frozenset[str],
) -> None:  # fmt: skip
    # The audit imports scipy, which takes a second: `ssr --help` and loading a deployment must not wait for it.
    from tasks.judge import audit, panel_session

    cases = ctx.work / "cases.parquet"
    n_cases = spool(_cases(known, answers, ruled, Rubrics(config.rubric, reasoning=config.reasoning)), cases, CASES)
    probes = panel_session.probes_for(known, config, abstention.phrases, tasks=tasks)
    session = panel_session.ask_panel(ctx, config, engine, cases=cases, n_cases=n_cases, probes=probes)
    tallies: dict[str, AnswerTally] = {}
    _write(ctx, _with_models(session, ruled, tallies))
    if probes:
        panel_session.write_audit(ctx.out / "audit.parquet", session.probes)
        ctx.facts["audit"] = audit.summary(session.probes, tallies, config, fell_short=session.fell_short)
    n_left = sum(one.unjudged for one in tallies.values())
    ctx.counts |= {"llm.asked": n_cases, "llm.unjudged": n_left, "audit.probes": len(probes)}
    if n_left > config.max_unjudged_share * n_cases:
        raise StepError(
            f"judge: the language models left {n_left} of {n_cases} answers undecided, more than "
            "judge.llm.max_unjudged_share allows. Replies are kept: the same command retries those that a retry may "
            "repair, and --force judge retries all that failed."
        )


def _cases(known: Path, answers: Path, ruled: Path, rubrics: Rubrics) -> Iterator[Row]:
    """The prompts about the outputs that no rule decides."""
    decided = (row["verdict"] for row in spooled(ruled, columns=["verdict"]))
    pairs = _pairs(known, answers, ["task", "question", "dialogue", "document", "golds", "answerable"])
    left = (pair for pair, verdict in zip(pairs, decided, strict=True) if verdict is None)
    for case_index, (example, output) in enumerate(left):
        known_of_it = {name: example[name] for name in JudgeCase._fields if name in example}
        yield {"case_index": case_index, "prompt": rubrics.prompt(JudgeCase(**known_of_it, candidate=output["text"]))}


def _with_models(session: PanelSession, ruled: Path, tallies: dict[str, AnswerTally]) -> Iterator[Row]:
    """Rows of `verdicts`. The models' verdicts are counted in `tallies`, by class of answerability."""
    from tasks.judge.audit import AnswerTally, answerability

    verdicts, n_judges = session.verdicts(), len(session.judges)
    by = "llm" if n_judges == 1 else f"llm:{n_judges} judges"
    for row in spooled(ruled):
        if verdict := _ruled(row):
            yield _row(row, verdict)
            continue
        found = next(verdicts)
        tallies.setdefault(answerability(row["answerable"]), AnswerTally()).add(found)
        decided_by = None if found.verdict == UNJUDGED else by
        yield _row(row, Verdict(found.verdict, decided_by, found.reason), found.p_accept)
