"""What a run would cost, before any GPU is touched: rows, tokens and GPU hours, with the assumptions.

It is an estimate: lengths are measured on a sample of the training rows, and throughput is assumed. Where a number
depends on a step that has not run (which answers the rules leave to a judge), it is an upper bound.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from flows.execution.devices import gpu_remarks
from tasks.config import EvaluateConfig, LlmJudgeConfig, ModelConfig, RunConfig
from tasks.engines.chat_tokenizer import ChatTokenizer, RefusedChat
from tasks.errors import SsrError
from tasks.models import load_tokenizer, model_folder, weight_files
from tasks.tables import schema

PEAK_FLOPS = 989e12  # H100 SXM, bf16, dense
PREFILL_MFU, DECODE_MFU, TRAIN_MFU = 0.40, 0.12, 0.35
FLOPS_FORWARD, FLOPS_LORA, FLOPS_RECOMPUTED = 2, 4, 2  # a parameter and token; LoRA needs no gradients of the weights
ANSWER_LENGTH = 2.0  # of the base's answers, in lengths of the gold answer
_SAMPLE_ROWS = 200


class Benchmark(NamedTuple):
    """The published size of a benchmark, and the lengths of its prompts and answers in tokens.

    Attributes:
        n_tasks: Tasks of a group. `evaluate.limit` holds for each of them.
        n_requests: Requests for each item: one for each choice.
        prompt: Length of a request without shots.
        new: Length of an answer.
        shot: Length of one worked example before the request; 0 where the harness does not let us choose their number.
        n_shots: How many worked examples there are by default.
    """

    n_items: int
    n_tasks: int
    n_requests: int
    prompt: int
    new: int
    shot: int
    n_shots: int


_BENCHMARKS = {
    "mmlu": Benchmark(14_042, 57, 4, prompt=130, new=1, shot=130, n_shots=0),
    "truthfulqa_mc2": Benchmark(817, 1, 7, prompt=170, new=1, shot=0, n_shots=0),  # six examples are in its prompt
    "gsm8k": Benchmark(1_319, 1, 1, prompt=60, new=180, shot=190, n_shots=5),
    "hellaswag": Benchmark(10_042, 1, 4, prompt=110, new=1, shot=110, n_shots=0),
}
_UNKNOWN_BENCHMARK = Benchmark(1_000, 1, 1, prompt=300, new=50, shot=300, n_shots=0)


class WorkEstimate(NamedTuple):
    """The estimate for one kind of work, such as generating or the training of all arms.

    Attributes:
        gpu_hours: None if the size of the model is not known here; `note` says why.
        note: A remark for the reader; may be empty.
    """

    work: str
    rows: int
    prompt_tokens: int
    new_tokens: int
    gpu_hours: float | None
    note: str = ""


class Size(NamedTuple):
    """How many parameters of a model work on each token; None if that is not known, and `unknown` says why."""

    n_parameters: float | None
    unknown: str = ""


class Lengths(NamedTuple):
    """Mean tokens of a sample of training rows, without the chats that the model's template refuses."""

    prompt: float
    gold: float
    n_sampled: int
    n_refused: int


def price(recipe: RunConfig, examples: Path, *, n_missing: int) -> list[WorkEstimate]:
    """The estimates for a run, one for each kind of work.

    Args:
        examples: The table of the ingest step.
        n_missing: How many training rows have no paid answer yet.
    """
    lengths = _lengths(recipe.model, examples)
    n_train, n_test = (_count(examples, split) for split in ("train", "test"))
    size = size_of(recipe.model)
    answer = min(recipe.generate.max_new_tokens, ANSWER_LENGTH * lengths.gold)
    generating = _estimate("generate", n_missing, lengths.prompt, answer, size)
    notes = (generating.note, _refused(lengths), *gpu_remarks(recipe))
    lines = [generating._replace(note="; ".join(filter(None, notes)))]
    if recipe.judge.llm:
        # The probes go with the verdicts on rewrites, too, but are paid for once.
        n_cases = n_train * recipe.generate.n_samples + recipe.judge.llm.audit.n_probes
        lines += _judging(recipe.judge.llm, "judge", n_cases, answer, lengths)
    lines += _for_policies(recipe, lengths, n_train, size)
    lines += [_training(recipe, lengths, n_train, size), _evaluating(recipe, lengths, answer, n_test, size)]
    return [*lines, *_drifting(recipe, lengths, answer, n_test, size)]


