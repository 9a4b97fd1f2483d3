"""`ssr lab build`: train the lab's two models, check what they must be able to do, write them as they are shipped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tasks.errors import StepError
from tasks.lab import corpus, gates, judging
from tasks.lab.pretrain import ChatSource, PretrainConfig, pretrain
from tasks.lab.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_BYTES = 8_000_000
JUDGE = PretrainConfig(
    n_steps=1400, first_horizon=1400, restarts=((1000, 2e-3),),
    hidden_size=128, n_layers=4, n_heads=2, intermediate_size=352,
)  # fmt: skip

Figures = dict[str, float]
Answer = Callable[[list[str], int], list[str]]
OnProgress = Callable[[int, int, float, float], None]


class Recipe(NamedTuple):
    """How one of the lab's models is made.

    Attributes:
        measure: The share of passed probes by their sort.
        gated: From those figures, what decides whether the model is shipped, each with its gate: the least share.
    """

    config: PretrainConfig
    source: ChatSource
    tokenizer: PreTrainedTokenizerFast
    measure: Callable[[Answer], Figures]
    gated: Callable[[Figures], dict[str, tuple[float, float]]]


def base_recipe() -> Recipe:
    """The model that is fine-tuned."""
    measure = partial(gates.measure, n=400)
    return Recipe(PretrainConfig(), corpus.chats, build_tokenizer(), measure, gates.gated)


def judge_recipe() -> Recipe:
    """The model that judges its answers."""
    return Recipe(JUDGE, judging.chats, build_tokenizer(judging.vocabulary()), judging.accuracy, judging.gated)


def build(
    recipe: Recipe, out: Path, work: Path, *, compile_model: bool = True,
    on_progress: OnProgress = lambda step, total, loss, speed: None,
) -> Figures:  # fmt: skip
    """Train in `work`, where an interrupted build resumes; write the model to `out`; return the share of passed probes.

    Args:
        on_progress: Called with (step, steps in all, loss, tokens per second).

    Raises:
        StepError: A gate is missed or the weights are too large; nothing is written.
    """
    import torch

    model = pretrain(
        work, config=recipe.config, tokenizer=recipe.tokenizer, source=recipe.source, compile_model=compile_model,
        on_progress=lambda step, loss, speed: on_progress(step, recipe.config.n_steps, loss, speed),
    )  # fmt: skip
    # As it will be used: what bfloat16 loses must not cost a gate.
    model = model.to(torch.bfloat16).to(torch.float32).eval()
    figures = recipe.measure(gates.answerer(model, recipe.tokenizer))
    gated = recipe.gated(figures)
    if any(share < gate for share, gate in gated.values()):
        shown = ", ".join(f"{name} {share:.3f} (at least {gate})" for name, (share, gate) in gated.items())
        raise StepError(f"lab build: a gate is missed: {shown}. Train longer: n_steps in its PretrainConfig.")
    staged = work / "model"
    shutil.rmtree(staged, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(staged, safe_serialization=True)
    recipe.tokenizer.save_pretrained(staged)
    built = {"config": asdict(recipe.config), "probes": {name: round(share, 4) for name, share in figures.items()}}
    (staged / "built.json").write_text(json.dumps(built, indent=2) + "\n")
    size = (staged / "model.safetensors").stat().st_size
    if size > MAX_BYTES:
        raise StepError(f"lab build: the weights take {size:,} bytes, more than {MAX_BYTES:,}")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(staged, out)
    return figures
