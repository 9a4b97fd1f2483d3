"""A client of OpenAI-compatible servers that keeps them saturated and never loses a row.

Hundreds of rows are in flight, several to a request, as token ids where the model's tokenizer is at hand. A row that
fails is a reply with a typed problem; a server that dies is taken out and its rows go to the others; when none is left
the job ends at once. Memory is that of the rows in flight.

Not covered: starting a server (`tasks.engines.server`); order, which the caller restores.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import random
import threading
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import aiohttp

from tasks.engines.base import Continuation, Likelihood, Reply, Request, Sampling
from tasks.engines.prompts import PromptReader, UnreadableChat
from tasks.engines.wire import (
    Choice,
    Completion,
    Failure,
    Logprobs,
    Usage,
    chosen,
    completion_from,
    logprobs_of_texts,
    reply_from,
)
from tasks.errors import StepError

logger = logging.getLogger(__name__)

GROUP_ROWS = 8  # prompts a request: fewer round trips, and still little to repeat when one of them fails
BUSY_TRIES, ROW_TRIES = 8, 3  # while the server takes nothing (a minute of back-off); where the row may be the cause
BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.5, 30.0
CONNECT_SECONDS = 10.0
# uvicorn closes a connection that idles for 5 s: one reused just then would break.
KEEPALIVE_SECONDS = 4.0
PROBE_TRIES, PROBE_SECONDS = 3, 1.0  # refused connections, and the pause between them, until a server counts as gone
PATIENCE_SECONDS = 60.0  # of silence until a server that still accepts connections counts as gone
TOP_LOGPROBS = 20  # what vLLM gives by default at most
_CONSTRAINTS = ("allowed_token_ids", "logprob_token_ids", "structured_outputs")
_BUSY = {429, 502, 503, 504}
_TRANSIENT = {403, 408, 409, 425, 500}  # 403: firewalls refuse single texts so; for good it must not be
_REFUSES_ALL = {401, 402, 404, 405}  # the key or the model is wrong: no row is to blame

Item = TypeVar("Item")
Found = TypeVar("Found")
Json = dict[str, Any]  # Any: JSON values


@dataclass
class Replica:
    """One server.

    Attributes:
        answered_at: When it last answered anything (monotonic seconds).
        dead: Why it is out of use.
    """

    url: str
    in_flight: int = 0
    answered_at: float = -math.inf
    dead: str | None = None


@dataclass
class Connection:
    """How to reach the servers.

    Attributes:
        urls: Base URLs that end in /v1.
        model: The model's name there: the base or an adapter.
        context: Longest prompt with its answer in tokens; None where only the server knows.
        is_vllm: Whether the server takes vLLM's own fields: constraints, token ids, log-probabilities of the prompt.
        tokenizer_folder: Where the tokenizer of `prompts` lies.
        uses_proxy: Whether the proxies of the environment are used: never for a server of our own.
        explain_death: What a server of our own said before it died; None while it lives, or where it is not ours.
    """

    urls: Sequence[str]
    model: str
    prompts: PromptReader | None
    context: int | None
    concurrency: int
    timeout_seconds: float
    is_vllm: bool
    api_key: str | None = None
    tokenizer_folder: Path | None = None
    uses_proxy: bool = False
    explain_death: Callable[[], str | None] = field(default=lambda: None)


class RemoteEngine:
    """An engine whose model runs on one or more servers."""

    def __init__(self, connection: Connection) -> None:
        self.connection = self._to = connection
        self._replicas = [Replica(url.rstrip("/")) for url in connection.urls]
        self._constrained = connection.is_vllm  # until a server refuses

    # --- what is asked ---

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, *, done: Container[str] = ()
    ) -> Iterator[Reply]:
        """One reply per request that is not done, as they finish."""
        fresh = (request for request in requests if request.key not in done)
        if self._to.prompts is None:
            return self._stream(fresh, 1, lambda session, rows: self._chat(session, rows[0], sampling))
        # A seed holds for a whole request, so rows that are sampled go alone. Two requests at least are in flight, so
        # that the server works on one while the other is on its way.
        n_rows = 1 if sampling.temperature > 0 else max(1, min(GROUP_ROWS, self._to.concurrency // 2))
        return self._stream(fresh, n_rows, lambda session, rows: self._complete(session, rows, sampling))

    def likelihoods(self, continuations: Iterable[Continuation], *, done: Container[str] = ()) -> Iterator[Likelihood]:
        """From the log-probabilities of the prompt that vLLM gives."""
        if self._to.prompts is None:
            raise StepError("likelihoods need the model's tokenizer. Use engine kind vllm or transformers.")
        fresh = (continuation for continuation in continuations if continuation.key not in done)
        return self._stream(fresh, 1, lambda session, rows: self._measure(session, rows[0]))

    async def _complete(self, session: aiohttp.ClientSession, rows: list[Request], sampling: Sampling) -> list[Reply]:
        assert self._to.prompts is not None  # chosen by generate
        refused, fitting = [], []
        for row in rows:
            try:
                ids = self._to.prompts.ids(row.messages)
            except UnreadableChat as error:
                refused.append(Reply(row.key, None, problem=str(error), retryable=False))
                continue
            if problem := self._overflow(len(ids), sampling.max_new_tokens):
                refused.append(Reply(row.key, None, problem=problem, retryable=False))
            else:
                fitting.append((row, ids))
        return refused + (await self._complete_fitting(session, fitting, sampling) if fitting else [])

    async def _complete_fitting(
        self, session: aiohttp.ClientSession, rows: list[tuple[Request, list[int]]], sampling: Sampling
    ) -> list[Reply]:
        def asked() -> Json:
            return {"prompt": [ids for _, ids in rows], "seed": rows[0][0].seed % 2**31} | self._decoding(sampling)

        found = await self._post(session, "completions", asked, len(rows))
        if isinstance(found, Failure):
            if len(rows) == 1 or found.is_busy:
                return [Reply(row.key, None, problem=found.problem, retryable=found.retryable) for row, _ in rows]
            # One row may have failed the others: each alone, all at once in the places that the group holds.
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

    def _decoding(self, sampling: Sampling) -> Json:
        body: Json = {
            "max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p,
        }  # fmt: skip
        if self._to.is_vllm:
            body["return_token_ids"] = True
        if sampling.choices:
            body |= {"logprobs": TOP_LOGPROBS, "return_tokens_as_token_ids": True}
            if self._constrained:
                # By token, not by text: under a grammar a model may spell a choice in tokens that it never saw so.
                # Their log-probabilities by name, too: a model may hold both for less likely than the top ones.
                tokens = list(self._first_tokens(sampling.choices).values())
                body |= {"max_tokens": 1, "allowed_token_ids": tokens, "logprob_token_ids": tokens}
        return body

    def _first_tokens(self, choices: tuple[str, ...]) -> dict[str, int]:
        assert self._to.prompts is not None  # chat has its own way
        first = {choice: self._to.prompts.choice_ids(choice)[0] for choice in choices}
        if len(set(first.values())) < len(choices):
            raise StepError(f"the choices {', '.join(choices)} begin with the same token for this model.")
        return first

    def _chosen_reply(self, key: str, choice: Choice, n_prompt: int, choices: tuple[str, ...]) -> Reply:
        """The choice that the first token stands for; from a server without constraints, whatever it said."""
        names = {c: f"token_id:{token}" for c, token in self._first_tokens(choices).items()}
        logprobs = choice.logprobs or Logprobs()
        top, said = (logprobs.top_logprobs or [None])[0], (logprobs.tokens or [""])[0]
        reply = reply_from(key, choice, n_prompt, None, chosen(top, names) if top else None)
        picked = next((c for c, name in names.items() if name == said), None)
        if picked is None or reply.problem:
            return reply
        return reply._replace(text=picked, finish_reason="stop", n_output_tokens=1)

    async def _chat(self, session: aiohttp.ClientSession, row: Request, sampling: Sampling) -> list[Reply]:
        def asked() -> Json:
            body: Json = {
                "messages": row.messages, "max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature,
                "top_p": sampling.top_p, "seed": row.seed % 2**31,
            }  # fmt: skip
            if sampling.choices:
                body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
                if self._constrained:
                    body["structured_outputs"] = {"choice": list(sampling.choices)}
            return body

        found = await self._post(session, "chat/completions", asked, 1)
        if isinstance(found, Failure):
            return [Reply(row.key, None, problem=found.problem, retryable=found.retryable)]
        choice, usage = found.choices[0], found.usage or Usage()
        logprobs = logprobs_of_texts(choice, sampling.choices) if sampling.choices else None
        return [reply_from(row.key, choice, usage.prompt_tokens, usage.completion_tokens, logprobs)]

    async def _measure(self, session: aiohttp.ClientSession, row: Continuation) -> list[Likelihood]:
        assert self._to.prompts is not None  # chosen by likelihoods
        try:
            prompt, answer = self._to.prompts.with_answer(row.messages, row.text)
        except UnreadableChat as error:
            return [Likelihood(row.key, None, str(error), retryable=False)]
        if not answer:
            return [Likelihood(row.key, None, "empty_answer: it has no token to measure", retryable=False)]
        if problem := self._overflow(len(prompt), len(answer) + 1):
            return [Likelihood(row.key, None, problem, retryable=False)]
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

    def _overflow(self, n_prompt: int, n_new: int) -> str | None:
        if self._to.context is None or n_prompt + n_new <= self._to.context:
            return None
        return f"context_overflow: {n_prompt} prompt + {n_new} new tokens > {self._to.context}"

    # --- how it is sent ---

    async def _post(
        self, session: aiohttp.ClientSession, path: str, asked: Callable[[], Json], n_rows: int
    ) -> Completion | Failure:
        """The reply to one request, tried again with back-off where that may help.

        Args:
            asked: Gives the request's body: asked for again at each try, because a constraint may have been refused.

        Raises:
            StepError: No server is left, or one refuses whatever it is asked.
        """
        replica, n_tries = None, 0
        while True:
            replica, body = self._pick(avoid=replica), asked()
            replica.in_flight += 1
            try:
                found = await self._try(session, replica, path, body, n_rows)
            finally:
                replica.in_flight -= 1
            if not isinstance(found, Failure):
                return found
            if refused := _refused_constraint(found, body):
                if self._constrained:
                    logger.warning("%s takes no %s: answers are read from plain text", replica.url, refused)
                self._constrained = False
                continue
            n_tries += 1
            if not found.retryable or n_tries >= _tries(found, n_rows):
                return found
            await asyncio.sleep(max(_backoff(n_tries), found.wait_seconds))

    def _pick(self, *, avoid: Replica | None) -> Replica:
        """The least loaded server that lives; the one to avoid only if there is no other.

        A server that fails fast has little in flight: without this it would draw every row.
        """
        alive = [replica for replica in self._replicas if replica.dead is None]
        if not alive:
            reasons = "; ".join(f"{replica.url}: {replica.dead}" for replica in self._replicas)
            raise StepError(
                f"no server answers any more ({reasons}). Finished rows are kept; the same command goes on from there."
            )
        return min(alive, key=lambda replica: (replica is avoid, replica.in_flight))

    async def _try(
        self, session: aiohttp.ClientSession, replica: Replica, path: str, body: Json, n_rows: int
    ) -> Completion | Failure:
        try:
            async with session.post(f"{replica.url}/{path}", json={"model": self._to.model, **body}) as response:
                said, status, wait = await response.read(), response.status, response.headers.get("Retry-After")
        except (aiohttp.ClientError, OSError) as error:
            reason = f"{type(error).__name__}: {error}"
            is_silent = _is_silence(error)
            await self._probe(session, replica, f"no answer in {self._to.timeout_seconds:g} s" if is_silent else reason)
            if is_silent:
                return Failure(f"timeout: no answer in {self._to.timeout_seconds:g} s", retryable=True)
            return Failure(f"connection: {reason}", retryable=True, is_cut=True)
        if status == 200:
            replica.answered_at = time.monotonic()
            return completion_from(said, n_rows)
        failure = _http_failure(status, said.decode(errors="replace"), wait)
        if status in _REFUSES_ALL:
            raise StepError(
                f"{replica.url}/{path} refuses model {self._to.model} ({failure.problem}). Check engine.api_key_env, "
                "engine.served_model and engine.urls. Finished rows are kept; the same command goes on from there."
            )
        if status in _BUSY and status != 429:  # a gateway speaks so for a server that is gone
            await self._probe(session, replica, failure.problem)
        return failure

    async def _probe(self, session: aiohttp.ClientSession, replica: Replica, reason: str) -> None:
        """After a request without an answer: is the server still there? If it is not, it gets no more rows.

        Refused connections tell it within seconds. Silence may be work: it must last, towards every row.

        Raises:
            StepError: It is our own server and it has died.
        """
        began = time.monotonic()
        n_refused = 0
        while n_refused < PROBE_TRIES and (left := began + PATIENCE_SECONDS - time.monotonic()) > 0:
            if said := self._to.explain_death():
                raise StepError(f"{said}\nFinished rows are kept; the same command goes on from there.")
            if replica.dead is not None or replica.answered_at > began:
                return
            try:
                limit = aiohttp.ClientTimeout(total=left, sock_connect=CONNECT_SECONDS)
                async with session.get(f"{replica.url}/models", timeout=limit) as response:
                    if response.status < 500:
                        return
            except (aiohttp.ClientError, OSError):
                n_refused += 1  # or silent until nothing is left
            await asyncio.sleep(PROBE_SECONDS)
        if replica.dead is None and replica.answered_at <= began:
            replica.dead = reason
            logger.warning("%s is taken out: %s", replica.url, reason)

    # --- between the caller's thread and the event loop's ---

    def _stream(
        self, rows: Iterator[Item], rows_a_request: int,
        answer: Callable[[aiohttp.ClientSession, list[Item]], Awaitable[list[Found]]],
    ) -> Iterator[Found]:  # fmt: skip
        """Answer rows concurrently in a thread of its own; results as they come.

        A place is free again only when its result has been taken, so that a slow reader does not fill the memory.
        """
        n_places = max(1, self._to.concurrency // rows_a_request)
        worker = _Worker(self._to, _groups(rows, rows_a_request), n_places, answer)
        worker.start()
        try:
            yield from worker.results()
        finally:
            worker.stop()


class _Worker(Generic[Item, Found]):
    """The event loop of one stream."""

    def __init__(
        self, connection: Connection, groups: Iterator[list[Item]], n_places: int,
        answer: Callable[[aiohttp.ClientSession, list[Item]], Awaitable[list[Found]]],
    ) -> None:  # fmt: skip
        self._to = connection
        self._groups = groups
        self._answer = answer
        self._out: queue.SimpleQueue[list[Found] | BaseException | None] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._places = asyncio.Semaphore(n_places)
        self._main: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="engine-client", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def results(self) -> Iterator[Found]:
        while (item := self._out.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield from item
            self._loop.call_soon_threadsafe(self._places.release)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(lambda: self._main and self._main.cancel())
            self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._main = self._loop.create_task(self._answer_all())
        try:
            self._loop.run_until_complete(self._main)
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # whatever it is, the caller waits for it
            self._out.put(_first(error))
        # The thread that reads the caller's rows must be gone before the caller goes on.
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._out.put(None)

    async def _answer_all(self) -> None:
        headers = {"Authorization": f"Bearer {self._to.api_key}"} if self._to.api_key else {}
        limit = aiohttp.ClientTimeout(total=self._to.timeout_seconds, sock_connect=CONNECT_SECONDS)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS)
        async with (
            aiohttp.ClientSession(
                connector=connector, timeout=limit, headers=headers, trust_env=self._to.uses_proxy
            ) as session,
            asyncio.TaskGroup() as tasks,
        ):
            # In a thread: reading and preparing rows must not keep replies waiting.
            while ahead := await asyncio.to_thread(lambda: list(islice(self._groups, 4))):
                for group in ahead:
                    await self._places.acquire()
                    tasks.create_task(self._answer_one(session, group))

    async def _answer_one(self, session: aiohttp.ClientSession, group: list[Item]) -> None:
        self._out.put(await self._answer(session, group))


def _first(error: BaseException) -> BaseException:
    """The first single error of a group: the others are of the same cause."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _groups(rows: Iterator[Item], n: int) -> Iterator[list[Item]]:
    while group := list(islice(rows, n)):
        yield group


