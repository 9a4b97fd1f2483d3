"""An engine whose model runs on OpenAI-compatible servers: the requests that it sends, and how it reads the replies.

Hundreds of rows are in flight (`tasks.engines.streaming`), several in a request, as token ids where the model's
tokenizer is here. A row that fails is a reply with a typed problem. `tasks.engines.replicas` handles servers that fail.

Not covered: starting a server (`tasks.engines.vllm_server`); order, which the caller restores.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator
from itertools import islice
from typing import TypeVar

import aiohttp

from tasks.engines.chat_tokenizer import RefusedChat, check_fits
from tasks.engines.messages import Continuation, Likelihood, Reply, Request, Sampling
from tasks.engines.replicas import Connection, Json, Replicas
from tasks.engines.streaming import stream
from tasks.engines.wire import (
    Choice,
    Completion,
    Failure,
    Logprobs,
    Usage,
    choice_logprobs,
    logprobs_of_texts,
    reply_from,
)
from tasks.errors import StepError

__all__ = ["GROUP_ROWS", "Connection", "RemoteEngine"]

logger = logging.getLogger(__name__)

GROUP_ROWS = 8  # prompts in a request: saves round trips, and little is repeated when one of them fails
TOP_LOGPROBS = 20  # the most that vLLM gives by default
_CONSTRAINTS = ("allowed_token_ids", "logprob_token_ids", "structured_outputs")
_LOGPROBS = ("top_logprobs", "logprobs")  # some servers refuse them, or allow fewer tokens

Item = TypeVar("Item")
Found = TypeVar("Found")


class RemoteEngine:
    """An engine whose model runs on one or more servers."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._replicas = Replicas(connection)
        self._constrained, self._with_logprobs = connection.is_vllm, True  # until a server refuses

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, *, done: Container[str] = ()
    ) -> Iterator[Reply]:
        """One reply for each request whose key is not in `done`, in the order in which they finish."""
        fresh = (request for request in requests if request.key not in done)
        if self._connection.tokenizer is None:
            return self._stream(fresh, 1, lambda session, rows: self._chat(session, rows[0], sampling))
        # A request has one seed, so a row that is sampled is a request of its own. At least two requests are in flight,
        # so that the server works on one while the other is on its way.
        n_rows = 1 if sampling.temperature > 0 else max(1, min(GROUP_ROWS, self._connection.concurrency // 2))
        return self._stream(fresh, n_rows, lambda session, rows: self._complete(session, rows, sampling))

    def likelihoods(self, continuations: Iterable[Continuation], *, done: Container[str] = ()) -> Iterator[Likelihood]:
        """Likelihoods from the log-probabilities of the prompt, which only vLLM gives.

        Raises:
            StepError: The model's tokenizer is not here.
        """
        if self._connection.tokenizer is None:
            raise StepError("likelihoods need the model's tokenizer. Use engine kind vllm or transformers.")
        fresh = (continuation for continuation in continuations if continuation.key not in done)
        return self._stream(fresh, 1, lambda session, rows: self._measure(session, rows[0]))

    def measured_model(self) -> Connection:
        """The servers; lm-evaluation-harness asks the first one, which must run vLLM."""
        return self._connection

    async def _complete(self, session: aiohttp.ClientSession, rows: list[Request], sampling: Sampling) -> list[Reply]:
        assert self._connection.tokenizer is not None  # generate has checked it
        refused, fitting = [], []
        for row in rows:
            try:
                ids = self._connection.tokenizer.ids(row.messages)
                check_fits(len(ids), sampling.max_new_tokens, self._connection.context)
                fitting.append((row, ids))
            except RefusedChat as error:
                refused.append(Reply(row.key, None, problem=str(error), retryable=False))
        return refused + (await self._complete_fitting(session, fitting, sampling) if fitting else [])

    async def _complete_fitting(
        self, session: aiohttp.ClientSession, rows: list[tuple[Request, list[int]]], sampling: Sampling
    ) -> list[Reply]:
        def request_body() -> Json:
            return {"prompt": [ids for _, ids in rows], "seed": rows[0][0].seed % 2**31} | self._token_fields(sampling)

        found = await self._post(session, "completions", request_body, len(rows))
        if isinstance(found, Failure):
            if len(rows) == 1 or found.is_busy:
                return [Reply(row.key, None, problem=found.problem, retryable=found.retryable) for row, _ in rows]
            # One row may have made the others fail. Each is sent alone now, all at once: the group has their places.
            async with asyncio.TaskGroup() as tasks:
                alone = [tasks.create_task(self._complete_fitting(session, [row], sampling)) for row in rows]
            return [reply for task in alone for reply in task.result()]
        replies = []
        for (row, ids), choice in zip(rows, found.choices, strict=True):
            if sampling.choices:
                replies.append(self._chosen_reply(row.key, choice, len(ids), sampling.choices))
                continue
            n_new = len(choice.token_ids) if choice.token_ids else None
            replies.append(reply_from(row.key, choice, len(ids), n_new, None))
        return replies

    def _token_fields(self, sampling: Sampling) -> Json:
        body = _decoding(sampling)
        if self._connection.is_vllm:
            body["return_token_ids"] = True
        tokens = list(self._first_tokens(sampling.choices).values()) if sampling.choices and self._constrained else []
        if tokens:
            # By token and not by text: under a grammar, a model may spell a choice in tokens that are unusual for it.
            body |= {"max_tokens": 1, "allowed_token_ids": tokens}
        if sampling.choices and self._with_logprobs:
            body |= {"logprobs": TOP_LOGPROBS, "return_tokens_as_token_ids": True}
            if tokens:  # these by name: all of them may be less probable than the top ones
                body["logprob_token_ids"] = tokens
        return body

    def _first_tokens(self, choices: tuple[str, ...]) -> dict[str, int]:
        assert self._connection.tokenizer is not None  # chats are constrained by text instead
        first = {choice: self._connection.tokenizer.choice_ids(choice)[0] for choice in choices}
        if len(set(first.values())) < len(choices):
            raise StepError(f"the choices {', '.join(choices)} begin with the same token for this model.")
        return first

    def _chosen_reply(self, key: str, choice: Choice, n_prompt: int, choices: tuple[str, ...]) -> Reply:
        """The choice whose first token was generated; a server without constraints may have generated any text."""
        names = {c: f"token_id:{token}" for c, token in self._first_tokens(choices).items()}
        logprobs = choice.logprobs or Logprobs()
        generated = logprobs.tokens or [f"token_id:{token}" for token in choice.token_ids or ()]
        top = (logprobs.top_logprobs or [None])[0]
        probable = choice_logprobs(top, names, generated[0]) if top and generated else None
        reply = reply_from(key, choice, n_prompt, len(generated) or None, probable)
        picked = next((c for c, name in names.items() if generated == [name]), None)
        if picked is None or reply.problem:
            return reply
        return reply._replace(text=picked, finish_reason="stop")

    async def _chat(self, session: aiohttp.ClientSession, row: Request, sampling: Sampling) -> list[Reply]:
        def request_body() -> Json:
            body = {"messages": row.messages, "seed": row.seed % 2**31} | _decoding(sampling)
            if sampling.choices and self._with_logprobs:
                body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
            if sampling.choices and self._constrained:
                body["structured_outputs"] = {"choice": list(sampling.choices)}
            return body

        found = await self._post(session, "chat/completions", request_body, 1)
        if isinstance(found, Failure):
            return [Reply(row.key, None, problem=found.problem, retryable=found.retryable)]
        choice, usage = found.choices[0], found.usage or Usage()
        logprobs = logprobs_of_texts(choice, sampling.choices) if sampling.choices else None
        return [reply_from(row.key, choice, usage.prompt_tokens, usage.completion_tokens, logprobs)]

    async def _measure(self, session: aiohttp.ClientSession, row: Continuation) -> list[Likelihood]:
        assert self._connection.tokenizer is not None  # likelihoods has checked it
        try:
            prompt, answer = self._connection.tokenizer.with_answer(row.messages, row.text)
            check_fits(len(prompt), len(answer) + 1, self._connection.context)
        except RefusedChat as error:
            return [Likelihood(row.key, None, str(error), retryable=False)]
        if not answer:
            return [Likelihood(row.key, None, "empty_answer: it has no token to measure", retryable=False)]
        body = {"prompt": [prompt + answer], "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        found = await self._post(session, "completions", lambda: body, 1)
        if isinstance(found, Failure):
            return [Likelihood(row.key, None, found.problem, found.retryable)]
        entries = (found.choices[0].prompt_logprobs or [])[len(prompt) :]
        pairs = zip(entries, answer, strict=False)
        logprobs = [entry[str(token)].logprob for entry, token in pairs if entry and str(token) in entry]
        if len(entries) != len(answer) or len(logprobs) != len(answer):
            return [Likelihood(row.key, None, "no_prompt_logprobs: the server gives none", retryable=False)]
        return [Likelihood(row.key, -sum(logprobs) / len(answer))]

    async def _post(
        self, session: aiohttp.ClientSession, path: str, request_body: Callable[[], Json], n_rows: int
    ) -> Completion | Failure:
        """The reply to one request.

        Args:
            request_body: Makes the body; called again when a server has refused a field that is not needed.
        """
        while True:
            body = request_body()
            found = await self._replicas.post(session, path, body, n_rows)
            if not isinstance(found, Failure) or not (refused := _refused_field(found, body)):
                return found
            if refused in _LOGPROBS:
                if self._with_logprobs:
                    logger.warning("no %s here (%s): verdicts come without probabilities", refused, found.problem)
                self._with_logprobs = False
                continue
            if self._constrained:
                logger.warning("no %s here (%s): answers are read from plain text", refused, found.problem)
            self._constrained = False

    def _stream(
        self, rows: Iterator[Item], rows_a_request: int,
        answer: Callable[[aiohttp.ClientSession, list[Item]], Awaitable[list[Found]]],
    ) -> Iterator[Found]:  # fmt: skip
        n_places = max(1, self._connection.concurrency // rows_a_request)
        return stream(iter(lambda: list(islice(rows, rows_a_request)), []), n_places, self._replicas.session, answer)


def _decoding(sampling: Sampling) -> Json:
    return {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}


def _refused_field(failure: Failure, body: Json) -> str | None:
    """The optional field of the request that the server has refused, if that is why the request failed."""
    if not failure.problem.startswith("http_4"):
        return None
    droppable = (*_CONSTRAINTS, *_LOGPROBS)
    return next((name for name in droppable if name in body and name in failure.problem), None)
