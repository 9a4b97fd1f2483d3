"""THE flow: Selective Self-Rehearsal, from a dataset to a report.

`rehearse` is the whole method, a line a step. The same lines plan a run (`ssr plan`) and execute it (`flows.run`, with
Prefect). They differ in the `Runner` that they are given.
"""

from __future__ import annotations

from typing import Protocol

from flows.promotion.advance import origin_for
from flows.promotion.log import Promoted
from tasks.artifacts.store import Ref
from tasks.config import EngineConfig, RunConfig, Section
from tasks.engine_kinds import engine_kind
from tasks.evaluate import check_benchmarks, evaluate, measure
from tasks.generate import generate, likelihood, rewrite
from tasks.ingest import ingest
from tasks.judge import judge
from tasks.promotion import promote
from tasks.report import report
from tasks.running.step import Planned, Step, as_input
from tasks.selection import select
from tasks.train import train

STEPS = {one.name: one for one in list(globals().values()) if isinstance(one, Step)}  # every step of the method
Parts = dict[str, Section | Planned]
Artifacts = dict[str, Planned]


class Runner(Protocol):
    """Takes the steps in their order, and plans them, runs them, or hands them to Prefect."""

    def __call__(self, step: Step, label: str, after: Planned | None = None, /, **parts: Section | Planned) -> Planned:
        """Do `step` with these config sections and inputs, not before `after`. The same step given twice runs once."""


def rehearse(run: Runner, recipe: RunConfig, current: Promoted | None = None) -> Planned:
    """Selective Self-Rehearsal: train on the answers of the model itself where a judge accepts them, else on the gold.

    Args:
        current: The adapter that is promoted now, where the recipe promotes (`flows.promotion.advance.current_for`).

    Returns:
        The report step.
    """
    model, engine = recipe.model, recipe.engine

    examples = run(ingest, "ingest", config=recipe.data)
    measuring = _measuring(recipe, examples)
    if not _has_server(recipe):
        # At the beginning, because it waits for no other step: a second worker runs it beside generate.
        run(evaluate, "evaluate base", **measuring)

    # The base model answers the training prompts, and the judge decides which answers are acceptable.
    outputs = run(generate, "generate", model=model, engine=engine, config=recipe.generate, examples=examples)
    verdicts = run(judge, "judge", outputs=outputs, **_judging(recipe, examples))
    tables = {"examples": examples, "outputs": outputs, "verdicts": verdicts}
    optional = _optional_tables(run, recipe, tables)

    # Every arm trains on the targets that its policy selects.
    arms = {str(i): arm for i, arm in enumerate(recipe.arms)}
    targets, adapters, scores = Artifacts(), Artifacts(), Artifacts()
    seen, start = _continuation(recipe, current, examples)
    for key, arm in arms.items():
        policy, training = arm.select_config(), arm.train_config(recipe.train)
        read = {name: optional[name] for name in policy.reads()}
        targets[key] = run(select, f"select {arm.policy}", config=policy, **tables, **read, **seen)
        adapters[key] = run(train, f"train {arm.name}", model=model, config=training, targets=targets[key], **start)

    # The base, every arm and the adapter that is promoted now are measured under the same settings.
    rivals = {**adapters, **({"current": as_input(current.adapter)} if current else {})}
    measured = run(measure, "measure", **measuring, **_named("adapter", rivals)) if _has_server(recipe) else None
    scores["base"] = run(evaluate, "evaluate base", measured, **measuring)
    drawn = {"base": scores["base"]} if recipe.evaluate.drift_rows else {}
    for key, adapter in rivals.items():
        label = f"evaluate {arms[key].name if key in arms else key}"
        scores[key] = run(evaluate, label, measured, adapter=adapter, **measuring, **drawn)

    # Where the recipe says so, one arm may take the place of the promoted adapter.
    decision = Artifacts()
    if recipe.promotion is not None:
        key = next(key for key, arm in arms.items() if arm.name == recipe.promotion.arm)
        compared = {"scores_base": scores["base"], "scores_arm": scores[key]}
        if current:
            compared |= {"scores_current": scores["current"], "current": rivals["current"]}
        decision["decision"] = run(promote, "promote", config=recipe.promotion, adapter=adapters[key], **compared)

    made = {**_named("targets", targets), **_named("adapter", adapters), **_named("scores", scores), **decision}
    return run(report, "report", recipe=recipe, **tables, **optional, **made)


