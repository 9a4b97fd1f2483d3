"""`ssr lab build`: train the base model, check its gates, write it as it is shipped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tasks.errors import StepError
from tasks.lab import gates
from tasks.lab.pretrain import PretrainConfig, pretrain
from tasks.lab.tokenizer import build_tokenizer

MAX_BYTES = 8_000_000


def build(
    out: Path, work: Path, *, compile_model: bool = True,
    on_progress: Callable[[int, int, float, float], None] = lambda step, total, loss, speed: None,
) -> dict[str, float]:  # fmt: skip
    """Train in `work` (resumably), write to `out`, return the share of every probe that passes.

    Args:
        on_progress: Called with (step, steps in all, loss, tokens per second).

    Raises:
        StepError: A gate is missed or the weights are too large; nothing is written.
    """
    import torch

    config = PretrainConfig()
    model = pretrain(
        work, config=config, compile_model=compile_model,
        on_progress=lambda step, loss, speed: on_progress(step, config.n_steps, loss, speed),
    )  # fmt: skip
    # As it will be used: what bfloat16 loses must not cost a gate.
    model = model.to(torch.bfloat16).to(torch.float32).eval()
    tokenizer = build_tokenizer()
    figures = gates.measure(gates.answerer(model, tokenizer), n=400)
    _check(figures)
    staged = work / "model"
    shutil.rmtree(staged, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(staged, safe_serialization=True)
    tokenizer.save_pretrained(staged)
    built = {"config": asdict(config), "probes": {name: round(share, 4) for name, share in figures.items()}}
    (staged / "built.json").write_text(json.dumps(built, indent=2) + "\n")
    size = (staged / "model.safetensors").stat().st_size
    if size > MAX_BYTES:
        raise StepError(f"lab build: the weights take {size:,} bytes, more than {MAX_BYTES:,}")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(staged, out)
    return figures


def _check(figures: dict[str, float]) -> None:
    knows = gates.yes_no_accuracy(figures)
    recalls = gates.recall(figures)
    if knows < gates.YES_NO_GATE or recalls < gates.RECALL_GATE:
        raise StepError(
            f"lab build: a gate is missed: yes/no {knows:.3f} (at least {gates.YES_NO_GATE}), "
            f"recall {recalls:.3f} (at least {gates.RECALL_GATE}). Train longer: PretrainConfig.n_steps."
        )
