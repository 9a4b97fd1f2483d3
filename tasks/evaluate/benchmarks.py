"""General benchmarks, run by lm-evaluation-harness with its tasks and metrics; one row per item and metric."""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.artifacts.digest import digest_of, file_digest
from tasks.config import EvaluateConfig
from tasks.engines import Engine, LoadedModel
from tasks.errors import DataError
from tasks.measures.metrics import GENERAL, Answered, item_scores
from tasks.measures.refusals import refuses

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

LAB_FOLDER = Path(__file__).parents[1] / "lab" / "benchmarks"
LAB_BENCHMARKS = ("lab_facts", "lab_sums", "lab_stories", "lab_misconceptions")
# These are not looked up before a run, because the harness takes ten seconds to index its tasks.
USUAL_BENCHMARKS = frozenset(
    "mmlu truthfulqa_mc1 truthfulqa_mc2 truthfulqa_gen gsm8k gsm8k_cot hellaswag ifeval arc_easy arc_challenge piqa "
    "winogrande boolq openbookqa commonsense_qa social_iqa mmlu_pro bbh drop triviaqa nq_open humaneval mbpp".split()
)
_SKIPPED_METRICS = {"bypass"}


def names(config: EvaluateConfig) -> tuple[str, ...]:
    """The benchmarks to run; `lab` in the recipe stands for the four benchmarks of the lab."""
    found = [name for given in config.benchmarks for name in (LAB_BENCHMARKS if given == "lab" else (given,))]
    return tuple(dict.fromkeys(found))


def content_digests(config: EvaluateConfig) -> dict[str, str]:
    """The digests of everything that decides the items: the harness's version, the lab's files, the user's YAML files.

    Raises:
        DataError: A YAML file is not there.
    """
    found = {}
    for name in names(config):
        if name in LAB_BENCHMARKS:
            world = [LAB_FOLDER.parent / f for f in ("world.py", "corpus.py", "lexicon.py", "gates.py")]
            files = [*LAB_FOLDER.glob("*.yaml"), *LAB_FOLDER.glob("*.py"), *world]
            found[name] = digest_of({file.name: file_digest(file) for file in files})
        elif _is_file(name):
            found[name] = file_digest(Path(name))
    return found | {"lm_eval": importlib.metadata.version("lm_eval")}


def check_benchmarks(config: EvaluateConfig) -> None:
    """Refuse a benchmark that the harness does not have, before anything is paid for.

    Raises:
        DataError: There is no such task or file.
    """
    for name in names(config):
        if name not in USUAL_BENCHMARKS.union(LAB_BENCHMARKS):
            _task(name, alone=True)


def _is_file(name: str) -> bool:
    if not name.endswith((".yaml", ".yml")):
        return False
    if not Path(name).exists():
        raise DataError(f"evaluate.benchmarks: {name}: no such file. Give an existing YAML or a task name.")
    return True


def items(engine: Engine, name: str, config: EvaluateConfig, abstentions: Sequence[str]) -> Iterator[dict[str, object]]:
    """Measure one benchmark with the model of an engine; rows of the items table.

    Raises:
        DataError: There is no such task, or its dataset cannot be loaded.
    """
    results = _evaluate(engine, name, config)
    for task, samples in sorted(results["samples"].items()):
        yield from task_rows(Path(name).stem, task, samples, results["higher_is_better"][task], abstentions)


def _evaluate(engine: Engine, name: str, config: EvaluateConfig) -> dict[str, Any]:  # Any: harness results
    from lm_eval import simple_evaluate

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    harness_model = _harness_model(engine, config)
    given, manager = _task(name)
    try:
        results: dict[str, Any] | None = simple_evaluate(  # Any: harness results
            model=harness_model, tasks=[given], task_manager=manager, num_fewshot=config.num_fewshot,
            limit=config.limit, apply_chat_template=config.chat_template, log_samples=True, bootstrap_iters=0,
            random_seed=config.seed, numpy_random_seed=config.seed, torch_random_seed=config.seed,
            fewshot_random_seed=config.seed,
        )  # fmt: skip
    except (OSError, ConnectionError) as error:
        raise DataError(
            f"benchmark {name}: its dataset cannot be loaded: {error}. Run once with network access, so that it is "
            "downloaded, or name other evaluate.benchmarks."
        ) from error
    assert results is not None  # None only on other ranks of a distributed run
    return results