def _refused(lengths: Lengths) -> str:
    if not lengths.n_refused:
        return ""
    return f"the chat template refuses {lengths.n_refused} of {lengths.n_sampled} sampled rows: lengths without them"


def _count(examples: Path, split: str) -> int:
    batches = schema.read_batches(examples, schema.EXAMPLES, columns=["split"])
    return sum(batch.column("split").to_pylist().count(split) for batch in batches)


def assumptions() -> list[str]:
    """The assumptions behind the estimates, a sentence each."""
    return [
        f"One H100 ({PEAK_FLOPS / 1e12:.0f} TFLOP/s bf16): {PREFILL_MFU:.0%} of it reading prompts, {DECODE_MFU:.0%} "
        f"writing answers in full batches, {TRAIN_MFU:.0%} training.",
        f"Prompt lengths as in {_SAMPLE_ROWS} training rows; answers {ANSWER_LENGTH:g} times as long as the gold, at "
        "most the limit. Every answer goes to the judge: rules decide some of them first.",
        "Of what is generated, only the missing rows are priced; all other work as if none of it were done.",
        "Benchmarks by their published sizes, others as one task of 1,000 items; prefix caching is left out.",
    ]


def size_of(model: ModelConfig) -> Size:
    """How many parameters work on each token, by the size of the weights. The weights need not be on this machine."""
    try:
        folder = model_folder(model, weights=False)
    except SsrError:
        return Size(None, f"{model.base}: its config is not here, so its size is unknown")
    config = json.loads((folder / "config.json").read_text())
    width = 4 if config.get("dtype", config.get("torch_dtype")) == "float32" else 2
    n_bytes = _bytes_of_weights(folder)
    found = n_bytes / width if n_bytes else _parameters_on_hub(model.base, commit=folder.name)
    if found is None:
        return Size(None, f"{model.base}: its weights are not here, so their size is unknown")
    experts, used = config.get("num_local_experts"), config.get("num_experts_per_tok")
    # Nearly all weights of a mixture of experts are in the experts.
    return Size(found * (used / experts if experts and used else 1))


def _bytes_of_weights(folder: Path) -> int:
    """The size by the index of the shards, or else by the files on this machine; 0 if it is not known."""
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text()).get("metadata", {}).get("total_size") if index.exists() else None
    return int(listed or sum(path.stat().st_size for path in weight_files(folder)))


