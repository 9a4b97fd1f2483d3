"""The engine kind `openai`: a model on OpenAI-compatible servers that are running already, at `engine.urls`."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from tasks.config import EngineConfig, ModelConfig
from tasks.engines.base import Engine
from tasks.engines.chat_tokenizer import ChatTokenizer
from tasks.engines.remote import Connection, RemoteEngine
from tasks.engines.wire import ListedModel, ModelList
from tasks.errors import ConfigError, SsrError, StepError
from tasks.models import load_tokenizer

_ASK_SECONDS = 10.0
_MAX_NAMED = 20  # models that a message names


@contextmanager
def open_openai(model: ModelConfig, config: EngineConfig, *, work: Path, adapter: Path | None) -> Iterator[Engine]:
    """An engine on the servers; they take no adapter, and nothing is written to `work`."""
    yield RemoteEngine(_connection(model, config))


def _connection(model: ModelConfig, config: EngineConfig) -> Connection:
    """How to reach the servers that answer now. Token ids are sent where they run vLLM and the tokenizer is here."""
    key = _api_key(config)
    found = {url: _ask_models(url, config, key) for url in config.urls}
    listed = {url: models for url, models in found.items() if not isinstance(models, str)}
    if not listed:
        why = "; ".join(f"{url}: {problem}" for url, problem in found.items())
        raise StepError(f"engine.urls: none answers ({why}). Start a server, or correct the address.")
    models = next(filter(None, listed.values()), [])
    is_vllm = any(one.owned_by == "vllm" for one in models)
    tokenizer = _tokenizer_if_here(model) if is_vllm else None
    name = config.served_model or _served_name(model, models, where=", ".join(listed))
    lengths = [_listed(name, url, models).max_model_len for url, models in listed.items() if models]
    return Connection(
        urls=config.urls, model=name, tokenizer=tokenizer, context=min(filter(None, lengths), default=None),
        is_vllm=is_vllm, concurrency=config.concurrency, timeout_seconds=config.timeout_seconds, api_key=key,
        uses_proxy=True,
    )  # fmt: skip


def _served_name(model: ModelConfig, models: Sequence[ListedModel], *, where: str) -> str:
    """The model's name on the servers. Rows are stored under `model.base`, so no other model may answer them."""
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


def _listed(name: str, url: str, models: Sequence[ListedModel]) -> ListedModel:
    """What one server says of the model; each server must have it, or the rows that are sent there would fail."""
    found = next((one for one in models if one.id == name), None)
    if found is None:
        raise ConfigError(f"engine.served_model={name}: {url} does not serve it (found {_names(models)}).")
    return found


def _names(models: Sequence[ListedModel]) -> str:
    more = len(models) - _MAX_NAMED
    return ", ".join(one.id for one in models[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _tokenizer_if_here(model: ModelConfig) -> ChatTokenizer | None:
    try:
        return ChatTokenizer(load_tokenizer(model))
    except SsrError:
        return None  # only the server knows this model: it renders the chats itself


def _api_key(config: EngineConfig) -> str | None:
    if config.api_key_env is None:
        return None
    if not (key := os.environ.get(config.api_key_env)):
        raise ConfigError(f"engine.api_key_env: the environment variable {config.api_key_env} is not set.")
    return key


def _ask_models(url: str, config: EngineConfig, key: str | None) -> list[ListedModel] | str:
    """The models that a server lists, none where it answers without a list; a text says why it does not answer."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"engine.urls: {url} is no http address. Write http://host:port/v1.")
    request = urllib.request.Request(f"{url.rstrip('/')}/models")  # noqa: S310  # checked above
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=_ASK_SECONDS) as response:  # noqa: S310
            return ModelList.model_validate_json(response.read()).data
    except ValidationError:
        return []
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise ConfigError(f"engine.api_key_env: {url} {_refusal(config)} (http_{error.code}).") from error
        return [] if error.code in (404, 405) else f"http_{error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(error)


def _refusal(config: EngineConfig) -> str:
    if config.api_key_env is None:
        return "asks for a key. Name the environment variable that holds it"
    return f"refuses the key in {config.api_key_env}. Correct that variable, or name another"