def _tries(failure: Failure, n_rows: int) -> int:
    """How often a request is tried that fails so. A group of which one row may be the cause is asked row by row."""
    if failure.is_busy:
        return BUSY_TRIES
    if n_rows > 1:
        return 1
    return BUSY_TRIES if failure.is_cut else ROW_TRIES


def _backoff(n_tries: int) -> float:
    """Seconds to wait: doubled each time, with jitter so that rows do not come back all at once."""
    return random.uniform(0.5, 1.0) * min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2.0 ** (n_tries - 1))


def _is_silence(error: Exception) -> bool:
    """Whether a server took the connection and then said nothing in time."""
    return isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError)


def _http_failure(status: int, text: str, retry_after: str | None) -> Failure:
    said = " ".join(text.split())[:300]
    if status in _BUSY:
        return Failure(f"http_{status}: {said}", True, is_busy=True, wait_seconds=_asked_wait(retry_after))
    if "context length" in said or "max_model_len" in said or "maximum model length" in said:
        return Failure(f"context_overflow: {said}", retryable=False)
    return Failure(f"http_{status}: {said}", retryable=status in _TRANSIENT)


def _asked_wait(retry_after: str | None) -> float:
    """Seconds of a Retry-After header, capped; 0 for its rare form with a date."""
    try:
        return min(MAX_BACKOFF_SECONDS, max(0.0, float(retry_after or 0)))
    except ValueError:
        return 0.0


def _refused_constraint(failure: Failure, body: Json) -> str | None:
    """The field of the request that the server does not take, if it is one we can do without."""
    if not failure.problem.startswith("http_4"):
        return None
    return next((name for name in _CONSTRAINTS if name in body and name in failure.problem), None)
