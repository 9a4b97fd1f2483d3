"""What a run would cost, before any GPU is touched: rows, tokens and GPU hours, with what was assumed.

An estimate to decide by, not a promise: lengths are measured on a sample of the training rows, throughput is assumed.
Upper bounds where the true number hangs on a step not yet run (which answers the rules leave to a judge).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tasks import schema
from tasks.config import ModelConfig, RunConfig
from tasks.engines.prompts import PromptReader
from tasks.errors import SsrError
from tasks.models import load_tokenizer, model_folder

PEAK_FLOPS = 989e12  # H100 SXM, bf16, dense
PREFILL_MFU, DECODE_MFU, TRAIN_MFU = 0.40, 0.12, 0.35
FLOPS_FORWARD, FLOPS_LORA, FLOPS_RECOMPUTED = 2, 4, 2  # a parameter and token; LoRA needs no gradients of the weights
ANSWER_LENGTH = 2.0  # of the base's answers, in lengths of the gold answer
_SAMPLE_ROWS = 200
# Requests, prompt tokens and answer tokens a request, at the harness's defaults (0-shot; gsm8k 5-shot).
_BENCHMARKS = {
    "mmlu": (14_042 * 4, 130, 1), "truthfulqa_mc2": (817 * 7, 90, 1), "gsm8k": (1_319, 1_000, 180),
    "hellaswag": (10_042 * 4, 110, 1),
}  # fmt: skip
_UNKNOWN_BENCHMARK = (1_000, 300, 50)


class Line(NamedTuple):
    """One kind of work. `gpu_hours` is None where the model's size is not known here."""

    work: str
    rows: int
    prompt_tokens: int
    new_tokens: int
    gpu_hours: float | None


class Lengths(NamedTuple):
    """Mean tokens of a training row, on a sample."""

    prompt: float
    gold: float


def price(recipe: RunConfig, examples: Path, *, n_missing: int) -> list[Line]:
    """The work of a run, a line a kind of it.

    Args:
        n_missing: Training rows that nobody has generated yet.
    """
    lengths = _lengths(recipe.model, examples)
    n_train, n_test = (_count(examples, split) for split in ("train", "test"))
    size = parameters(recipe.model)
    answer = min(recipe.generate.max_new_tokens, ANSWER_LENGTH * lengths.gold)
    lines = [_line("generate", n_missing, lengths.prompt, answer, size)]
    lines += _judging(recipe, lengths, answer, n_missing)
    lines += _more_asked(recipe, lengths, n_train, size)
    lines.append(_training(recipe, lengths, n_train, size))
    lines.append(_evaluating(recipe, lengths, answer, n_test, size))
    lines += _drifting(recipe, lengths, answer, n_test, size)
    return lines


def _count(examples: Path, split: str) -> int:
    batches = schema.read_batches(examples, schema.EXAMPLES, columns=["split"])
    return sum(batch.column("split").to_pylist().count(split) for batch in batches)


def assumptions() -> list[str]:
    """What the figures stand on, a sentence each."""
    return [
        f"One H100 ({PEAK_FLOPS / 1e12:.0f} TFLOP/s bf16): {PREFILL_MFU:.0%} of it reading prompts, {DECODE_MFU:.0%} "
        f"writing answers in full batches, {TRAIN_MFU:.0%} training.",
        f"Prompt lengths as in {_SAMPLE_ROWS} training rows; answers {ANSWER_LENGTH:g} times as long as the gold, at "
        "most the limit. Every answer goes to the judge: rules decide some of them first.",
        "Benchmarks at the harness's defaults and their published sizes; prefix caching is left out.",
    ]


def parameters(model: ModelConfig) -> float | None:
    """Parameters that work on a token, from the size of the weights; None where the model is not here."""
    try:
        folder = model_folder(model)
    except SsrError:
        return None
    config = json.loads((folder / "config.json").read_text())
    n_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    width = 4 if config.get("dtype", config.get("torch_dtype")) == "float32" else 2
    experts, used = config.get("num_local_experts"), config.get("num_experts_per_tok")
    # Nearly all of a mixture's weights are its experts.
    return n_bytes / width * (used / experts if experts and used else 1)


