"""The train step: the stages of fine-tuning, top to bottom."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.artifacts import unfinished
from tasks.artifacts.store import Ref
from tasks.config import ModelConfig, TrainConfig
from tasks.errors import StepError
from tasks.models import best_device, load_tokenizer, model_digest, template_digest
from tasks.running.process import one_process_per_gpu
from tasks.running.step import Context, step
from tasks.tables import schema
from tasks.train.rows import load_rows, write_rows
from tasks.train.trainer import (
    CHECKPOINTS,
    adapter_weights,
    build_trainer,
    last_checkpoint,
    n_steps_of,
    training_arguments,
)

if TYPE_CHECKING:
    from trl import SFTTrainer

ADAPTER = "adapter"


def _launcher(*, model: ModelConfig, config: TrainConfig) -> list[str]:
    name = "data_parallel" if config.sharding == "none" else config.sharding
    return one_process_per_gpu(Path(__file__).parent / "launch" / f"{name}.yaml")


@step(
    version=2, pool="gpu", table=schema.METRICS, outside=lambda *, model, config: {"model": model_digest(model)},
    launcher=_launcher,
)  # fmt: skip
def train(ctx: Context, *, model: ModelConfig, config: TrainConfig, targets: Ref, start: Ref | None = None) -> None:
    """Fine-tune a LoRA adapter on the targets; writes `adapter/` and `metrics.parquet`.

    Resumes from the last complete checkpoint of an earlier attempt with the same fingerprint, made on this machine or
    on another one that shares the store. The base weights are never modified.

    Args:
        start: The adapter to continue from; without any target it is published unchanged. None: a new adapter.
    """
    if start is not None and not schema.count_rows(ctx.path(targets, "targets.parquet"), schema.TARGETS):
        _publish_unchanged(ctx, start)
        return
    tokenizer = load_tokenizer(model)
    arguments = training_arguments(model, config, work=ctx.work)
    tokenized = ctx.work / "rows.parquet"
    with arguments.main_process_first():
        if arguments.process_index == 0:
            write_rows(ctx.path(targets, "targets.parquet"), tokenizer, config, into=tokenized)
            _fetch_checkpoint(ctx)
    rows = load_rows(tokenized)
    folder = ctx.path(start, ADAPTER) if start else None
    keep = functools.partial(unfinished.push, ctx.store, ctx.ref, only_newest=True)
    trainer = build_trainer(
        model, config, tokenizer, rows.dataset, arguments=arguments, start=folder, work=ctx.work,
        progress=ctx.progress, saved=keep,
    )  # fmt: skip
    checkpoint = last_checkpoint(ctx.work)
    _run(trainer, checkpoint, config)
    weights = adapter_weights(trainer.model)
    if not trainer.is_world_process_zero():
        return
    trainer.model.save_pretrained(ctx.out / ADAPTER, state_dict=weights)
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


def _publish_unchanged(ctx: Context, start: Ref) -> None:
    """Publish the adapter that training would continue from: there is no new row to train on."""
    if os.environ.get("RANK", "0") != "0":  # there is one process per GPU, and the first one writes
        return
    shutil.copytree(ctx.path(start, ADAPTER), ctx.out / ADAPTER, dirs_exist_ok=True)
    with schema.TableWriter(ctx.out / "metrics.parquet", schema.METRICS):
        pass
    ctx.account(0, 0, {})
    ctx.counts |= {"optimiser_steps": 0, "trained_tokens_per_epoch": 0}


def _fetch_checkpoint(ctx: Context) -> None:
    """Fetch the checkpoint that another machine pushed, if it is newer than the newest one of this machine."""
    here = last_checkpoint(ctx.work)
    elsewhere = max(unfinished.pushed(ctx.store, ctx.ref, CHECKPOINTS), key=n_steps_of, default=None)
    if elsewhere is not None and (here is None or n_steps_of(here.name) < n_steps_of(elsewhere)):
        unfinished.pull(ctx.store, ctx.ref, elsewhere)


def _run(trainer: SFTTrainer, checkpoint: Path | None, config: TrainConfig) -> None:
    from torch import OutOfMemoryError

    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except OutOfMemoryError as error:
        n_rows, said = trainer.args.per_device_train_batch_size, str(error).partition("\n")[0]
        less = (
            "Set train.gradient_checkpointing=true; checkpoints are kept." if not config.gradient_checkpointing
            else f"Set train.micro_batch_size={n_rows // 2}; checkpoints are kept." if n_rows > 1
            else "Set train.load_in_4bit=true, train.sharding=fsdp on several GPUs, or a lower train.max_length."
        )  # fmt: skip
        raise StepError(
            f"train: the GPU ran out of memory in a pass of {n_rows} rows of up to {config.max_length} tokens. "
            f"{less} ({said})"
        ) from error


def _metric(log: dict[str, float]) -> dict[str, object]:
    return {
        "step": int(log["step"]), "epoch": log["epoch"], "loss": float(log["loss"]),
        "learning_rate": log["learning_rate"], "grad_norm": log.get("grad_norm"),
    }  # fmt: skip
