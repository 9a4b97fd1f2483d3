"""TRL's SFTTrainer with a PEFT LoRA adapter, as the recipe says, and checkpoints that a killed run can resume from."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import ModelConfig, TrainConfig
from tasks.errors import DataError
from tasks.models import best_device, load_model, torch_dtype
from tasks.running.progress import Progress

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig, SFTTrainer

CHECKPOINTS = "checkpoints"  # below the work folder
COMPLETE = "complete"  # written into a checkpoint folder after everything else


def training_arguments(model_config: ModelConfig, config: TrainConfig, *, work: Path) -> SFTConfig:
    """The `train` section as arguments of TRL, without those in steps, which `build_trainer` adds.

    Creating them joins the group of the training's processes.
    """
    from trl import SFTConfig

    rows_a_pass, n_passes = split_batch(config, n_devices=int(os.environ.get("WORLD_SIZE", "1")))
    on_gpu = best_device() == "cuda"
    return SFTConfig(
        # The batch.
        per_device_train_batch_size=rows_a_pass, gradient_accumulation_steps=n_passes,
        max_length=config.max_length, packing=config.packing,
        # What is learned.
        num_train_epochs=config.epochs, seed=config.seed, data_seed=config.seed,
        learning_rate=config.learning_rate, lr_scheduler_type=config.scheduler,
        weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm,
        # The device.
        use_cpu=best_device() == "cpu", dataloader_pin_memory=on_gpu, fp16=False,
        bf16=on_gpu and str(torch_dtype(model_config)) == "torch.bfloat16",
        gradient_checkpointing=config.gradient_checkpointing,
        ddp_find_unused_parameters=False,  # there are none, and the search costs a pass over the graph
        # What is written.
        output_dir=str(work / CHECKPOINTS), save_strategy="steps", save_total_limit=2,
        logging_first_step=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip


def build_trainer(
    model_config: ModelConfig, config: TrainConfig, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, *,
    arguments: SFTConfig, start: Path | None, work: Path, progress: Progress, saved: Callable[[str], object],
) -> SFTTrainer:  # fmt: skip
    """TRL's trainer with a LoRA adapter.

    Args:
        dataset: `input_ids` and `labels` a row.
        start: The adapter to continue from; None: a new one.
        saved: Called with the name of each complete checkpoint, relative to `work`.
    """
    from accelerate import PartialState
    from transformers import TrainerCallback
    from trl import SFTTrainer

    class Reporting(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
        """Reports progress to the step, and marks a checkpoint as complete."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs and state.is_world_process_zero:
                progress(state.global_step, state.max_steps, f"loss {float(logs['loss']):.3f}")

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            PartialState().wait_for_everyone()  # each process writes a file of its own
            if state.is_world_process_zero:
                name = f"{CHECKPOINTS}/checkpoint-{state.global_step}"
                (work / name / "training_args.bin").unlink(missing_ok=True)  # a pickle, and nothing reads it
                (work / name / COMPLETE).touch()
                saved(name)

    # A model that is to be sharded fits on no single device, so it is loaded on the CPU.
    is_sharded = config.sharding == "fsdp" and arguments.world_size > 1
    model = load_model(model_config, device="cpu" if is_sharded else None, **_quantisation(config))
    trainer = SFTTrainer(
        model=_trainable(model, start, config) if start else model, peft_config=None if start else _lora(config),
        args=arguments, train_dataset=dataset, processing_class=tokenizer, callbacks=[Reporting()],
    )  # fmt: skip
    n_sequences = len(trainer.train_dataset)  # with packing, fewer than rows
    n_steps = max(1, int(n_sequences * config.epochs / config.batch_size))
    arguments.warmup_steps = round(config.warmup_share * n_steps)
    arguments.logging_steps = max(1, n_steps // 50)
    # A resumed run loses the losses since its last log line, so a checkpoint is saved where a line is logged.
    arguments.save_steps = math.ceil(config.checkpoint_steps / arguments.logging_steps) * arguments.logging_steps
    return trainer


def adapter_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """The trained weights, gathered on the CPU of the first process.

    Every process must call this, because each may hold a shard.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    whole = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights: dict[str, torch.Tensor] = get_model_state_dict(model, options=whole)
    return weights


def split_batch(config: TrainConfig, *, n_devices: int) -> tuple[int, int]:
    """Rows per forward pass on a device, and passes per optimiser step: over all devices exactly one batch.

    Raises:
        DataError: The devices cannot share a batch evenly.
    """
    rows, left = divmod(config.batch_size, n_devices)
    if left:
        raise DataError(
            f"train.batch_size={config.batch_size}: {n_devices} devices cannot share it evenly. Set a multiple of "
            f"{n_devices}, or give fewer devices with CUDA_VISIBLE_DEVICES."
        )
    # TRL concatenates the packed sequences of a pass, and attention over several would cost the square of their number.
    at_most = 1 if config.packing else min(config.micro_batch_size, rows)
    rows_a_pass = max(n for n in range(1, at_most + 1) if rows % n == 0)
    return rows_a_pass, rows // rows_a_pass


def _trainable(model: PreTrainedModel, start: Path, config: TrainConfig) -> PeftModel:
    """The model with the adapter to continue from.

    Raises:
        DataError: The recipe asks for an adapter of another shape, and the shape cannot be changed.
    """
    from peft import PeftConfig, PeftModel

    lora, wanted = PeftConfig.from_pretrained(start), _lora(config)
    has: dict[str, Any] = {"lora_rank": lora.r, "lora_alpha": lora.lora_alpha}  # by setting: Any: as the recipe has it
    if wanted.target_modules != "all-linear" and set(wanted.target_modules) != set(lora.target_modules):
        has["target_modules"] = ", ".join(sorted(lora.target_modules))
    for setting, found in has.items():
        if found != getattr(config, setting):
            raise DataError(
                f"train.{setting}={getattr(config, setting)}: the promoted adapter that training goes on from has "
                f"{found}. Set it to that, or promotion.train_on to all."
            )
    lora.lora_dropout = config.lora_dropout
    return PeftModel.from_pretrained(model, start, is_trainable=True, config=lora)


def _lora(config: TrainConfig) -> LoraConfig:
    from peft import LoraConfig

    modules = config.target_modules
    return LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, task_type="CAUSAL_LM",
        target_modules=modules if modules == "all-linear" else [m.strip() for m in modules.split(",")],
    )  # fmt: skip


def _quantisation(config: TrainConfig) -> dict[str, Any]:  # Any: keyword arguments of from_pretrained
    if not config.load_in_4bit:
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    if not torch.cuda.is_available():
        raise DataError(
            "train.load_in_4bit needs CUDA and bitsandbytes; there is no CUDA device here. Set it to false."
        )
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )  # fmt: skip
    return {"quantization_config": settings}


def last_checkpoint(work: Path) -> Path | None:
    """The newest complete checkpoint. Removes incomplete ones, which a killed run leaves behind."""
    found = sorted((work / CHECKPOINTS).glob("checkpoint-*"), key=lambda folder: n_steps_of(folder.name))
    for folder in found:
        if not (folder / COMPLETE).exists():
            shutil.rmtree(folder)
    complete = [folder for folder in found if folder.exists()]
    return complete[-1] if complete else None


def n_steps_of(checkpoint: str) -> int:
    """The number of optimiser steps that a checkpoint stands for, read from its name."""
    return int(checkpoint.rpartition("-")[2])
