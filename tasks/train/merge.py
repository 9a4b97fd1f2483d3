"""An adapter merged into its base model: a folder of its own that any server loads, without PEFT."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.artifacts.store import share_as
from tasks.config import ModelConfig
from tasks.errors import ConfigError
from tasks.models import load_tokenizer, model_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def merge(model: ModelConfig, adapter: Path, out: Path) -> None:
    """Write base + adapter as safetensors, with the tokenizer and its chat template. The folder appears whole.

    In the dtype of the base's own weights, whatever the adapter was trained in, on the CPU: it needs their size in
    memory. An adapter trained on a 4-bit base is merged into the full one.

    Raises:
        ConfigError: There is something at `out` already.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if out.exists():
        raise ConfigError(f"{out}: is there already. Give a folder that is not.")
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
