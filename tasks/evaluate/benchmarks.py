"""General benchmarks through lm-evaluation-harness: its tasks, its metrics, one row per item and metric."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import EvaluateConfig
from tasks.digest import digest_of, file_digest
from tasks.engines import Engine
from tasks.engines.remote import RemoteEngine
from tasks.errors import DataError
from tasks.text import abstains

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

LAB_FOLDER = Path(__file__).parents[1] / "lab" / "benchmarks"
LAB_BENCHMARKS = ("lab_facts", "lab_sums", "lab_stories", "lab_misconceptions")
LEAKED_REFUSAL = "leaked_refusal"  # share of general answers that are refusals: lower is better
_SKIPPED_METRICS = {"bypass"}


def names(config: EvaluateConfig) -> tuple[str, ...]:
    """The benchmarks to run; `lab` stands for the lab's four."""
    found = [name for given in config.benchmarks for name in (LAB_BENCHMARKS if given == "lab" else (given,))]
    return tuple(dict.fromkeys(found))


def content_digests(config: EvaluateConfig) -> dict[str, str]:
    """What decides the items: the harness's version, the lab's task files, YAML files of the user's.

    Raises:
        DataError: A YAML file is not there.
    """
    found = {}
    for name in names(config):
        if name in LAB_BENCHMARKS:
            world = [LAB_FOLDER.parent / f for f in ("world.py", "corpus.py", "lexicon.py", "gates.py")]
            files = [*LAB_FOLDER.glob("*.yaml"), *LAB_FOLDER.glob("*.py"), *world]
            found[name] = digest_of({file.name: file_digest(file) for file in files})
        elif name.endswith((".yaml", ".yml")):
            if not Path(name).exists():
                raise DataError(f"evaluate.benchmarks: {name}: no such file. Give an existing YAML or a task name.")
            found[name] = file_digest(Path(name))
    return found | {"lm_eval": importlib.metadata.version("lm_eval")}


def items(engine: Engine, name: str, config: EvaluateConfig, abstentions: Sequence[str]) -> Iterator[dict[str, object]]:
    """Measure one benchmark with a model that is already loaded; rows of the items table.

    Raises:
        DataError: There is no such task, or its dataset cannot be had.
    """
    results = _evaluate(engine, name, config)
    for task, samples in sorted(results["samples"].items()):
        for sample in samples:
            yield from _rows(Path(name).stem, task, sample, abstentions)


def _evaluate(engine: Engine, name: str, config: EvaluateConfig) -> dict[str, Any]:  # Any: harness results
    from lm_eval import simple_evaluate

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    harness_model = _harness_model(engine, config)
    given, manager = _task(name)
    try:
        results: dict[str, Any] | None = simple_evaluate(  # Any: harness results
            model=harness_model,
            tasks=[given],
            task_manager=manager,
            num_fewshot=config.num_fewshot,
            limit=config.limit,
            apply_chat_template=config.chat_template,
            log_samples=True,
            bootstrap_iters=0,
            random_seed=config.seed,
            numpy_random_seed=config.seed,
            torch_random_seed=config.seed,
            fewshot_random_seed=config.seed,
        )
    except (OSError, ConnectionError) as error:
        raise DataError(
            f"benchmark {name}: its dataset cannot be had: {error}. Go online once, or name other evaluate.benchmarks."
        ) from error
    assert results is not None  # None only on other ranks of a distributed run
    return results


def _harness_model(engine: Engine, config: EvaluateConfig) -> LM:
    """The harness's own view of the model that the engine runs: in this process, or on its server."""
    from tasks.engines.transformers import TransformersEngine

    if isinstance(engine, TransformersEngine):
        from lm_eval.models.huggingface import HFLM

        return HFLM(pretrained=engine.model, tokenizer=engine.tokenizer, batch_size=config.benchmark_batch_size)
    from tasks.evaluate.served import served_model

    assert isinstance(engine, RemoteEngine)  # there is no third
    return served_model(engine.connection)


def _task(name: str) -> tuple[str, TaskManager]:
    if name.endswith((".yaml", ".yml")):
        manager = _manager(Path(name).parent.absolute(), defaults=True)
        name = Path(name).stem
    else:
        manager = _manager(LAB_FOLDER, defaults=name not in LAB_BENCHMARKS)
    if name not in manager.all_tasks:
        raise DataError(f"benchmark {name!r}: lm-evaluation-harness has no such task. List them: lm-eval ls tasks")
    return name, manager


@functools.cache  # to index the harness's thousands of tasks takes seconds
def _manager(folder: Path, *, defaults: bool) -> TaskManager:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=defaults)


def _rows(
    name: str, task: str, sample: dict[str, Any], abstentions: Sequence[str]
) -> Iterator[dict[str, object]]:  # Any: harness samples
    doc = sample["doc"]
    common: dict[str, object] = {
        "benchmark": name,
        "item_id": digest_of([task, sample["doc_hash"], sample["prompt_hash"]])[:32],
        "cluster": task if task != name else doc.get("cluster"),
        "output": None,
        "problem": None,
    }
    output = _generated(sample)
    if output is not None:
        common["output"] = output
        yield common | {"metric": LEAKED_REFUSAL, "score": float(abstains(output, abstentions))}
    suffix = "" if sample.get("filter", "none") == "none" else f",{sample['filter']}"
    for metric in sample["metrics"]:
        if metric in _SKIPPED_METRICS:
            continue
        value = sample[metric]
        if isinstance(value, int | float):
            yield common | {"metric": f"{metric}{suffix}", "score": float(value)}
        else:
            problem = f"not a number per item: {type(value).__name__}"
            yield common | {"metric": f"{metric}{suffix}", "score": None, "problem": problem}


def _generated(sample: dict[str, Any]) -> str | None:  # Any: harness samples
    """The generated text, or None for an item scored by likelihood."""
    first = sample["resps"][0]
    while isinstance(first, list) and first:
        first = first[0]
    return first.strip() if isinstance(first, str) else None