def _harness_model(engine: Engine, config: EvaluateConfig) -> LM:
    """The harness's own view of the model that the engine runs: in this process, or on its server."""
    measured = engine.measured_model()
    if isinstance(measured, LoadedModel):
        from lm_eval.models.huggingface import HFLM

        return HFLM(pretrained=measured.model, tokenizer=measured.tokenizer, batch_size=config.benchmark_batch_size)
    from tasks.evaluate.served import served_model

    return served_model(measured)


def _task(name: str, *, alone: bool = False) -> tuple[str, TaskManager]:
    """The harness's name of a benchmark, and the manager that knows it.

    Args:
        alone: Of a file, know only the tasks beside it, which is quick but not enough to run it.
    """
    if _is_file(name):
        task, manager = Path(name).stem, _manager(Path(name).parent.absolute(), defaults=not alone)
    else:
        task, manager = name, _manager(LAB_FOLDER, defaults=name not in LAB_BENCHMARKS)
    if task in manager.all_tasks:
        return task, manager
    if task != name:
        raise DataError(
            f"evaluate.benchmarks: {name}: defines no task {task!r}. Name the file as the task in it is named."
        )
    near = difflib.get_close_matches(task, manager.all_tasks, 1)
    meant = f"Did you mean {near[0]!r}?" if near else "List them: lm-eval ls tasks"
    raise DataError(f"evaluate.benchmarks: {task!r}: lm-evaluation-harness has no such task. {meant}")


@functools.cache  # to index the harness's thousands of tasks takes seconds
def _manager(folder: Path, *, defaults: bool) -> TaskManager:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=defaults)


def task_rows(
    name: str, task: str, samples: Sequence[dict[str, Any]], higher_is_better: Mapping[str, bool | None],
    abstentions: Sequence[str],
) -> Iterator[dict[str, object]]:  # Any: harness samples  # fmt: skip
    """Rows of the items table from the samples of one task: the harness logs one for each document and filter.

    Args:
        name: The benchmark; `task` is one of its tasks, or the benchmark itself.
        higher_is_better: What the harness states of each metric; None or missing where it states nothing.
    """
    seen: Counter[tuple[str, str, str]] = Counter()
    for sample in samples:
        filter_name, document = sample.get("filter", "none"), (sample["doc_hash"], sample["prompt_hash"])
        # MMLU asks some questions twice: without a number they would be one item with two scores.
        again = seen[filter_name, *document]
        seen[filter_name, *document] += 1
        output = _generated(sample)
        common: dict[str, object] = {
            "benchmark": name, "item_id": digest_of([task, *document, *([again] if again else [])])[:32],
            "cluster": task if task != name else sample["doc"].get("cluster"), "output": output, "problem": None,
        }  # fmt: skip
        if output is not None and filter_name == samples[0].get("filter", "none"):
            item = Answered("", (), None, output, refuses(output, abstentions) is True)
            yield from (common | {"metric": own, "score": score} for own, score in item_scores(item, GENERAL).items())
        suffix = "" if filter_name == "none" else f",{filter_name}"
        for metric in sample["metrics"]:
            if metric not in _SKIPPED_METRICS:
                stated = {"metric": f"{metric}{suffix}", "higher_is_better": higher_is_better.get(metric)}
                yield common | stated | _scored(sample[metric])


def _scored(value: object) -> dict[str, object]:
    if isinstance(value, int | float):
        return {"score": float(value)}
    return {"score": None, "problem": f"not a number per item: {type(value).__name__}"}


def _generated(sample: dict[str, Any]) -> str | None:  # Any: harness samples
    """The generated text, or None for an item scored by likelihood."""
    first = sample["resps"][0]
    while isinstance(first, list) and first:
        first = first[0]
    return first.strip() if isinstance(first, str) else None
