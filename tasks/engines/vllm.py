"""The engine kind `vllm`: a model, with adapters or without, on a vLLM server that this step starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tasks.config import EngineConfig, ModelConfig
from tasks.engines.base import Engine
from tasks.engines.chat_tokenizer import ChatTokenizer
from tasks.engines.remote import Connection, RemoteEngine
from tasks.engines.vllm_server import BASE, VllmServer
from tasks.models import load_tokenizer, model_folder


class _SharedServer(NamedTuple):
    """A server that is running; `names` says under which name it has the adapter of a folder."""

    model: ModelConfig
    server: VllmServer
    names: dict[Path, str]


_SHARED: list[_SharedServer] = []


@contextmanager
def open_vllm(model: ModelConfig, config: EngineConfig, *, work: Path, adapter: Path | None) -> Iterator[Engine]:
    """An engine on the shared server that has this model and adapter, or else on a server of its own."""
    for shared in _SHARED:
        name = BASE if adapter is None else shared.names.get(adapter.resolve())
        if shared.model == model and name:
            yield RemoteEngine(_connection(shared.server, model, config, name=name))
            return
    adapters = {} if adapter is None else {"adapter": adapter}
    with VllmServer(model, config, log=work / "vllm.log", adapters=adapters) as server:
        yield RemoteEngine(_connection(server, model, config, name=next(iter(adapters), BASE)))


@contextmanager
def shared_vllm(
    model: ModelConfig, config: EngineConfig, *, work: Path, adapters: Mapping[str, Path]
) -> Iterator[None]:
    """Start a server for a model and several adapters, which `open_vllm` then uses in this process."""
    with VllmServer(model, config, log=work / "vllm.log", adapters=adapters) as server:
        _SHARED.append(_SharedServer(model, server, {folder.resolve(): name for name, folder in adapters.items()}))
        try:
            yield
        finally:
            _SHARED.pop()


def _connection(server: VllmServer, model: ModelConfig, config: EngineConfig, *, name: str) -> Connection:
    """How to reach one model, the base or an adapter, of a server that we started."""
    return Connection(
        urls=[server.url], model=name, tokenizer=ChatTokenizer(load_tokenizer(model)), context=server.context,
        concurrency=config.concurrency, timeout_seconds=config.timeout_seconds, is_vllm=True,
        explain_death=server.explain_death, last_lines=server.last_lines, tokenizer_folder=model_folder(model),
    )  # fmt: skip
