"""THE flow: Selective Self-Rehearsal, from a dataset to a report.

`rehearse` is the whole method, a line a step. The same lines plan a run (`ssr plan`) and run it (`flows.run`, with
Prefect): what differs is the `Runner` they are given.
"""

from __future__ import annotations

from typing import Protocol

from flows.promotion.advance import origin_for
from flows.promotion.log import Promoted
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


class Runner(Protocol):
    """Takes the steps in their order; plans them, runs them, or hands them to Prefect."""

    def __call__(self, step: Step, label: str, after: Planned | None = None, /, **parts: Section | Planned) -> Planned:
        """Do `step` with these config sections and inputs, not before `after`."""


def rehearse(run: Runner, recipe: RunConfig, current: Promoted | None = None) -> Planned:
    """The method: the base model answers, a judge decides, every arm trains on its targets, all are measured.

    At the end, where the recipe says so, one arm may be promoted.

    Args:
        current: The adapter that is promoted now, where the recipe promotes (`flows.promotion.advance.current_for`).
    """
    model, engine = recipe.model, recipe.engine
    kind = engine_kind(engine.kind)
    on_server = kind.shares is not None
    measuring = engine if kind.loads_weights else EngineConfig()  # an adapter cannot be put on a server elsewhere
    settings: dict[str, Section] = {
        "model": model, "engine": measuring, "config": recipe.evaluate, "abstention": recipe.abstention,
    }  # fmt: skip
    examples = run(ingest, "ingest", config=recipe.data)
    made: dict[str, Planned] = {}
    if not on_server:
        # First, because it waits for no other step: with two workers it is measured while the outputs are generated.
        made["scores_base"] = run(evaluate, "evaluate base", examples=examples, **settings)
    outputs = run(generate, "generate", model=model, engine=engine, config=recipe.generate, examples=examples)
    judging: dict[str, Section | Planned] = {
        "config": recipe.judge, "engine": engine, "abstention": recipe.abstention, "examples": examples,
    }  # fmt: skip
    verdicts = run(judge, "judge", outputs=outputs, **judging)
    tables = {"examples": examples, "outputs": outputs, "verdicts": verdicts}
    more: dict[str, Planned] = {}  # what only some policies read
    if recipe.reads("rewrites"):
        wanted = {"examples": examples} if recipe.rewrites_all() else tables
        more["rewrites"] = run(rewrite, "rewrite", model=model, engine=engine, config=recipe.rewrite, **wanted)
        more["rewrite_verdicts"] = run(judge, "judge rewrites", outputs=more["rewrites"], **judging)
    if recipe.reads("likelihoods"):
        more["likelihoods"] = run(
            likelihood, "likelihood", model=model, engine=engine, config=recipe.generate, **tables
        )
    adapters: dict[str, Planned] = {}
    seen, start = _going_on(recipe, current, examples)
    for i, arm in enumerate(recipe.arms):
        policy, training = arm.select_config(), arm.train_config(recipe.train)
        read = {name: more[name] for name in policy.reads()}
        targets = run(select, f"select {arm.policy}", config=policy, **tables, **read, **seen)
        adapters[f"adapter_{i}"] = run(
            train, f"train {arm.name}", model=model, config=training, targets=targets, **start
        )
        made[f"targets_{i}"] = targets
    rival = {"adapter_current": as_input(current.adapter)} if current else {}  # to be measured on today's items
    measured = run(measure, "measure", examples=examples, **settings, **adapters, **rival) if on_server else None
    if on_server:
        made["scores_base"] = run(evaluate, "evaluate base", measured, examples=examples, **settings)
    drawn = {"base": made["scores_base"]} if recipe.evaluate.drift_rows else {}
    for i, arm in enumerate(recipe.arms):
        made[f"scores_{i}"] = run(
            evaluate, f"evaluate {arm.name}", measured, examples=examples, adapter=adapters[f"adapter_{i}"],
            **settings, **drawn,
        )  # fmt: skip
    if recipe.promotion is not None:
        place = _place(recipe)
        compared = {"scores_base": made["scores_base"], "scores_arm": made[f"scores_{place}"]}
        if rival:
            compared["scores_current"] = made["scores_current"] = run(
                evaluate, "evaluate current", measured, examples=examples, adapter=rival["adapter_current"],
                **settings, **drawn,
            )  # fmt: skip
        if current is not None:
            compared["current"] = as_input(current.adapter)
        made["decision"] = run(
            promote, "promote", config=recipe.promotion, adapter=adapters[f"adapter_{place}"], **compared
        )
    return run(report, "report", recipe=recipe, **tables, **more, **adapters, **made)


def forced_by(planned: Planned, after: Planned | None = None) -> set[str]:
    """The names by which `--force` means a step: its own and its label.

    Where one server measures base and arms, `evaluate` means `measure`, which makes what the evaluate steps then find.

    Args:
        after: What the step waits for without reading it: the measure step.
    """
    if planned.step.name == measure.name:
        return {measure.name, planned.label, evaluate.name}
    return {planned.label} if after else {planned.step.name, planned.label}


Inputs = dict[str, Planned]


def _going_on(recipe: RunConfig, current: Promoted | None, examples: Planned) -> tuple[Inputs, Inputs]:
    """What select and train are given to go on from the promoted adapter: nothing where all rows are trained on."""
    if recipe.promotion is None or recipe.promotion.train_on == "all":
        return {}, {}
    origin = origin_for(current, examples.ref)
    return ({"seen": as_input(origin.examples)}, {"start": as_input(origin.adapter)}) if origin else ({}, {})


def _place(recipe: RunConfig) -> int:
    """The place of the arm that may be promoted."""
    assert recipe.promotion is not None  # called only where it is there
    return [arm.name for arm in recipe.arms].index(recipe.promotion.arm)


def plan_steps(recipe: RunConfig, current: Promoted | None = None) -> list[Planned]:
    """Every step of a run in order, each once, with its fingerprint, before any of them runs."""
    check_benchmarks(recipe.evaluate)
    planned: dict[str, Planned] = {}

    def remember(step: Step, label: str, after: Planned | None = None, /, **parts: Section | Planned) -> Planned:
        made = step.plan(label, **parts)
        return planned.setdefault(made.ref["fingerprint"], made)

    rehearse(remember, recipe, current)
    return list(planned.values())