def _judging(recipe: RunConfig, lengths: Lengths, answer: float, n_rows: int) -> Iterator[Line]:
    if recipe.judge.llm is None:
        return
    llm = recipe.judge.llm
    for judge in llm.judges:
        n = (n_rows + llm.audit.n_probes) * llm.repeats
        new = 1 + (llm.max_reasoning_tokens if llm.reasoning else 0)
        prompt = lengths.prompt + lengths.gold + answer + _RUBRIC_TOKENS
        yield _line(f"judge {judge.model.base.rpartition('/')[2]}", n, prompt, new, parameters(judge.model))


_RUBRIC_TOKENS = 250
_REWRITE_TOKENS = 60


def _more_asked(recipe: RunConfig, lengths: Lengths, n_rows: int, size: float | None) -> Iterator[Line]:
    """What only some policies ask of the base model: every row is counted, though only some may need it."""
    if recipe.reads("rewrites"):
        new = min(recipe.rewrite.max_new_tokens, ANSWER_LENGTH * lengths.gold)
        yield _line("rewrite", n_rows, lengths.prompt + lengths.gold + _REWRITE_TOKENS, new, size)
    if recipe.reads("likelihoods"):
        n = n_rows * (recipe.generate.n_samples + 1)
        yield _line("likelihood", n, lengths.prompt + ANSWER_LENGTH * lengths.gold, 1, size)


def _training(recipe: RunConfig, lengths: Lengths, n_rows: int, size: float | None) -> Line:
    passes = sum(arm.train_config(recipe.train).epochs for arm in recipe.arms)
    n_tokens = n_rows * passes * (lengths.prompt + ANSWER_LENGTH * lengths.gold)
    flops = FLOPS_FORWARD + FLOPS_LORA + (FLOPS_RECOMPUTED if recipe.train.gradient_checkpointing else 0)
    hours = None if size is None else n_tokens * size * flops / (PEAK_FLOPS * TRAIN_MFU) / 3600
    return Line(f"train {len(recipe.arms)} arms", round(n_rows * passes), round(n_tokens), 0, hours)


def _evaluating(recipe: RunConfig, lengths: Lengths, answer: float, n_test: int, size: float | None) -> Line:
    n_models = 1 + len(recipe.arms)
    n_task = min(n_test, recipe.evaluate.max_task_rows or n_test)
    rows, prompt, new = float(n_task), n_task * lengths.prompt, n_task * answer
    for name in recipe.evaluate.benchmarks:
        requests, prompt_tokens, new_tokens = _BENCHMARKS.get(name, _UNKNOWN_BENCHMARK)
        if recipe.evaluate.limit and name in _BENCHMARKS:
            requests = min(requests, recipe.evaluate.limit * 4)
        rows, prompt, new = rows + requests, prompt + requests * prompt_tokens, new + requests * new_tokens
    return _line(f"evaluate {n_models} models", round(rows * n_models), prompt / rows, new / rows, size)


def _drifting(recipe: RunConfig, lengths: Lengths, answer: float, n_test: int, size: float | None) -> Iterator[Line]:
    """The base draws an answer to each prompt, and every model is asked how probable it is."""
    n, n_models = min(n_test, recipe.evaluate.drift_rows), 1 + len(recipe.arms)
    if n:
        n_asked = 1 + n_models
        prompt, new = lengths.prompt + answer * n_models / n_asked, (answer + n_models) / n_asked
        yield _line("drift", n * n_asked, prompt, new, size)


def _line(work: str, n_rows: int, prompt: float, new: float, size: float | None) -> Line:
    n_prompt, n_new = n_rows * prompt, n_rows * new
    hours = None
    if size is not None:
        seconds = FLOPS_FORWARD * size * (n_prompt / PREFILL_MFU + n_new / DECODE_MFU) / PEAK_FLOPS
        hours = seconds / 3600
    return Line(work, n_rows, round(n_prompt), round(n_new), hours)


def _lengths(model: ModelConfig, examples: Path) -> Lengths:
    reader = PromptReader(load_tokenizer(model))
    batches = schema.read_batches(examples, schema.EXAMPLES, columns=["split", "messages", "golds"])
    rows = (row for batch in batches for row in batch.to_pylist() if row["split"] == "train")
    pairs = [reader.with_answer(row["messages"], row["golds"][0]) for row in islice(rows, _SAMPLE_ROWS)]
    n = max(1, len(pairs))
    return Lengths(sum(len(prompt) for prompt, _ in pairs) / n, sum(len(gold) for _, gold in pairs) / n)
