"""Outputs of the base model: the code that the steps generate and rewrite share."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator

import pyarrow as pa

from tasks.artifacts.digest import stable_seed
from tasks.artifacts.paid_rows import RowStore, row_key
from tasks.artifacts.store import Store
from tasks.asking import Asked, Asking
from tasks.config import EngineConfig, GenerateConfig, ModelConfig, RewriteConfig
from tasks.engines import Engine, Message, Reply, Request, Sampling
from tasks.generate.filling import Row, fill, space_of
from tasks.running.step import Context
from tasks.tables import schema

_STORED = pa.schema([f for f in schema.OUTPUTS if f.name not in ("example_id", "kind", "sample_index")])

Decoding = GenerateConfig | RewriteConfig


def paid_answers(
    store: Store, table: str, config: Decoding, *, model: ModelConfig, engine: EngineConfig, origin: str = ""
) -> RowStore:
    """The row store of the answers with these decoding settings."""
    settings = (config.max_new_tokens, config.temperature, config.top_p, config.seed)
    return RowStore(store, table, space_of(model, engine, *settings), _STORED, origin=origin)


def request_for(messages: list[Message], rows: RowStore, config: Decoding, *, sample_index: int = 0) -> Request:
    """A request to the model. Its key and its seed follow from its content alone."""
    key = row_key(rows.space, messages, sample_index)
    return Request(key, messages, stable_seed(config.seed, key))


def write_outputs(
    ctx: Context, rows: RowStore, questions: Callable[[], Iterator[Asked[Request]]], config: Decoding, *,
    model: ModelConfig, engine: EngineConfig,
) -> int:  # fmt: skip
    """Generate the missing answers and write `outputs.parquet`; returns the number of its rows.

    Raises:
        StepError: More than `max_failed_share` of the rows have no output.
    """
    sampling = Sampling(config.max_new_tokens, config.temperature, config.top_p)

    def ask(opened: Engine, requests: Iterator[Request], done: Container[str]) -> Iterator[Row]:
        return (_stored(reply) for reply in opened.generate(requests, sampling, done=done))

    asking, setting = Asking(model, engine, rows, questions, ask), f"{ctx.ref['step']}.max_failed_share"
    return fill(ctx, asking, schema.OUTPUTS, config.max_failed_share, without="output", setting=setting)


def _stored(reply: Reply) -> Row:
    unstored = ("key", "choice_logprobs")
    return {"row_key": reply.key, **{name: value for name, value in reply._asdict().items() if name not in unstored}}