@lru_cache(maxsize=16)
def _parameters_on_hub(base: str, *, commit: str) -> float | None:
    """The number of parameters by the headers of the weights on the Hub, without a download of the weights."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: its HTTP library's, whichever it is
        HTTPError,
        NotASafetensorsRepoError,
        SafetensorsParsingError,
    )

    try:
        return float(sum(HfApi().get_safetensors_metadata(base, revision=commit).parameter_count.values()))
    except (NotASafetensorsRepoError, SafetensorsParsingError, HTTPError, OSError):
        return None


def _judging(
    llm: LlmJudgeConfig, work: str, n_cases: int, candidate: float, lengths: Lengths
) -> Iterator[WorkEstimate]:
    """An estimate for each judge."""
    new = 1 + (llm.max_reasoning_tokens if llm.reasoning else 0)
    prompt = lengths.prompt + lengths.gold + candidate + _RUBRIC_TOKENS
    for judge in llm.judges:
        name = judge.model.base.rpartition("/")[2]
        yield _estimate(f"{work} {name}", n_cases * llm.repeats, prompt, new, size_of(judge.model))


_RUBRIC_TOKENS = 250
_REWRITE_TOKENS = 60


def _for_policies(recipe: RunConfig, lengths: Lengths, n_rows: int, size: Size) -> Iterator[WorkEstimate]:
    """Work that only some policies need. Every row is counted, although not all of them may need it."""
    if recipe.reads("rewrites"):
        new = min(recipe.rewrite.max_new_tokens, ANSWER_LENGTH * lengths.gold)
        yield _estimate("rewrite", n_rows, lengths.prompt + lengths.gold + _REWRITE_TOKENS, new, size)
        if recipe.judge.llm:
            yield from _judging(recipe.judge.llm, "judge rewrites", n_rows, new, lengths)
    if recipe.reads("likelihoods"):
        n = n_rows * (recipe.generate.n_samples + 1)
        yield _estimate("likelihood", n, lengths.prompt + ANSWER_LENGTH * lengths.gold, 1, size)


def _training(recipe: RunConfig, lengths: Lengths, n_rows: int, size: Size) -> WorkEstimate:
    passes = sum(arm.train_config(recipe.train).epochs for arm in recipe.arms)
    n_tokens = n_rows * passes * (lengths.prompt + ANSWER_LENGTH * lengths.gold)
    flops = FLOPS_FORWARD + FLOPS_LORA + (FLOPS_RECOMPUTED if recipe.train.gradient_checkpointing else 0)
    n = size.n_parameters
    hours = None if n is None else n_tokens * n * flops / (PEAK_FLOPS * TRAIN_MFU) / 3600
    return WorkEstimate(
        f"train {len(recipe.arms)} arms", round(n_rows * passes), round(n_tokens), 0, hours, size.unknown
    )


def _evaluating(recipe: RunConfig, lengths: Lengths, answer: float, n_test: int, size: Size) -> WorkEstimate:
    n_models = 1 + len(recipe.arms)
    n_task = min(n_test, recipe.evaluate.max_task_rows or n_test)
    rows, prompt, new = float(n_task), n_task * lengths.prompt, n_task * answer
    for name in recipe.evaluate.benchmarks:
        n, n_prompt, n_new = _asked_by(_BENCHMARKS.get(name, _UNKNOWN_BENCHMARK), recipe.evaluate)
        rows, prompt, new = rows + n, prompt + n_prompt, new + n_new
    n_rows = max(1, rows)
    return _estimate(f"evaluate {n_models} models", round(rows * n_models), prompt / n_rows, new / n_rows, size)


def _asked_by(benchmark: Benchmark, config: EvaluateConfig) -> tuple[int, int, int]:
    """How many requests a benchmark has, and the prompt and answer tokens of all of them together."""
    # An upper bound for a group: its small tasks may have fewer items than the limit.
    n_items = min(benchmark.n_items, config.limit * benchmark.n_tasks) if config.limit else benchmark.n_items
    n_shots = benchmark.n_shots if config.num_fewshot is None else config.num_fewshot
    n = n_items * benchmark.n_requests
    return n, n * (benchmark.prompt + n_shots * benchmark.shot), n * benchmark.new


def _drifting(recipe: RunConfig, lengths: Lengths, answer: float, n_test: int, size: Size) -> Iterator[WorkEstimate]:
    """The base draws an answer to each prompt, and every model says how probable that answer is."""
    n, n_models = min(n_test, recipe.evaluate.drift_rows), 1 + len(recipe.arms)
    if n:
        n_asked = 1 + n_models
        prompt, new = lengths.prompt + answer * n_models / n_asked, (answer + n_models) / n_asked
        yield _estimate("drift", n * n_asked, prompt, new, size)


def _estimate(work: str, n_rows: int, prompt: float, new: float, size: Size) -> WorkEstimate:
    n_prompt, n_new = n_rows * prompt, n_rows * new
    flops, n = FLOPS_FORWARD * (n_prompt / PREFILL_MFU + n_new / DECODE_MFU), size.n_parameters
    hours = None if n is None else flops * n / PEAK_FLOPS / 3600
    return WorkEstimate(work, n_rows, round(n_prompt), round(n_new), hours, size.unknown)


def _lengths(model: ModelConfig, examples: Path) -> Lengths:
    reader = ChatTokenizer(load_tokenizer(model))
    batches = schema.read_batches(examples, schema.EXAMPLES, columns=["split", "messages", "golds"])
    rows = (row for batch in batches for row in batch.to_pylist() if row["split"] == "train")
    n_sampled, pairs = 0, []
    for row in islice(rows, _SAMPLE_ROWS):
        n_sampled += 1
        with suppress(RefusedChat):
            pairs.append(reader.with_answer(row["messages"], row["golds"][0]))
    n = max(1, len(pairs))
    prompt, gold = (sum(len(pair[i]) for pair in pairs) / n for i in (0, 1))
    return Lengths(prompt, gold, n_sampled, n_sampled - len(pairs))
