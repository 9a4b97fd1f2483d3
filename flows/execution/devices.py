"""How a run whose steps run on this machine uses its GPUs.

No step gets a GPU of its own: a model is loaded on the first one, training takes all of them, a vLLM server takes as
many as its copies need. So on a machine with a GPU steps run one after the other, and `ssr run` names idle GPUs.
"""

from __future__ import annotations

from tasks.config import EngineConfig, RunConfig
from tasks.engine_kinds import engine_kind, engine_kinds
from tasks.running.process import count_gpus


def steps_at_a_time(workers: int) -> int:
    """How many steps may run at a time on this machine, where the recipe asks for `workers` of them."""
    return 1 if count_gpus() else workers


def gpu_remarks(recipe: RunConfig) -> list[str]:
    """Sentences about GPUs that this run leaves idle, each with the setting that uses them; empty if there are none."""
    if recipe.execution.steps != "inline":
        return []
    n_workers, engines = recipe.execution.workers, {"engine": recipe.engine}
    for i, judge in enumerate(recipe.judge.llm.judges if recipe.judge.llm else ()):
        if judge.engine is not None:
            engines[f"judge.llm.judges.{i}.engine"] = judge.engine
    found = [_idle(engine, where) for where, engine in engines.items()]
    if steps_at_a_time(n_workers) < n_workers:
        found.append(
            f"execution.workers={n_workers}: one step at a time here, as each takes the GPU to itself. For several, "
            "give each GPU a worker of its own: execution.steps=deployments"
        )
    return [remark for remark in found if remark]


def _idle(engine: EngineConfig, where: str) -> str:
    kind, n_here = engine_kind(engine.kind), count_gpus()
    n_used, n_copies = engine.tensor_parallel * engine.data_parallel, n_here // engine.tensor_parallel
    if not kind.loads_weights or n_copies <= engine.data_parallel:
        return ""
    use = f"{where}.data_parallel={n_copies}"
    if not kind.makes_copies:
        use = f"{where}.kind={next(other.name for other in engine_kinds() if other.makes_copies)}, {use}"
    return f"{n_here} GPUs here, the engine uses {n_used}: {use}"
