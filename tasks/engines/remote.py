"""A client of OpenAI-compatible servers that keeps them saturated and never loses a row.

Hundreds of rows are in flight, several to a request, as token ids where the model's tokenizer is at hand. A row that
fails is a reply with a typed problem; a server that dies is taken out and its rows go to the others; when none is left
the job ends at once. Memory is that of the rows in flight.

Not covered: starting a server (`tasks.engines.server`); order, which the caller restores.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import random
import threading
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import aiohttp

from tasks.engines.base import Continuation, Likelihood, Reply, Request, Sampling
from tasks.engines.prompts import PromptReader
from tasks.errors import StepError

logger = logging.getLogger(__name__)

GROUP_ROWS = 8  # prompts a request: fewer round trips, and still little to repeat when one of them fails
MAX_TRIES = 6
BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.5, 30.0
CONNECT_SECONDS = 10.0
PROBE_TRIES, PROBE_SECONDS = 3, 2.0
TOP_LOGPROBS = 20  # what vLLM gives by default at most
_TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504}

Item = TypeVar("Item")
Found = TypeVar("Found")
Json = dict[str, Any]  # Any: JSON values


@dataclass
class Replica:
    """One server. `dead` says why it is out of use."""

    url: str
    in_flight: int = 0
    dead: str | None = None


class Failure(NamedTuple):
    """Why a request gave nothing. `retryable`: whether another try, later, may help."""

    problem: str
    retryable: bool


@dataclass
class Connection:
    """How to reach the servers.

    Attributes:
        urls: Base URLs that end in /v1.
        model: The model's name there: the base or an adapter.
        context: Longest prompt with its answer in tokens; None where only the server knows.
        is_vllm: Whether the server takes vLLM's own fields: constraints, token ids, log-probabilities of the prompt.
        tokenizer_folder: Where the tokenizer of `prompts` lies.
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
            return self._stream(([r] for r in fresh), lambda session, rows: self._chat(session, rows[0], sampling))
        # A seed holds for a whole request, so rows that are sampled go alone.
        n_rows = 1 if sampling.temperature > 0 else GROUP_ROWS
        return self._stream(_groups(fresh, n_rows), lambda session, rows: self._complete(session, rows, sampling))

    def likelihoods(self, continuations: Iterable[Continuation]) -> Iterator[Likelihood]:
        """From the log-probabilities of the prompt that vLLM gives."""
        if self._to.prompts is None:
            raise StepError("likelihoods need the model's tokenizer. Use engine kind vllm or transformers.")
        return self._stream(_groups(iter(continuations), 1), lambda session, rows: self._measure(session, rows[0]))

    async def _complete(self, session: aiohttp.ClientSession, rows: list[Request], sampling: Sampling) -> list[Reply]:
        assert self._to.prompts is not None  # chosen by generate
        too_long, fitting = [], []
        for row in rows:
            ids = self._to.prompts.ids(row.messages)
            if problem := self._overflow(len(ids), sampling.max_new_tokens):
                too_long.append(Reply(row.key, None, problem=problem, retryable=False))
            else:
                fitting.append((row, ids))
        return too_long + (await self._complete_fitting(session, fitting, sampling) if fitting else [])

    async def _complete_fitting(
        self, session: aiohttp.ClientSession, rows: list[tuple[Request, list[int]]], sampling: Sampling
    ) -> list[Reply]:
        body = {"prompt": [ids for _, ids in rows], "seed": rows[0][0].seed % 2**31} | self._decoding(sampling)
        # A group is tried once: what fails as a group is found row by row.
        found = await self._post(session, "completions", body, len(rows), tries=1 if len(rows) > 1 else MAX_TRIES)
        if isinstance(found, Failure):
            if len(rows) == 1:
                return [Reply(rows[0][0].key, None, problem=found.problem, retryable=found.retryable)]
            alone = [await self._complete_fitting(session, [row], sampling) for row in rows]
            return [reply for replies in alone for reply in replies]
        replies = []
        for (row, ids), choice in zip(rows, found["choices"], strict=True):
            logprobs = self._logprobs_of_ids(choice, sampling.choices) if sampling.choices else None
            n_new = len(choice["token_ids"]) if choice.get("token_ids") else None
            replies.append(_reply(row.key, choice["text"], choice, len(ids), n_new, logprobs))
        return replies if self._to.is_vllm else _with_usage(replies, found)

    def _decoding(self, sampling: Sampling) -> Json:
        body: Json = {
            "max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p,
        }  # fmt: skip
        if self._to.is_vllm:
            body["return_token_ids"] = True
        if sampling.choices:
            assert self._to.prompts is not None  # chat has its own
            texts = [self._to.prompts.choice_text(choice) for choice in sampling.choices]
            longest = max(len(self._to.prompts.choice_ids(choice)) for choice in sampling.choices)
            body |= {"max_tokens": longest + 1, "logprobs": TOP_LOGPROBS, "return_tokens_as_token_ids": True}
            if self._constrained:
                body["structured_outputs"] = {"choice": texts}
        return body

    def _logprobs_of_ids(self, choice: Json, choices: tuple[str, ...]) -> dict[str, float] | None:
        assert self._to.prompts is not None  # chosen by generate
        top = ((choice.get("logprobs") or {}).get("top_logprobs") or [None])[0]
        if not top:
            return None
        first = {c: f"token_id:{self._to.prompts.choice_ids(c)[0]}" for c in choices}
        return _chosen(top, first)

    async def _chat(self, session: aiohttp.ClientSession, row: Request, sampling: Sampling) -> list[Reply]:
        body: Json = {
            "messages": row.messages, "max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature,
            "top_p": sampling.top_p, "seed": row.seed % 2**31,
        }  # fmt: skip
        if sampling.choices:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
            if self._constrained:
                body["structured_outputs"] = {"choice": list(sampling.choices)}
        found = await self._post(session, "chat/completions", body, 1, tries=MAX_TRIES)
        if isinstance(found, Failure):
            return [Reply(row.key, None, problem=found.problem, retryable=found.retryable)]
        choice, usage = found["choices"][0], found.get("usage") or {}
        logprobs = _logprobs_of_texts(choice, sampling.choices) if sampling.choices else None
        text = choice["message"].get("content") or ""
        n_prompt, n_new = usage.get("prompt_tokens"), usage.get("completion_tokens")
        return [_reply(row.key, text, choice, n_prompt, n_new, logprobs)]

    async def _measure(self, session: aiohttp.ClientSession, row: Continuation) -> list[Likelihood]:
        assert self._to.prompts is not None  # chosen by likelihoods
        prompt, answer = self._to.prompts.with_answer(row.messages, row.text)
        if problem := self._overflow(len(prompt), len(answer) + 1):
            return [Likelihood(row.key, None, problem, retryable=False)]
        body = {"prompt": [prompt + answer], "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        found = await self._post(session, "completions", body, 1, tries=MAX_TRIES)
        if isinstance(found, Failure):
            return [Likelihood(row.key, None, found.problem, found.retryable)]
        entries = found["choices"][0].get("prompt_logprobs")
        if not entries or len(entries) != len(prompt) + len(answer):
            return [Likelihood(row.key, None, "no_prompt_logprobs: the server gives none", retryable=False)]
        logprobs = [entry[str(token)]["logprob"] for entry, token in zip(entries[len(prompt) :], answer, strict=True)]
        return [Likelihood(row.key, -sum(logprobs) / len(answer))]

    def _overflow(self, n_prompt: int, n_new: int) -> str | None:
        if self._to.context is None or n_prompt + n_new <= self._to.context:
            return None
        return f"context_overflow: {n_prompt} prompt + {n_new} new tokens > {self._to.context}"

    # --- how it is sent ---

    async def _post(
        self, session: aiohttp.ClientSession, path: str, body: Json, n_expected: int, *, tries: int
    ) -> Json | Failure:
        """The reply to one request, tried again with back-off where that may help.

        Raises:
            StepError: No server is left.
        """
        failure = Failure("unsent: no try was made", retryable=True)
        for attempt in range(tries):
            replica = self._pick()
            replica.in_flight += 1
            try:
                found = await self._try(session, replica, path, body, n_expected)
            finally:
                replica.in_flight -= 1
            if not isinstance(found, Failure):
                return found
            failure = found
            if not failure.retryable:
                if "structured_outputs" in body and _speaks_of_constraint(failure.problem):
                    logger.warning("%s takes no constraint: verdicts are read from plain text", replica.url)
                    self._constrained = False
                    body.pop("structured_outputs")
                    continue
                return failure
            if attempt + 1 < tries:
                await asyncio.sleep(_backoff(attempt))
        return failure

    def _pick(self) -> Replica:
        alive = [replica for replica in self._replicas if replica.dead is None]
        if not alive:
            reasons = "; ".join(f"{replica.url}: {replica.dead}" for replica in self._replicas)
            raise StepError(
                f"no server answers any more ({reasons}). Finished rows are kept; the same command goes on from there."
            )
        return min(alive, key=lambda replica: replica.in_flight)

    async def _try(
        self, session: aiohttp.ClientSession, replica: Replica, path: str, body: Json, n_expected: int
    ) -> Json | Failure:
        try:
            async with session.post(f"{replica.url}/{path}", json={"model": self._to.model, **body}) as response:
                if response.status != 200:
                    return _http_failure(response.status, await response.text())
                found = await response.json(content_type=None)
        except TimeoutError:
            return Failure(f"timeout: no answer in {self._to.timeout_seconds:g} s", retryable=True)
        except aiohttp.ClientError as error:
            await self._probe(session, replica, f"{type(error).__name__}: {error}")
            return Failure(f"connection: {type(error).__name__}", retryable=True)
        except ValueError:
            return Failure("malformed_reply: not JSON", retryable=True)
        return _checked(found, n_expected)

    async def _probe(self, session: aiohttp.ClientSession, replica: Replica, reason: str) -> None:
        """After a broken connection: is the server still there? If it is not, it gets no more rows.

        Raises:
            StepError: It is our own server and it has died.
        """
        for _ in range(PROBE_TRIES):
            if said := self._to.explain_death():
                raise StepError(f"{said}\nFinished rows are kept; the same command goes on from there.")
            if replica.dead is not None:
                return
            try:
                limit = aiohttp.ClientTimeout(total=PROBE_SECONDS)
                async with session.get(f"{replica.url}/models", timeout=limit) as response:
                    if response.status < 500:
                        return
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(PROBE_SECONDS / 2)
        replica.dead = reason
        logger.warning("%s is taken out: %s", replica.url, reason)

    # --- between the caller's thread and the event loop's ---

    def _stream(
        self, groups: Iterable[list[Item]],
        answer: Callable[[aiohttp.ClientSession, list[Item]], Awaitable[list[Found]]],
    ) -> Iterator[Found]:  # fmt: skip
        """Answer groups concurrently in a thread of its own; results as they come.

        A place is free again only when its result has been taken, so that a slow reader does not fill the memory.
        """
        worker = _Worker(self._to, groups, answer)
        worker.start()
        try:
            yield from worker.results()
        finally:
            worker.stop()


class _Worker(Generic[Item, Found]):
    """The event loop of one stream."""

    def __init__(
        self, connection: Connection, groups: Iterable[list[Item]],
        answer: Callable[[aiohttp.ClientSession, list[Item]], Awaitable[list[Found]]],
    ) -> None:  # fmt: skip
        self._to = connection
        self._groups = iter(groups)
        self._answer = answer
        self._out: queue.SimpleQueue[list[Found] | BaseException | None] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._places = asyncio.Semaphore(1)
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
        except BaseExceptionGroup as group:
            self._out.put(_first(group))
        except Exception as error:
            self._out.put(error)
        self._out.put(None)

    async def _answer_all(self) -> None:
        headers = {"Authorization": f"Bearer {self._to.api_key}"} if self._to.api_key else {}
        limit = aiohttp.ClientTimeout(total=self._to.timeout_seconds, sock_connect=CONNECT_SECONDS)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=limit, headers=headers) as session:
            first = await asyncio.to_thread(lambda: list(islice(self._groups, 1)))
            rows_a_group = max((len(group) for group in first), default=1)
            # At least two groups, so that the server works on one while the other is on its way.
            self._places = asyncio.Semaphore(max(2, self._to.concurrency // rows_a_group))
            async with asyncio.TaskGroup() as tasks:
                ahead = first
                while ahead:
                    for group in ahead:
                        await self._places.acquire()
                        tasks.create_task(self._answer_one(session, group))
                    # In a thread: reading and preparing rows must not keep replies waiting.
                    ahead = await asyncio.to_thread(lambda: list(islice(self._groups, 4)))

    async def _answer_one(self, session: aiohttp.ClientSession, group: list[Item]) -> None:
        self._out.put(await self._answer(session, group))


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first single error: the others are of the same cause."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _groups(rows: Iterator[Item], n: int) -> Iterator[list[Item]]:
    while group := list(islice(rows, n)):
        yield group


def _backoff(attempt: int) -> float:
    """Seconds to wait: doubled each time, with jitter so that rows do not come back all at once."""
    return random.uniform(0.5, 1.0) * min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2.0**attempt)


def _http_failure(status: int, text: str) -> Failure:
    said = " ".join(text.split())[:300]
    if status in _TRANSIENT:
        return Failure(f"http_{status}: {said}", retryable=True)
    if "context length" in said or "max_model_len" in said or "maximum model length" in said:
        return Failure(f"context_overflow: {said}", retryable=False)
    return Failure(f"http_{status}: {said}", retryable=False)


def _speaks_of_constraint(problem: str) -> bool:
    words = ("structured_outputs", "guided", "extra_forbidden", "extra fields", "unrecognized", "unknown")
    return problem.startswith("http_4") and any(word in problem.lower() for word in words)


def _checked(found: Any, n_expected: int) -> Json | Failure:  # Any: what the server sent
    """The reply with its choices in the order of the prompts, if it is what was asked for."""
    if not isinstance(found, dict) or not isinstance(found.get("choices"), list):
        return Failure("malformed_reply: no list of choices", retryable=True)
    choices = found["choices"]
    if not choices:
        return Failure("empty_choices: the server gave no answer", retryable=True)
    try:
        ordered = sorted(choices, key=lambda choice: int(choice.get("index", 0)))
        is_whole = all(
            isinstance(c.get("text", (c.get("message") or {}).get("content", "")), str | None) for c in ordered
        )
    except (AttributeError, TypeError, ValueError):
        return Failure("malformed_reply: a choice is not what it should be", retryable=True)
    if len(ordered) != n_expected or not is_whole or not all("text" in c or c.get("message") for c in ordered):
        return Failure(f"malformed_reply: {len(ordered)} choices for {n_expected} prompts", retryable=True)
    return {**found, "choices": ordered}


def _reply(
    key: str, text: str, choice: Json, n_prompt: int | None, n_new: int | None, logprobs: dict[str, float] | None
) -> Reply:
    reason = choice.get("finish_reason")
    if reason not in ("stop", "length"):
        return Reply(key, None, problem=f"unfinished: the server ended with {reason!r}", retryable=True)
    return Reply(key, text.strip(), reason, n_prompt, n_new, choice_logprobs=logprobs)


def _with_usage(replies: list[Reply], found: Json) -> list[Reply]:
    """Spread the request's token count over its rows by length: servers count a request, not a row."""
    total = (found.get("usage") or {}).get("completion_tokens")
    n_chars = sum(len(reply.text or "") + 1 for reply in replies)
    if total is None:
        return replies
    return [r._replace(n_output_tokens=round(total * (len(r.text or "") + 1) / n_chars)) for r in replies]


def _chosen(top: dict[str, float], names: dict[str, str]) -> dict[str, float] | None:
    """Log-probabilities of the choices; one that is not among the top ones is at most as probable as the last."""
    if not any(name in top for name in names.values()):
        return None
    floor = min(top.values())
    return {choice: float(top.get(name, floor)) for choice, name in names.items()}


def _logprobs_of_texts(choice: Json, choices: tuple[str, ...]) -> dict[str, float] | None:
    content = (choice.get("logprobs") or {}).get("content") or []
    if not content:
        return None
    top = {str(entry["token"]).strip().lower(): float(entry["logprob"]) for entry in content[0]["top_logprobs"]}
    names = {c: next((t for t in sorted(top, key=len, reverse=True) if t and c.startswith(t)), c) for c in choices}
    return _chosen(top, names) if top and len(set(names.values())) == len(choices) else None
