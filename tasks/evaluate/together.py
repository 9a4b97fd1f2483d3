"""The measure step: base and all adapters on one vLLM server, instead of a server for each.

What it makes are the very artifacts that the evaluate steps of base and arms would make, so that those find them done.
An arm more costs its own items; a killed run goes on with the model it was at. By force, all are measured again.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from tasks.artifacts.store import Ref
from tasks.config import AbstentionConfig, EngineConfig, EvaluateConfig, ModelConfig
from tasks.engines import shared_server
from tasks.evaluate.step import evaluate
from tasks.running.process import one_process
from tasks.running.step import Context, Planned, as_input, step


@step(version=3, pool="gpu", table=None, outside=evaluate.outside, launcher=one_process)
def measure(
    ctx: Context, *, model: ModelConfig, engine: EngineConfig, config: EvaluateConfig, abstention: AbstentionConfig,
    examples: Ref, **adapters: Ref,
) -> None:  # fmt: skip
    """Evaluate the base model and each adapter on one server; writes `measured.json`: which artifacts it made.

    Args:
        adapters: By any name; two names of one adapter are measured once.
    """
    sections = {"model": model, "engine": engine, "config": config, "abstention": abstention}
    # In this process, beside the server, and not in one more each.
    here = dataclasses.replace(evaluate, launcher=None)
    refs = {ref["fingerprint"]: ref for ref in adapters.values()}
    base = here.plan("evaluate base", **sections, examples=as_input(examples))
    drawn = {"base": base} if config.drift_rows else {}
    planned = [base] + [
        here.plan("evaluate", **sections, examples=as_input(examples), adapter=as_input(ref), **drawn)
        for ref in refs.values()
    ]
    n_measured = 0
    if ctx.force or any(one.reusable(ctx.store) is None for one in planned):
        folders = {f"adapter_{i}": ctx.path(ref, "adapter") for i, ref in enumerate(refs.values())}
        with shared_server(model, engine, work=ctx.work, adapters=folders):
            for i, one in enumerate(planned):
                # Asked again: a base that was just measured has drawn answers that no adapter has seen.
                if ctx.force or one.reusable(ctx.store) is None:
                    one.execute(ctx.store, force=ctx.force)
                    n_measured += 1
                ctx.progress(i + 1, len(planned), one.label)
    (ctx.out / "measured.json").write_text(json.dumps(_made(planned), indent=2) + "\n")
    ctx.counts |= {"models": len(planned), "models_measured": n_measured}


def _made(planned: list[Planned]) -> list[Any]:  # Any: JSON values
    return [one.ref for one in planned]
