"""Targets as token ids and labels, written once per training for all of its processes.

TRL would tokenise in every process, drop rows without a trained token silently, and truncate rows that are too long.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import TemplateError

from tasks.config import TrainConfig
from tasks.errors import DataError
from tasks.tables import schema

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

NOT_TRAINED = -100  # the label of a token that the loss leaves out
_SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])


class Rows(NamedTuple):
    """The rows to train on, and how many were dropped for which reason."""

    dataset: Dataset
    rows_in: int
    dropped: dict[str, int]
    n_trained_tokens: int


def write_rows(targets: Path, tokenizer: PreTrainedTokenizerBase, config: TrainConfig, *, into: Path) -> None:
    """Write `input_ids` and `labels` of each target that can be trained on; the loss is on the completion alone.

    The completion begins at the first token at which the prompt and the whole chat differ, because a template may
    render the end of a prompt in two ways.
    """
    dropped = {"too_long": 0, "no_trained_token": 0, "refused_by_template": 0}
    rows_in = n_trained = 0
    as_ids = functools.partial(tokenizer.apply_chat_template, return_dict=False)
    with pq.ParquetWriter(into, _SCHEMA) as writer:
        for batch in schema.read_batches(targets, schema.TARGETS, columns=["messages", "target"]):
            kept = []
            for row in batch.to_pylist():
                rows_in += 1
                completion = [{"role": "assistant", "content": row["target"]}]
                try:
                    prompt = as_ids(row["messages"], add_generation_prompt=True)
                    ids = as_ids(row["messages"] + completion)
                except TemplateError:
                    dropped["refused_by_template"] += 1
                    continue
                n_prompt = _n_common(prompt, ids)
                if len(ids) > config.max_length:
                    dropped["too_long"] += 1
                elif len(ids) == n_prompt or not row["target"].strip():
                    dropped["no_trained_token"] += 1
                else:
                    kept.append({"input_ids": ids, "labels": [NOT_TRAINED] * n_prompt + ids[n_prompt:]})
                    n_trained += len(ids) - n_prompt
            writer.write_table(pa.Table.from_pylist(kept, schema=_SCHEMA))
        counted = {reason: n for reason, n in dropped.items() if n}
        account = {"rows_in": rows_in, "dropped": counted, "n_trained_tokens": n_trained}
        writer.add_key_value_metadata({"account": json.dumps(account)})


def load_rows(path: Path) -> Rows:
    """What `write_rows` wrote, mapped from the disk and not held in memory.

    Raises:
        DataError: No row is left.
    """
    from datasets import Dataset

    file = pq.ParquetFile(path)
    account = json.loads(file.metadata.metadata[b"account"])
    if not file.metadata.num_rows:
        dropped = account["dropped"]
        raise DataError(
            f"train: none of {account['rows_in']} rows can be trained on ({dropped}). Raise train.max_length."
        )
    dataset = Dataset.from_parquet(str(path), cache_dir=str(path.parent / "datasets"))
    return Rows(dataset, **account)


def _n_common(one: list[int], other: list[int]) -> int:
    """The length of the common prefix."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
