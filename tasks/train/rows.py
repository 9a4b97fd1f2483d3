"""Targets as TRL reads them: a prompt chat and a completion chat, loss on the completion alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError

from tasks import schema
from tasks.config import TrainConfig
from tasks.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


class Rows(NamedTuple):
    """The rows to train on, and what became of the others."""

    dataset: Dataset
    rows_in: int
    dropped: dict[str, int]
    n_trained_tokens: int


def load_rows(targets: Path, tokenizer: PreTrainedTokenizerBase, config: TrainConfig) -> Rows:
    """The targets as prompt and completion chats, without those that cannot be trained on.

    TRL drops rows without a trained token silently, and cuts those that are too long; both are counted here instead.

    Raises:
        DataError: No row is left.
    """
    from datasets import Dataset

    kept: list[dict[str, object]] = []
    rows_in, n_trained, dropped = 0, 0, {"too_long": 0, "no_trained_token": 0, "refused_by_template": 0}
    for batch in schema.read_batches(targets, schema.TARGETS, columns=["messages", "target"]):
        for row in batch.to_pylist():
            rows_in += 1
            completion = [{"role": "assistant", "content": row["target"]}]
            try:
                n_prompt = len(
                    tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, return_dict=False)
                )
                n_all = len(tokenizer.apply_chat_template(row["messages"] + completion, return_dict=False))
            except TemplateError:
                dropped["refused_by_template"] += 1
                continue
            if n_all > config.max_length:
                dropped["too_long"] += 1
            elif n_all <= n_prompt or not row["target"].strip():
                dropped["no_trained_token"] += 1
            else:
                kept.append({"prompt": row["messages"], "completion": completion})
                n_trained += n_all - n_prompt
    if not kept:
        raise DataError(f"train: none of {rows_in} rows can be trained on ({dropped}). Raise train.max_length.")
    return Rows(Dataset.from_list(kept), rows_in, {k: n for k, n in dropped.items() if n}, n_trained)
