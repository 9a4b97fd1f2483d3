"""THE flow: Selective Self-Rehearsal, from a dataset to a report.

`rehearse` is the whole method, a line a step. The same lines plan a run (`ssr plan`) and run it (`flows.run`, with
Prefect): what differs is the `Runner` they are given.
"""

from __future__ import annotations

from typing import Protocol

from tasks.config import EngineConfig, RunConfig, Section
from tasks.evaluate import evaluate, measure
from tasks.generate import generate, likelihood, rewrite
from tasks.ingest import ingest
from tasks.judge import judge
from tasks.report import report
from tasks.selection import select
from tasks.step import Planned, Step
from tasks.train import train


class Runner(Protocol):
    """Takes the steps in their order; plans them, runs them, or hands them to Prefect."""

    def __call__(self, step: Step, label: str, after: Planned | None = None, /, **parts: Section | Planned) -> Planned:
        """Do `step` with these config sections and inputs, not before `after`."""


def rehearse(run: Runner, recipe: RunConfig) -> Planned:
    """The method: the base model answers, a judge decides, every arm trains on its targets, all are measured."""
    model, engine = recipe.model, recipe.engine
    on_server = engine.kind == "vllm"
    measuring = engine if on_server else EngineConfig()  # an adapter cannot be put on a server elsewhere
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
        more["likelihoods"] = run(likelihood, "likelihood", model=model, engine=engine, **tables)
    adapters: dict[str, Planned] = {}
    for i, arm in enumerate(recipe.arms):
        policy, training = arm.select_config(), arm.train_config(recipe.train)
        read = {name: more[name] for name in policy.reads()}
        targets = run(select, f"select {arm.policy}", config=policy, **tables, **read)
        adapters[f"adapter_{i}"] = run(train, f"train {arm.name}", model=model, config=training, targets=targets)
        made[f"targets_{i}"] = targets
    measured = run(measure, "measure", examples=examples, **settings, **adapters) if on_server else None
    if on_server:
        made["scores_base"] = run(evaluate, "evaluate base", measured, examples=examples, **settings)
    for i, arm in enumerate(recipe.arms):
        made[f"scores_{i}"] = run(
            evaluate, f"evaluate {arm.name}", measured, examples=examples, adapter=adapters[f"adapter_{i}"],
            **settings,
        )  # fmt: skip
    return run(report, "report", recipe=recipe, **tables, **more, **adapters, **made)


def plan_steps(recipe: RunConfig) -> list[Planned]:
    """Every step of a run in order, each once, with its fingerprint, before any of them runs."""
    planned: dict[str, Planned] = {}

    def remember(step: Step, label: str, after: Planned | None = None, /, **parts: Section | Planned) -> Planned:
        made = step.plan(label, **parts)
        return planned.setdefault(made.ref["fingerprint"], made)

    rehearse(remember, recipe)
    return list(planned.values())
