"""From the engine section of a recipe to an engine that answers, for as long as it is needed."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from tasks.config import EngineConfig, ModelConfig
from tasks.engines.base import Engine
from tasks.engines.wire import ListedModel, ModelList
from tasks.errors import ConfigError, SsrError, StepError
from tasks.models import load_tokenizer, model_folder

if TYPE_CHECKING:
    from tasks.engines.remote import Connection
    from tasks.engines.server import VllmServer

_ASK_SECONDS = 10.0
_NAMED = 20  # models that a message names


@contextmanager
def open_engine(
    model: ModelConfig, config: EngineConfig, *, work: Path, adapter: Path | None = None
) -> Iterator[Engine]:
    """The engine for a model; when it is closed, what it started is gone and the device is free.

    Args:
        work: Folder for the log of a server of our own.
        adapter: LoRA folder on top of the model; not for servers elsewhere.

    Raises:
        ConfigError: What it needs is not set up, or a key is missing.
        StepError: A server does not come up, or does not answer.
    """
    if config.kind == "transformers":
        from tasks.engines.transformers import TransformersEngine

        yield TransformersEngine(model, batch_tokens=config.batch_tokens, adapter=adapter)
        return
    from tasks.engines.remote import RemoteEngine

    if config.kind == "openai":
        if adapter is not None:
            raise ConfigError("engine.kind=openai: an adapter cannot be put on a server elsewhere. Use vllm.")
        yield RemoteEngine(_elsewhere(model, config))
        return
    with _server(model, config, work, adapter) as (server, name):
        yield RemoteEngine(connection_to(server, model, config, name=name))


@contextmanager
def shared_server(
    model: ModelConfig, config: EngineConfig, *, work: Path, adapters: Mapping[str, Path]
) -> Iterator[None]:
    """Start one vLLM server for a model and several adapters, which `open_engine` then uses in this process."""
    from tasks.engines.server import VllmServer

    with VllmServer(model, config, log=work / "vllm.log", adapters=adapters) as server:
        _SHARED.append(_Shared(model, server, {folder.resolve(): name for name, folder in adapters.items()}))
        try:
            yield
        finally:
            _SHARED.pop()


class _Shared(NamedTuple):
    model: ModelConfig
    server: VllmServer
    names: dict[Path, str]


_SHARED: list[_Shared] = []


@contextmanager
def _server(
    model: ModelConfig, config: EngineConfig, work: Path, adapter: Path | None
) -> Iterator[tuple[VllmServer, str]]:
    """A server for the model, and the name under which it has the model with the adapter."""
    from tasks.engines.server import BASE, VllmServer

    for shared in _SHARED:
        name = BASE if adapter is None else shared.names.get(adapter.resolve())
        if shared.model == model and name:
            yield shared.server, name
            return
    adapters = {} if adapter is None else {"adapter": adapter}
    with VllmServer(model, config, log=work / "vllm.log", adapters=adapters) as server:
        yield server, next(iter(adapters), BASE)


def connection_to(server: VllmServer, model: ModelConfig, config: EngineConfig, *, name: str) -> Connection:
    """How to reach one model (the base or an adapter) of a server of our own."""
    from tasks.engines.prompts import PromptReader
    from tasks.engines.remote import Connection

    return Connection(
        urls=[server.url], model=name, prompts=PromptReader(load_tokenizer(model)), context=server.context,
        concurrency=config.concurrency, timeout_seconds=config.timeout_seconds, is_vllm=True,
        explain_death=server.explain_death, last_lines=server.last_lines, tokenizer_folder=model_folder(model),
    )  # fmt: skip


def _elsewhere(model: ModelConfig, config: EngineConfig) -> Connection:
    """Servers that are there. With the model's tokenizer at hand and vLLM at the other end, ids are sent."""
    from tasks.engines.remote import Connection

    key = _api_key(config)
    told = {url: _told(url, config, key) for url in config.urls}
    listed = {url: one.models for url, one in told.items() if one.silent is None}
    if not listed:
        why = "; ".join(f"{url}: {one.silent}" for url, one in told.items())
        raise StepError(f"engine.urls: none answers ({why}). Start a server, or correct the address.")
    models = next(filter(None, listed.values()), [])
    is_vllm = any(one.owned_by == "vllm" for one in models)
    prompts = _prompts_if_at_hand(model) if is_vllm else None
    name = config.served_model or _name_there(model, models, where=", ".join(listed))
    lengths = [_shown(name, url, found).max_model_len for url, found in listed.items() if found]
    return Connection(
        urls=config.urls, model=name, prompts=prompts, context=min(filter(None, lengths), default=None),
        is_vllm=is_vllm, concurrency=config.concurrency, timeout_seconds=config.timeout_seconds, api_key=key,
        uses_proxy=True,
    )  # fmt: skip


def _name_there(model: ModelConfig, models: Sequence[ListedModel], *, where: str) -> str:
    """The model's name on servers elsewhere. Its rows are kept as this model's: another one must not give them."""
    if not models:
        raise ConfigError(
            f"engine.urls: {where} gives no list of models. Correct the address, or name the model there: "
            "engine.served_model."
        )
    ids = [one.id for one in models]
    for name in (model.base, Path(model.base).name):
        if name in ids:
            return name
    if len(ids) > 1:
        raise ConfigError(
            f"engine.served_model: {where} serves no {model.base} (found {_names(models)}). Set it to the one to ask."
        )
    return ids[0]


def _shown(name: str, url: str, models: Sequence[ListedModel]) -> ListedModel:
    """What one server lists of a model; each must have it, or the rows that it draws would fail."""
    found = next((one for one in models if one.id == name), None)
    if found is None:
        raise ConfigError(f"engine.served_model={name}: {url} does not serve it (found {_names(models)}).")
    return found


def _names(models: Sequence[ListedModel]) -> str:
    more = len(models) - _NAMED
    return ", ".join(one.id for one in models[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _prompts_if_at_hand(model: ModelConfig) -> Any:  # Any: PromptReader or None, imported late
    from tasks.engines.prompts import PromptReader

    try:
        return PromptReader(load_tokenizer(model))
    except SsrError:
        return None  # a name that only the server knows: it renders the chat itself


def _api_key(config: EngineConfig) -> str | None:
    if config.api_key_env is None:
        return None
    if not (key := os.environ.get(config.api_key_env)):
        raise ConfigError(f"engine.api_key_env: the environment variable {config.api_key_env} is not set.")
    return key


class _Told(NamedTuple):
    """What a server tells of itself.

    Attributes:
        models: Empty where it gives no list of them.
        silent: Why it does not answer; None where it does.
    """

    models: Sequence[ListedModel]
    silent: str | None = None


def _told(url: str, config: EngineConfig, key: str | None) -> _Told:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"engine.urls: {url} is no http address. Write http://host:port/v1.")
    request = urllib.request.Request(f"{url.rstrip('/')}/models")  # noqa: S310  # checked above
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=_ASK_SECONDS) as response:  # noqa: S310
            return _Told(ModelList.model_validate_json(response.read()).data)
    except ValidationError:
        return _Told([])
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise ConfigError(f"engine.api_key_env: {url} {_refused(config)} (http_{error.code}).") from error
        return _Told([], silent=None if error.code in (404, 405) else f"http_{error.code}")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return _Told([], silent=str(error))


def _refused(config: EngineConfig) -> str:
    if config.api_key_env is None:
        return "asks for a key. Name the environment variable that holds it"
    return f"refuses the key in {config.api_key_env}. Correct that variable, or name another"
