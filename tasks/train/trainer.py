"""TRL's SFTTrainer with a PEFT LoRA adapter, as the recipe says; checkpoints that a killed run can trust."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import ModelConfig, TrainConfig
from tasks.errors import DataError
from tasks.models import best_device, load_model, torch_dtype
from tasks.progress import Progress

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerBase
    from trl import SFTTrainer

COMPLETE = "complete"  # written into a checkpoint folder after everything else


def build_trainer(
    model_config: ModelConfig,
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    *,
    work: Path,
    progress: Progress,
) -> SFTTrainer:
    """TRL's trainer with a LoRA adapter; loss on the completion alone."""
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Tell(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
        """Progress to the step, and the mark of a complete checkpoint."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs and state.is_world_process_zero:
                progress(state.global_step, state.max_steps, f"loss {float(logs['loss']):.3f}")

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                (work / "checkpoints" / f"checkpoint-{state.global_step}" / COMPLETE).touch()

    n_devices = int(os.environ.get("WORLD_SIZE", "1"))
    micro = min(config.micro_batch_size, config.batch_size)
    n_steps = max(1, int(len(dataset) * config.epochs / config.batch_size))
    log_every = max(1, n_steps // 50)
    on_gpu = best_device() == "cuda"
    arguments = SFTConfig(
        output_dir=str(work / "checkpoints"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=max(1, config.batch_size // (micro * n_devices)),
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.scheduler,
        warmup_steps=round(config.warmup_share * n_steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        data_seed=config.seed,
        max_length=config.max_length,
        packing=config.packing,
        completion_only_loss=True,
        gradient_checkpointing=config.gradient_checkpointing,
        bf16=on_gpu and str(torch_dtype(model_config)) == "torch.bfloat16",
        fp16=False,
        use_cpu=best_device() == "cpu",
        logging_steps=log_every,
        logging_first_step=True,
        save_strategy="steps",
        # A resumed run forgets the losses since its last log line: checkpoints and log lines must fall together.
        save_steps=math.ceil(config.checkpoint_steps / log_every) * log_every,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu,
    )
    return SFTTrainer(
        model=load_model(model_config, **_quantisation(config)),
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=_lora(config),
        callbacks=[Tell()],
    )


def _lora(config: TrainConfig) -> LoraConfig:
    from peft import LoraConfig

    modules = config.target_modules
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=modules if modules == "all-linear" else [m.strip() for m in modules.split(",")],
        task_type="CAUSAL_LM",
    )


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
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )
    return {"quantization_config": settings}


def last_checkpoint(work: Path) -> Path | None:
    """The newest complete checkpoint; a half-written one, left by a kill, is removed."""
    found = sorted((work / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    for folder in found:
        if not (folder / COMPLETE).exists():
            shutil.rmtree(folder)
    complete = [folder for folder in found if folder.exists()]
    return complete[-1] if complete else None
