"""A session of the panel: it judges the cases and the probes together, and the probes measure its precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.config import EngineConfig, LlmJudgeConfig
from tasks.errors import StepError
from tasks.judge.audit import JudgedProbe, shortfall
from tasks.judge.opinions import CASES, ask, opinions
from tasks.judge.panel import Judge, PanelVerdict, decide, panel
from tasks.judge.probes import JudgeProbe, draw, make_probes
from tasks.judge.rubrics import Rubrics
from tasks.judge.rules import ACCEPT, UNJUDGED
from tasks.running.step import Context
from tasks.tables import schema
from tasks.tables.spool import spool

TOO_IMPRECISE = "the audit found the judge too imprecise"


@dataclass(frozen=True)
class PanelSession:
    """The panel's verdicts on every case and probe.

    Attributes:
        fell_short: How the panel misses `audit.min_precision`, in words; None where it does not.
    """

    ctx: Context
    config: LlmJudgeConfig
    judges: list[Judge]
    n_cases: int
    probes: list[JudgedProbe]
    fell_short: str | None

    def verdicts(self) -> Iterator[PanelVerdict]:
        """The verdict on each case, in order. A panel that fell short accepts nothing."""
        for given in opinions(self.ctx, self.judges, self.config, 0, self.n_cases):
            verdict = decide(given, self.config)
            if self.fell_short and verdict.verdict == ACCEPT:
                verdict = verdict._replace(verdict=UNJUDGED, reason=TOO_IMPRECISE)
            yield verdict


def probes_for(
    examples: Path, config: LlmJudgeConfig, phrases: Sequence[str], *, tasks: frozenset[str] | None = None
) -> list[JudgeProbe]:
    """The probes of an audit, made from training rows; none with `audit.n_probes` 0.

    Args:
        phrases: Phrases that mark an answer as a refusal.
        tasks: Only rows of these tasks are used; None: rows of any task.
    """
    audit = config.audit
    rows = draw(examples, audit.n_probes, seed=audit.seed, tasks=tasks)
    return make_probes(rows, audit.n_probes, seed=audit.seed, phrases=phrases)


def ask_panel(
    ctx: Context, config: LlmJudgeConfig, engine: EngineConfig, *, cases: Path, n_cases: int,
    probes: Sequence[JudgeProbe],
) -> PanelSession:  # fmt: skip
    """Ask the panel about the cases and, in the same session, about the probes.

    Args:
        cases: A table of `CASES`.

    Raises:
        StepError: The probes show less precision than `audit.min_precision`, and `audit.below` is stop.
    """
    rubrics = Rubrics(config.rubric, reasoning=config.reasoning)
    asked = ({"case_index": n_cases + i, "prompt": rubrics.prompt(probe.case)} for i, probe in enumerate(probes))
    spool(asked, ctx.work / "probes.parquet", CASES)
    judges = panel(ctx.store, config, engine, origin=ctx.ref["fingerprint"])
    ask(ctx, judges, [cases, ctx.work / "probes.parquet"], config)
    found = opinions(ctx, judges, config, n_cases, n_cases + len(probes))
    judged = [JudgedProbe(probe, decide(given, config)) for probe, given in zip(probes, found, strict=True)]
    fell_short = shortfall(judged, config)
    if fell_short and config.audit.below == "stop":
        raise StepError(
            f"judge: {fell_short}, below judge.llm.audit.min_precision={config.audit.min_precision:g}. Nothing is "
            "trained on such verdicts. Use a better judge or rubric, raise judge.llm.threshold, or set "
            "judge.llm.audit.below=gold. The replies are kept."
        )
    return PanelSession(ctx, config, judges, n_cases, judged, fell_short)


def write_audit(path: Path, judged: Sequence[JudgedProbe]) -> None:
    """Write the table `audit`: one row per probe, in the order of `probe_id`."""
    rows: list[dict[str, object]] = [
        {
            "probe_id": probe.probe_id, "kind": probe.kind, "example_id": probe.example_id,
            "answerable": probe.case.answerable, "candidate": probe.case.candidate, "acceptable": probe.acceptable,
            "verdict": verdict.verdict, "p_accept": verdict.p_accept,
        }
        for probe, verdict in sorted(judged, key=lambda one: one.probe.probe_id)
    ]  # fmt: skip
    with schema.TableWriter(path, schema.AUDIT) as writer:
        writer.write(rows)
