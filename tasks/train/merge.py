"""An adapter merged into its base model: a model folder that any server loads without PEFT."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.artifacts.files import share_as
from tasks.config import ModelConfig
from tasks.errors import ConfigError
from tasks.models import load_tokenizer, model_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def merge(model: ModelConfig, adapter: Path, out: Path) -> None:
    """Write base and adapter as one model in safetensors, with the tokenizer and its chat template.

    The folder is created atomically. Merging is done on the CPU in the dtype of the base's weights, and needs as much
    memory as they take. An adapter that was trained on a 4-bit base is merged into the full-precision one.

    Raises:
        ConfigError: `out` exists already.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if out.exists():
        raise ConfigError(f"{out}: exists already. Give a path that does not exist.")
    base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        model_folder(model), dtype="auto", use_safetensors=True
    )
    dtype: torch.dtype = base.dtype
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload().to(dtype)
    part = out.with_name(f".{out.name}-{uuid.uuid4().hex}")
    part.mkdir(parents=True)
    try:
        merged.save_pretrained(part, safe_serialization=True)
        load_tokenizer(model).save_pretrained(part)
        share_as(part / "config.json")
        part.replace(out)
    except BaseException:
        shutil.rmtree(part)
        raise
