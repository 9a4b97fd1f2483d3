"""The train step: the stages of fine-tuning, top to bottom."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

from tasks import schema, work
from tasks.config import ModelConfig, TrainConfig
from tasks.models import best_device, load_tokenizer, model_digest, template_digest
from tasks.process import one_process_per_gpu
from tasks.step import Context, step
from tasks.store import Ref
from tasks.train.rows import load_rows
from tasks.train.trainer import CHECKPOINTS, build_trainer, last_checkpoint, n_steps_of

ADAPTER = "adapter"


@step(version=1, outside=lambda *, model, config: {"model": model_digest(model)}, launcher=one_process_per_gpu)
def train(ctx: Context, *, model: ModelConfig, config: TrainConfig, targets: Ref, start: Ref | None = None) -> None:
    """Fine-tune a LoRA adapter on the targets; writes `adapter/` and `metrics.parquet`.

    Goes on from the last complete checkpoint of an earlier try with the same fingerprint, on any machine that shares
    the store. The base weights are never modified.

    Args:
        start: An adapter to go on from; without any target it is handed on as it is. None: a fresh one.
    """
    if start is not None and not schema.count_rows(ctx.path(targets, "targets.parquet"), schema.TARGETS):
        _hand_on(ctx, start)
        return
    tokenizer = load_tokenizer(model)
    rows = load_rows(ctx.path(targets, "targets.parquet"), tokenizer, config)
    folder = ctx.path(start, ADAPTER) if start else None
    keep = functools.partial(work.push, ctx.store, ctx.ref, only_newest=True)
    trainer = build_trainer(
        model, config, tokenizer, rows.dataset, start=folder, work=ctx.work, progress=ctx.progress, saved=keep
    )
    with trainer.args.main_process_first():
        checkpoint = _checkpoint(ctx)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if not trainer.is_world_process_zero():
        return
    trainer.model.save_pretrained(ctx.out / ADAPTER, safe_serialization=True)
    # PEFT's model card names the local path of the base model; the manifest says what it is by digest.
    (ctx.out / ADAPTER / "README.md").unlink(missing_ok=True)
    with schema.TableWriter(ctx.out / "metrics.parquet", schema.METRICS) as writer:
        writer.write([_metric(log) for log in trainer.state.log_history if "loss" in log])
    ctx.account(rows.rows_in, len(rows.dataset), rows.dropped)
    ctx.counts |= {
        "optimiser_steps": trainer.state.global_step,
        "trained_tokens_per_epoch": rows.n_trained_tokens,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    }
    ctx.facts |= {"resumed": checkpoint is not None, "template": template_digest(tokenizer), "device": best_device()}


def _hand_on(ctx: Context, start: Ref) -> None:
    """The adapter as it was: there is no new row to train on."""
    if os.environ.get("RANK", "0") != "0":  # one process a GPU: the first writes
        return
    shutil.copytree(ctx.path(start, ADAPTER), ctx.out / ADAPTER, dirs_exist_ok=True)
    with schema.TableWriter(ctx.out / "metrics.parquet", schema.METRICS):
        pass
    ctx.account(0, 0, {})
    ctx.counts |= {"optimiser_steps": 0, "trained_tokens_per_epoch": 0}


def _checkpoint(ctx: Context) -> Path | None:
    """The newest complete checkpoint, of this machine or of another."""
    here = last_checkpoint(ctx.work)
    elsewhere = max(work.pushed(ctx.store, ctx.ref, CHECKPOINTS), key=n_steps_of, default=None)
    if elsewhere is None or (here is not None and n_steps_of(here.name) >= n_steps_of(elsewhere)):
        return here
    work.pull(ctx.store, ctx.ref, elsewhere)
    return last_checkpoint(ctx.work)


def _metric(log: dict[str, float]) -> dict[str, object]:
    return {
        "step": int(log["step"]), "epoch": log["epoch"], "loss": float(log["loss"]),
        "learning_rate": log["learning_rate"], "grad_norm": log.get("grad_norm"),
    }  # fmt: skip