def _has_server(recipe: RunConfig) -> bool:
    """Whether base and adapters are measured together, on one server that the engine starts."""
    return engine_kind(recipe.engine.kind).shares is not None


def _measuring(recipe: RunConfig, examples: Planned) -> Parts:
    """What evaluate and measure are given for every model. An adapter cannot be put on a server of somebody else."""
    engine = recipe.engine if engine_kind(recipe.engine.kind).loads_weights else EngineConfig()
    return {
        "model": recipe.model, "engine": engine, "config": recipe.evaluate, "abstention": recipe.abstention,
        "examples": examples,
    }  # fmt: skip


def _judging(recipe: RunConfig, examples: Planned) -> Parts:
    """What judge is given beside the outputs."""
    return {
        "config": recipe.judge, "engine": recipe.engine, "abstention": recipe.abstention, "examples": examples,
    }  # fmt: skip


def _optional_tables(run: Runner, recipe: RunConfig, tables: Artifacts) -> Artifacts:
    """The tables that only some policies read, where an arm of the recipe has such a policy."""
    made = Artifacts()
    model, engine = recipe.model, recipe.engine
    if recipe.reads("rewrites"):
        read = {"examples": tables["examples"]} if recipe.rewrites_all() else tables
        rewrites = run(rewrite, "rewrite", model=model, engine=engine, config=recipe.rewrite, **read)
        verdicts = run(judge, "judge rewrites", outputs=rewrites, **_judging(recipe, tables["examples"]))
        made |= {"rewrites": rewrites, "rewrite_verdicts": verdicts}
    if recipe.reads("likelihoods"):
        config = recipe.generate
        made["likelihoods"] = run(likelihood, "likelihood", model=model, engine=engine, config=config, **tables)
    return made


def _continuation(recipe: RunConfig, current: Promoted | None, examples: Planned) -> tuple[Artifacts, Artifacts]:
    """What select and train are given to continue from the promoted adapter; nothing if they use all rows anew."""
    if recipe.promotion is None or recipe.promotion.train_on == "all":
        return {}, {}
    origin = origin_for(current, examples.ref)
    return ({"seen": as_input(origin.examples)}, {"start": as_input(origin.adapter)}) if origin else ({}, {})


def _named(kind: str, artifacts: Artifacts) -> Artifacts:
    """The artifacts as inputs of a step: `adapter_0` for the adapter of the first arm."""
    return {f"{kind}_{key}": one for key, one in artifacts.items()}


def force_names(planned: Planned, after: Planned | None = None) -> set[str]:
    """The names that force a step (`--force`): its name and its label.

    Where one server measures base and arms, `evaluate` forces `measure`, which makes the artifacts of the evaluate
    steps.

    Args:
        after: The measure step, if the step waits for it.
    """
    if planned.step.name == measure.name:
        return {measure.name, planned.label, evaluate.name}
    return {planned.label} if after else {planned.step.name, planned.label}


def plan_steps(recipe: RunConfig, current: Promoted | None = None) -> list[Planned]:
    """Every step of a run in order, each once, with its fingerprint, before any of them runs."""
    check_benchmarks(recipe.evaluate)
    planned: dict[str, Planned] = {}

    def remember(step: Step, label: str, after: Planned | None = None, /, **parts: Section | Planned) -> Planned:
        made = step.plan(label, **parts)
        return planned.setdefault(made.ref["fingerprint"], made)

    rehearse(remember, recipe, current)
    return list(planned.values())


def step_names(recipe: RunConfig) -> list[str]:
    """The names of the steps of a run in order, each once. Reads neither data nor models."""
    names: dict[str, None] = {}

    def remember(step: Step, label: str, after: Planned | None = None, /, **parts: Section | Planned) -> Planned:
        names[step.name] = None
        return Planned(step, label, Ref(step=step.name, fingerprint=label), {}, {}, {})

    rehearse(remember, recipe)
    return list(names)
