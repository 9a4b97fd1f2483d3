"""Putting cases and probes before the panel together, and holding the panel to what the probes show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.config import EngineConfig, LlmJudgeConfig
from tasks.errors import StepError
from tasks.judge.asking import CASES, ask, opinions
from tasks.judge.audit import JudgedProbe, shortfall
from tasks.judge.panel import Judge, PanelVerdict, decide, panel
from tasks.judge.probes import JudgeProbe, draw, make_probes
from tasks.judge.rubrics import Rubrics, rubric_texts
from tasks.judge.rules import ACCEPT, UNJUDGED
from tasks.running.step import Context
from tasks.tables import schema
from tasks.tables.spool import spool

TOO_IMPRECISE = "the audit found the judge too imprecise"


@dataclass(frozen=True)
class PanelSession:
    """What the panel said of every case and probe.

    Attributes:
        fell_short: How the judge misses the precision asked for; None where it does not.
    """

    ctx: Context
    config: LlmJudgeConfig
    judges: list[Judge]
    n_cases: int
    probes: list[JudgedProbe]
    fell_short: str | None

    def decisions(self) -> Iterator[PanelVerdict]:
        """What the panel makes of each case, in order; a judge that fell short accepts nothing."""
        for said in opinions(self.ctx, self.judges, self.config, 0, self.n_cases):
            decision = decide(said, self.config)
            if self.fell_short and decision.verdict == ACCEPT:
                decision = decision._replace(verdict=UNJUDGED, reason=TOO_IMPRECISE)
            yield decision


def rubrics(config: LlmJudgeConfig) -> Rubrics:
    """The recipe's rubrics."""
    return Rubrics(rubric_texts(config.rubric), reasoning=config.reasoning)


def probes_for(
    examples: Path, config: LlmJudgeConfig, phrases: Sequence[str], *, tasks: frozenset[str] | None = None
) -> list[JudgeProbe]:
    """The probes of an audit, from training rows; none where the recipe wants no audit.

    Args:
        phrases: What marks a refusal.
        tasks: Only rows of these; None: of any.
    """
    audit = config.audit
    rows = draw(examples, audit.n_probes, seed=audit.seed, tasks=tasks)
    return make_probes(rows, audit.n_probes, seed=audit.seed, phrases=phrases)


def ask_panel(
    ctx: Context,
    config: LlmJudgeConfig,
    engine: EngineConfig,
    *,
    cases: Path,
    n_cases: int,
    probes: Sequence[JudgeProbe],
) -> PanelSession:
    """Ask the panel about the cases and, in the same session, about the probes.

    Raises:
        StepError: The probes show less precision than the recipe asks for, and it says to stop then.
    """
    render = rubrics(config)
    asked = ({"place": n_cases + i, "prompt": render.prompt(probe.case)} for i, probe in enumerate(probes))
    spool(asked, ctx.work / "probes.parquet", CASES)
    judges = panel(ctx.store, config, engine, origin=ctx.ref["fingerprint"])
    ask(ctx, judges, [cases, ctx.work / "probes.parquet"], config)
    found = opinions(ctx, judges, config, n_cases, n_cases + len(probes))
    judged = [JudgedProbe(probe, decide(said, config)) for probe, said in zip(probes, found, strict=True)]
    fell_short = shortfall(judged, config)
    if fell_short and config.audit.below == "stop":
        raise StepError(
            f"judge: {fell_short}, below judge.llm.audit.min_precision={config.audit.min_precision:g}. Nothing is "
            "trained on such verdicts. Use a better judge or rubric, raise judge.llm.threshold, or set "
            "judge.llm.audit.below=gold. Replies are kept."
        )
    return PanelSession(ctx, config, judges, n_cases, judged, fell_short)


def write_audit(path: Path, judged: Sequence[JudgedProbe]) -> None:
    """Write one row per probe."""
    rows: list[dict[str, object]] = [
        {
            "probe_id": probe.probe_id, "kind": probe.kind, "example_id": probe.example_id,
            "answerable": probe.case.answerable, "candidate": probe.case.candidate, "acceptable": probe.acceptable,
            "verdict": decision.verdict, "p_accept": decision.p_accept,
        }
        for probe, decision in sorted(judged, key=lambda one: one.probe.probe_id)
    ]  # fmt: skip
    with schema.TableWriter(path, schema.AUDIT) as writer:
        writer.write(rows)
