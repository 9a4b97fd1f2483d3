"""The train step: the stages of fine-tuning, top to bottom."""

from __future__ import annotations

from tasks import schema
from tasks.config import ModelConfig, TrainConfig
from tasks.models import best_device, load_tokenizer, model_digest, template_digest
from tasks.process import one_process_per_gpu
from tasks.step import Context, step
from tasks.store import Ref
from tasks.train.rows import load_rows
from tasks.train.trainer import build_trainer, last_checkpoint

ADAPTER = "adapter"


@step(version=1, outside=lambda *, model, config: {"model": model_digest(model)}, launcher=one_process_per_gpu)
def train(ctx: Context, *, model: ModelConfig, config: TrainConfig, targets: Ref) -> None:
    """Fine-tune a LoRA adapter on the targets; writes `adapter/` and `metrics.parquet`.

    Goes on from the last complete checkpoint of an earlier try with the same fingerprint. The base weights are never
    modified.
    """
    tokenizer = load_tokenizer(model)
    rows = load_rows(ctx.path(targets, "targets.parquet"), tokenizer, config)
    trainer = build_trainer(model, config, tokenizer, rows.dataset, work=ctx.work, progress=ctx.progress)
    checkpoint = last_checkpoint(ctx.work)
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


def _metric(log: dict[str, float]) -> dict[str, object]:
    return {
        "step": int(log["step"]), "epoch": log["epoch"], "loss": float(log["loss"]),
        "learning_rate": log["learning_rate"], "grad_norm": log.get("grad_norm"),
    }  # fmt: skip
