"""Finds a model, makes a digest of its content, and loads it: the same for generation, training and evaluation.

`lab` and `lab-judge` are the models that are shipped with the project; anything else is a folder or a Hub id. Code from
a model's repository is never run (`trust_remote_code` stays off), and only safetensors are read.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.artifacts.digest import digest_of, folder_digest
from tasks.config import ModelConfig
from tasks.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LAB_MODEL = Path(__file__).parent / "lab" / "model"
LAB_JUDGE = Path(__file__).parent / "lab" / "judge_model"
_SHIPPED = {"lab": LAB_MODEL, "lab-judge": LAB_JUDGE}
_WEIGHTS = "*.safetensors"
_DESCRIPTION = ("*.json", "*.jinja", "*.model", "*.txt")
# Some repositories hold the weights twice, the second time in the format of the maker's own code.
_SECOND_COPIES = ("consolidated*", "original/*")


def model_folder(model: ModelConfig, *, weights: bool = True) -> Path:
    """The local folder of a model; a Hub model is looked up in the cache, else downloaded.

    Args:
        weights: False where config, tokenizer and template suffice: only those are then downloaded.

    Raises:
        DataError: There is no such model, here or on the Hub, or it has no safetensors.
        ConfigError: A revision is given for a folder.
    """
    folder = _SHIPPED.get(model.base) or Path(model.base).expanduser()
    is_here = (folder / "config.json").exists() or model.base in _SHIPPED
    if is_here and model.revision is not None:
        raise ConfigError(f"model.revision={model.revision}: has no effect on a folder ({folder}). Remove it.")
    if not is_here:
        folder = _hub_snapshot(model.base, model.revision, weights=weights)
    if not (folder / "config.json").exists():
        raise DataError(
            f"model.base={model.base}: {folder} holds no config.json. Build the lab's models: ssr lab build"
        )
    if (weights or is_here) and not weight_files(folder):
        raise DataError(
            f"model.base={model.base}: {folder} holds no safetensors. Convert its weights; pickle is not read."
            + ("" if is_here else _offline())
        )
    return folder.resolve()


def weight_files(folder: Path) -> list[Path]:
    """The files of weights that are read from a model's folder."""
    return [path for path in folder.glob(_WEIGHTS) if not path.name.startswith("consolidated")]


@lru_cache(maxsize=16)
def _hub_snapshot(base: str, revision: str | None, *, weights: bool) -> Path:
    looks_local = base.startswith((".", "/", "~")) or base.count("/") != 1
    if looks_local:
        raise DataError(f"model.base={base}: no such folder, and not a Hub id (organisation/name).")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if weights:  # of the commit whose config is here, because the branch may have moved on since
        revision = _hub_snapshot(base, revision, weights=False).name
    try:
        found = snapshot_download(
            base, revision=revision, allow_patterns=[*_DESCRIPTION, *([_WEIGHTS] if weights else [])],
            ignore_patterns=list(_SECOND_COPIES),
        )  # fmt: skip
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(
            f"model.base={base}: no such folder, and the Hub does not give it: {error}.{_offline()}"
        ) from error
    return Path(found)


def _offline() -> str:
    return " HF_HUB_OFFLINE is set." if os.environ.get("HF_HUB_OFFLINE") == "1" else ""


def model_digest(model: ModelConfig) -> str:
    """A digest of everything in the model's folder that changes its answers: weights, config, tokenizer, template.

    A Hub snapshot is identified by its commit, so that its weights need not be here.
    """
    folder = model_folder(model, weights=False)
    if folder.parent.name == "snapshots":
        return digest_of(["hub", model.base, folder.name])
    names = [p.name for pattern in (_WEIGHTS, *_DESCRIPTION) for p in folder.glob(pattern)]
    return folder_digest(folder, set(names))


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the left.

    Raises:
        DataError: It has no chat template, so no prompt can be rendered.
    """
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_folder(model, weights=False))
    if not tokenizer.chat_template:
        raise DataError(f"model.base={model.base}: its tokenizer has no chat template. Use an instruction-tuned model.")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of the chat template: generation, training and evaluation must use the same one."""
    return digest_of(tokenizer.chat_template)


def load_model(
    model: ModelConfig, adapter: Path | None = None, *, device: str | None = None, **options: Any
) -> PreTrainedModel:
    """The model in evaluation mode, with a LoRA adapter on top if given.

    Args:
        adapter: A LoRA folder.
        device: Where the model is put; None: the best device.
        options: Passed on to `from_pretrained`, such as a quantisation config.
    """
    from transformers import AutoModelForCausalLM

    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        model_folder(model), dtype=torch_dtype(model), use_safetensors=True, **options
    )
    if adapter is not None:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, adapter)
    return loaded.to(device or best_device()).eval()


def best_device() -> str:
    """The fastest device of this machine: cuda, mps or cpu."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def torch_dtype(model: ModelConfig) -> torch.dtype:
    """The dtype of the model's config; `auto` is bfloat16 on a GPU that computes in it, and else float32."""
    import torch

    if model.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[model.dtype]
    on_gpu = best_device() == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if on_gpu else torch.float32


def context_length(folder: Path) -> int:
    """The longest sequence that the model takes, in tokens; 2048 where its config does not say."""
    config = json.loads((folder / "config.json").read_text())
    return int(config.get("max_position_embeddings") or 2048)
