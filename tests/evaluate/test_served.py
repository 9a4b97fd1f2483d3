"""The harness's client of a vLLM server: what it asks for, and what it makes of answers, good and bad."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tasks.engines.remote import GROUP_ROWS, Connection
from tasks.errors import StepError
from tasks.evaluate.served import MAX_CHOICES, served_model
from tasks.lab.tokenizer import build_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))
from faulty_server import Fault, FaultyServer, changed, cut, http, logprob_of, said

Json = dict[str, Any]
LONG, OTHER = [30, 31, 32], [40, 41]
LETTERS = (10, 11, 12, 13)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def connection(tokenizer_folder: Path) -> Connection:
    return Connection(
        urls=[], model="base", tokenizer=None, context=64, concurrency=64, timeout_seconds=20, is_vllm=True,
        tokenizer_folder=tokenizer_folder, explain_death=lambda: "it ran out of memory",
    )  # fmt: skip


class ScoringServer(FaultyServer):
    """Gives each token a log-probability of its own, and says the first of those that are asked for.

    Attributes:
        bodies: What it was asked, in order.
    """

    def __init__(self, *first: Fault) -> None:
        self.bodies: list[Json] = []
        self.first = list(first)
        super().__init__(always=self._score)

    async def _score(self, request: web.BaseRequest, good: Json) -> web.StreamResponse | None:
        self.bodies.append(self.last_body)
        for choice in good["choices"]:
            if ids := self.last_body.get("logprob_token_ids"):
                top = {f"token_id:{token}": logprob_of(token) for token in ids}
                choice["logprobs"] = {"tokens": [f"token_id:{ids[0]}"], "top_logprobs": [top]}
        return await self.first.pop(0)(request, good) if self.first else None


def score(connection: Connection, server: FaultyServer, asked: list[tuple[list[int], list[int]]]) -> Any:
    model = served_model(replace(connection, urls=[server.url]))
    return model._loglikelihood_tokens([(None, context, continuation) for context, continuation in asked])


def test_all_choices_of_one_token_are_one_prompt_without_their_tokens(connection: Connection) -> None:
    with ScoringServer() as server:
        found = score(connection, server, [(LONG, [letter]) for letter in LETTERS])
    assert found == [(logprob_of(letter), letter == LETTERS[0]) for letter in LETTERS]
    (body,) = server.bodies
    assert (body["prompt"], body["logprob_token_ids"], body["max_tokens"]) == ([LONG], list(LETTERS), 1)


def test_prompts_with_other_choices_share_a_request(connection: Connection) -> None:
    with ScoringServer() as server:
        found = score(connection, server, [(LONG, [10]), (OTHER, [20]), (LONG, [11]), (OTHER, [10])])
    assert [logprob for logprob, _ in found] == [logprob_of(token) for token in (10, 20, 11, 10)]
    assert [body["prompt"] for body in server.bodies] == [[LONG, OTHER]]


def test_long_and_short_continuations_come_back_in_the_order_they_were_asked_in(connection: Connection) -> None:
    asked = [([30 + i % 3, 31], [10 + i] if i % 2 else [10 + i, 50 + i]) for i in range(40)]
    with ScoringServer() as server:
        found = score(connection, server, asked)
    assert [logprob for logprob, _ in found] == pytest.approx([sum(map(logprob_of, tokens)) for _, tokens in asked])
    assert {len(body["prompt"]) for body in server.bodies if "prompt_logprobs" in body} <= set(range(1, GROUP_ROWS + 1))
    assert not any("echo" in body for body in server.bodies)


def test_more_choices_than_the_server_gives_by_id_are_asked_one_by_one(connection: Connection) -> None:
    asked = [(LONG, [token]) for token in range(100, 101 + MAX_CHOICES)]
    with ScoringServer() as server:
        found = score(connection, server, asked)
    assert [logprob for logprob, _ in found] == [logprob_of(tokens[0]) for _, tokens in asked]
    assert not any("logprob_token_ids" in body for body in server.bodies)


def test_a_prompt_that_is_too_long_loses_its_left_as_with_the_harness(connection: Connection) -> None:
    context = list(range(100, 200))
    with ScoringServer() as server:
        score(connection, server, [(context, [10]), (context, [10, 11])])
    prompts = {"prompt_logprobs" in body: body["prompt"][0] for body in server.bodies}
    assert prompts == {False: context[-62:], True: [*context[-61:], 10, 11]}


def drop_one(good: Json) -> None:
    good["choices"].pop()


@pytest.mark.parametrize("tokens", [[10], [10, 11]], ids=["one token", "two tokens"])
@pytest.mark.parametrize(
    "fault", [http(500), cut(), cut(in_body=True), said("{}"), changed(drop_one)],
    ids=["error", "cut", "cut in the body", "no choices", "a choice short"],
)  # fmt: skip
def test_a_request_that_fails_once_is_asked_again(connection: Connection, fault: Fault, tokens: list[int]) -> None:
    asked = [([30 + i], tokens) for i in range(3)]
    with ScoringServer(fault) as server:
        found = score(connection, server, asked)
    assert [logprob for logprob, _ in found] == pytest.approx([sum(map(logprob_of, tokens))] * 3)


@pytest.mark.parametrize("tokens", [[10], [10, 11]], ids=["one token", "two tokens"])
def test_a_server_that_keeps_failing_ends_the_benchmark_with_its_reason(
    connection: Connection, tokens: list[int]
) -> None:
    with (
        FaultyServer(always=http(500)) as server,
        pytest.raises(StepError, match=r"does not measure model base.*500.*it ran out of memory(?s:.*)goes on"),
    ):
        score(connection, server, [(LONG, tokens)])
