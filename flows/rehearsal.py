"""THE flow: Selective Self-Rehearsal, from a dataset to a report.

`rehearse` is the whole method, a line a step. The same lines plan a run (`ssr plan`) and run it (`flows.run`, with
Prefect): what differs is the `Runner` they are given.
"""

from __future__ import annotations

from typing import Protocol

from tasks.config import RunConfig, Section
from tasks.evaluate import evaluate
from tasks.generate import generate
from tasks.ingest import ingest
from tasks.judge import judge
from tasks.report import report
from tasks.selection import select
from tasks.step import Planned, Step
from tasks.train import train


class Runner(Protocol):
    """Takes the steps in their order; plans them, runs them, or hands them to Prefect."""

    def __call__(self, step: Step, label: str, /, **parts: Section | Planned) -> Planned:
        """Do `step` with these config sections and inputs."""


def rehearse(run: Runner, recipe: RunConfig) -> Planned:
    """The method: the base model answers, a judge decides, every arm trains on its targets, all are measured."""
    model = recipe.model
    measure: dict[str, Section] = {"model": model, "config": recipe.evaluate, "abstention": recipe.abstention}
    examples = run(ingest, "ingest", config=recipe.data)
    # First, because it waits for no other step: with two workers it is measured while the outputs are generated.
    made = {"scores_base": run(evaluate, "evaluate base", examples=examples, **measure)}
    outputs = run(generate, "generate", model=model, config=recipe.generate, examples=examples)
    verdicts = run(
        judge, "judge", config=recipe.judge, abstention=recipe.abstention, examples=examples, outputs=outputs
    )
    tables = {"examples": examples, "outputs": outputs, "verdicts": verdicts}
    for i, arm in enumerate(recipe.arms):
        policy, training = arm.select_config(), arm.train_config(recipe.train)
        targets = run(select, f"select {arm.policy}", config=policy, **tables)
        adapter = run(train, f"train {arm.name}", model=model, config=training, targets=targets)
        made |= {f"targets_{i}": targets, f"adapter_{i}": adapter}
    for i, arm in enumerate(recipe.arms):
        adapter = made[f"adapter_{i}"]
        made[f"scores_{i}"] = run(evaluate, f"evaluate {arm.name}", examples=examples, adapter=adapter, **measure)
    return run(report, "report", recipe=recipe, **tables, **made)


def plan_steps(recipe: RunConfig) -> list[Planned]:
    """Every step of a run in order, each once, with its fingerprint, before any of them runs."""
    planned: dict[str, Planned] = {}

    def remember(step: Step, label: str, /, **parts: Section | Planned) -> Planned:
        made = step.plan(label, **parts)
        return planned.setdefault(made.ref["fingerprint"], made)

    rehearse(remember, recipe)
    return list(planned.values())
