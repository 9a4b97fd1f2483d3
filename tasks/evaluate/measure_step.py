"""The measure step: evaluates the base and all adapters on one vLLM server, instead of starting a server for each.

It makes the same artifacts as the evaluate steps of the base and the arms, so that those steps are cache hits. A new
arm costs its own items alone, and a killed run goes on with the model it was at. When forced, it measures all again.
"""

from __future__ import annotations

import dataclasses
import json

from tasks.artifacts.store import Ref
from tasks.config import AbstentionConfig, EngineConfig, EvaluateConfig, ModelConfig
from tasks.engines import shared_server
from tasks.evaluate.step import evaluate
from tasks.running.process import one_process
from tasks.running.step import Context, as_input, step


@step(version=3, pool="gpu", table=None, outside=evaluate.outside, launcher=one_process)
def measure(
    ctx: Context, *, model: ModelConfig, engine: EngineConfig, config: EvaluateConfig, abstention: AbstentionConfig,
    examples: Ref, **adapters: Ref,
) -> None:  # fmt: skip
    """Evaluate the base model and each adapter on one server; writes `measured.json`, the list of artifacts it made.

    Args:
        adapters: The adapters under any names. An adapter with two names is measured once.
    """
    sections = {"model": model, "engine": engine, "config": config, "abstention": abstention}
    # Every evaluation runs in this process, next to the server, instead of starting a process of its own.
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
                # Look again: where the base was measured just now, it drew new answers, so every adapter is stale.
                if ctx.force or one.reusable(ctx.store) is None:
                    one.execute(ctx.store, force=ctx.force)
                    n_measured += 1
                ctx.progress(i + 1, len(planned), one.label)
    (ctx.out / "measured.json").write_text(json.dumps([one.ref for one in planned], indent=2) + "\n")
    ctx.counts |= {"models": len(planned), "models_measured": n_measured}
