"""A chat that the model's template refuses costs its own row, not the job: in every engine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_server import FaultyServer

from tasks.config import ModelConfig
from tasks.engines import Continuation, Engine, Request, Sampling
from tasks.engines.chat_tokenizer import ChatTokenizer
from tasks.engines.remote import Connection, RemoteEngine
from tasks.engines.transformers import TransformersEngine
from tasks.models import load_tokenizer

STRICT = "{% if messages[0]['content'] == 'refused' %}{{ raise_exception('roles must take turns') }}{% endif %}"


@pytest.fixture
def strict_model(tiny_model: Path, tmp_path: Path) -> ModelConfig:
    """A model whose template refuses one chat."""
    folder = shutil.copytree(tiny_model, tmp_path / "strict")
    model = ModelConfig(base=str(folder))
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = STRICT + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture(params=["in process", "on a server"])
def engine(request: pytest.FixtureRequest, strict_model: ModelConfig) -> Iterator[Engine]:
    if request.param == "in process":
        yield TransformersEngine(strict_model, batch_tokens=4_000)
        return
    reader = ChatTokenizer(load_tokenizer(strict_model))
    connection = Connection(
        urls=[], model="base", tokenizer=reader, context=512, concurrency=8, timeout_seconds=20, is_vllm=True
    )
    with FaultyServer() as server:
        yield RemoteEngine(replace(connection, urls=[server.url]))


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_it_is_a_reply_with_a_problem(engine: Engine) -> None:
    asked = [Request(text, chat(text), seed=0) for text in ("one", "refused", "two")]
    replies = {reply.key: reply for reply in engine.generate(asked, Sampling(max_new_tokens=4))}
    assert replies["refused"].problem == "chat_template: roles must take turns"
    assert replies["refused"].retryable is False
    assert [replies[text].problem for text in ("one", "two")] == [None, None]


def test_it_has_no_likelihood(engine: Engine) -> None:
    (found,) = engine.likelihoods([Continuation("refused", chat("refused"), "yes")])
    assert (found.problem, found.retryable) == ("chat_template: roles must take turns", False)
