"""The servers of an engine: load balancing, retries, and servers that fail and come back.

A request goes to the least loaded server that is in use. A server that is gone, or whose model hangs, is taken out of
use, and its rows go to the others. While these work, it is asked at growing intervals whether it is back. When no
server is left, the job ends at once.

Not covered: what a request says (`tasks.engines.remote`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tasks.engines.chat_tokenizer import ChatTokenizer
from tasks.engines.wire import Completion, Failure, completion_from, failure_from, lists_model
from tasks.errors import StepError

logger = logging.getLogger(__name__)

BUSY_TRIES = 8  # of a request while the server takes nothing: a minute of back-off
ROW_TRIES = 3  # of a request whose rows may be the cause of the failure
BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.5, 30.0
CONNECT_SECONDS = 10.0
# uvicorn closes a connection that has been idle for 5 s: a request sent at that moment would break.
KEEPALIVE_SECONDS = 4.0
PROBE_TRIES, PROBE_SECONDS = 3, 1.0  # connections that are refused, and the pause between, until a server is gone
PATIENCE_SECONDS = 60.0  # without an answer until a server that still accepts connections is gone
RETURN_SECONDS, MAX_RETURN_SECONDS = 5.0, 60.0  # until a server that is out of use is asked again; doubled each time
ASK_SECONDS = 5.0  # for the list of models of such a server
_REFUSES_ALL = {401, 402, 404, 405}  # the key or the model is wrong, so every other request would fail, too

Json = dict[str, Any]  # Any: JSON values


@dataclass
class Connection:
    """How to reach the servers.

    Attributes:
        urls: Base URLs that end in /v1.
        model: The name that the servers have for the model: the base or an adapter.
        tokenizer: Turns chats into token ids; None: the servers are sent chats.
        context: Longest prompt with its answer, in tokens; None where only the server knows.
        concurrency: Rows in flight.
        is_vllm: Whether the server takes vLLM's own fields: constraints, token ids, log-probabilities of the prompt.
        tokenizer_folder: Where the model's tokenizer lies.
        uses_proxy: Whether the proxies of the environment are used; not for a server on this machine.
        explain_death: Why the server that this step started has died; None while it runs, or where others started it.
        last_lines: The last lines of the log of the server that this step started; None where others started it.
    """

    urls: Sequence[str]
    model: str
    tokenizer: ChatTokenizer | None
    context: int | None
    concurrency: int
    timeout_seconds: float
    is_vllm: bool
    api_key: str | None = None
    tokenizer_folder: Path | None = None
    uses_proxy: bool = False
    explain_death: Callable[[], str | None] = field(default=lambda: None)
    last_lines: Callable[[], str | None] = field(default=lambda: None)


@dataclass
class Replica:
    """One server.

    Attributes:
        in_flight: Requests that wait for an answer.
        answered_at: When it last answered anything, in monotonic seconds.
        is_checked: Whether it is being asked for one token, because a row has timed out.
        dead: Why it is out of use; None while it is in use.
        ask_at: When it is next asked whether it is back, in monotonic seconds.
        pause_seconds: The interval from then to the next time.
    """

    url: str
    in_flight: int = 0
    answered_at: float = -math.inf
    is_checked: bool = False
    dead: str | None = None
    ask_at: float = 0.0
    pause_seconds: float = field(default_factory=lambda: RETURN_SECONDS)

    def postpone_return(self) -> None:
        """Set when it is next asked. The interval never shrinks again, so an unstable server is asked less and less."""
        self.ask_at = time.monotonic() + self.pause_seconds
        self.pause_seconds = min(MAX_RETURN_SECONDS, 2 * self.pause_seconds)


class Replicas:
    """The servers of one connection. Several event loops may use them at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._all = [Replica(url.rstrip("/")) for url in connection.urls]

    @asynccontextmanager
    async def session(self) -> AsyncIterator[aiohttp.ClientSession]:
        """The HTTP session for the requests. While it is open, servers that are out of use are asked to come back."""
        headers = {"Authorization": f"Bearer {self._connection.api_key}"} if self._connection.api_key else {}
        limit = aiohttp.ClientTimeout(total=self._connection.timeout_seconds, sock_connect=CONNECT_SECONDS)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS)
        async with aiohttp.ClientSession(
            connector=connector, timeout=limit, headers=headers, trust_env=self._connection.uses_proxy
        ) as session:
            watching = [asyncio.create_task(self._watch(session, replica)) for replica in self._all]
            try:
                yield session
            finally:
                for task in watching:
                    task.cancel()
                await asyncio.gather(*watching, return_exceptions=True)

    async def post(self, session: aiohttp.ClientSession, path: str, body: Json, n_rows: int) -> Completion | Failure:
        """The reply to one request, with retries and back-off where a retry may help.

        Raises:
            StepError: No server is left, or one refuses every request.
        """
        replica, n_tries = None, 0
        while True:
            replica = self._pick(avoid=replica)
            replica.in_flight += 1
            try:
                found = await self._try(session, replica, path, body, n_rows)
            finally:
                replica.in_flight -= 1
            n_tries += 1
            if not isinstance(found, Failure) or not found.retryable or n_tries >= _tries(found, n_rows):
                return found
            await asyncio.sleep(max(_backoff(n_tries), min(MAX_BACKOFF_SECONDS, found.wait_seconds)))

    def _pick(self, *, avoid: Replica | None) -> Replica:
        """The least loaded server in use; the one to avoid, or one that is being checked, only if there is no other.

        A server that fails fast has few requests in flight, and without `avoid` would get every retry.
        """
        living = self._living()
        if not living:
            reasons = "; ".join(f"{replica.url}: {replica.dead}" for replica in self._all)
            raise StepError(
                f"no server answers any more ({reasons}). Finished rows are kept; the same command goes on from there."
            )
        return min(living, key=lambda replica: (replica is avoid or replica.is_checked, replica.in_flight))

    async def _try(
        self, session: aiohttp.ClientSession, replica: Replica, path: str, body: Json, n_rows: int
    ) -> Completion | Failure:
        began = time.monotonic()
        try:
            status, answer, wait = await self._send(session, replica, path, body)
        except (aiohttp.ClientError, OSError) as error:
            if _is_timeout(error):
                reason = f"no answer in {self._connection.timeout_seconds:g} s"
                await self._probe(session, replica, reason)
                await self._check_model(session, replica, began)
                return Failure(f"timeout: {reason}", retryable=True)
            reason = f"{type(error).__name__}: {error}"
            await self._probe(session, replica, reason)
            return Failure(f"connection: {reason}", retryable=True, is_cut=True)
        if status == 200:
            replica.answered_at = time.monotonic()
            return completion_from(answer, n_rows)
        failure = failure_from(status, answer, wait)
        if status in _REFUSES_ALL:
            raise StepError(
                f"{replica.url}/{path} refuses model {self._connection.model} ({failure.problem}). Check "
                "engine.api_key_env, engine.served_model and engine.urls. Finished rows are kept; the same "
                "command goes on from there."
            )
        if failure.is_busy and status != 429:  # a gateway answers so for a server that is gone
            await self._probe(session, replica, failure.problem)
        else:
            replica.answered_at = time.monotonic()
        return failure

    async def _send(
        self, session: aiohttp.ClientSession, replica: Replica, path: str, body: Json
    ) -> tuple[int, bytes, str | None]:
        """Status, body, and the Retry-After header of the reply."""
        async with session.post(f"{replica.url}/{path}", json={"model": self._connection.model, **body}) as response:
            return response.status, await response.read(), response.headers.get("Retry-After")

    async def _ask_token(self, session: aiohttp.ClientSession, replica: Replica) -> tuple[int, bytes]:
        """Status and body of the reply to the smallest request, for one token."""
        body: Json = {"max_tokens": 1, "temperature": 0.0}
        if self._connection.tokenizer is None:
            path, body["messages"] = "chat/completions", [{"role": "user", "content": "Hello"}]
        else:
            path, body["prompt"] = "completions", [[0]]  # every model has a token 0
        status, answer, _ = await self._send(session, replica, path, body)
        return status, answer

    # --- servers that fail ---

    async def _probe(self, session: aiohttp.ClientSession, replica: Replica, reason: str) -> None:
        """Find out, after a request without an answer, whether the server is gone, and take it out of use if it is.

        Refused connections show that within seconds. A server that only does not answer may be working: it is gone
        when it has answered no row for PATIENCE_SECONDS.

        Raises:
            StepError: This step started the server, and it has died.
        """
        began = time.monotonic()
        n_refused = 0
        while n_refused < PROBE_TRIES and (left := began + PATIENCE_SECONDS - time.monotonic()) > 0:
            if death := self._connection.explain_death():
                raise StepError(f"{death}\nFinished rows are kept; the same command goes on from there.")
            if replica.dead is not None or replica.answered_at > began:
                return
            try:
                limit = aiohttp.ClientTimeout(total=left, sock_connect=CONNECT_SECONDS)
                async with session.get(f"{replica.url}/models", timeout=limit) as response:
                    if response.status < 500:
                        return
            except (aiohttp.ClientError, OSError):
                n_refused += 1  # refused, or no answer in the time that was left
            await asyncio.sleep(PROBE_SECONDS)
        if replica.answered_at <= began:
            self._take_out(replica, reason)

    async def _check_model(self, session: aiohttp.ClientSession, replica: Replica, began: float) -> None:
        """Find out, after a row has timed out, whether the model hangs, and take its server out of use if it does.

        The API of a server may answer while its model hangs, and then every row would wait for its full time-out. Or
        the row is only long: then the model still gives one token, which is what is asked for here. A server that has
        answered any row meanwhile is not asked. Where there is no other server, the rows wait until the check is done,
        so that they do not slow it down.

        Args:
            began: When the row was sent.

        Raises:
            StepError: This step started the server, and its model hangs.
        """
        has_others = any(not other.is_checked for other in self._living(beside=replica))
        while replica.is_checked:
            if has_others:
                return
            await asyncio.sleep(PROBE_SECONDS)
        if replica.dead is not None or replica.answered_at > began:
            return
        replica.is_checked = True
        try:
            # Without a time-out for the last server: taking that one out by mistake would end the job, whereas any
            # other server may come back.
            async with asyncio.timeout(PATIENCE_SECONDS if has_others else None):
                await self._ask_token(session, replica)
            hangs = False
        except (aiohttp.ClientError, OSError) as error:
            hangs = _is_timeout(error)
        finally:
            replica.is_checked = False
        if not hangs:
            replica.answered_at = time.monotonic()  # even by a broken connection: the next row probes that
        if replica.answered_at > began or (has_others and not self._living(beside=replica)):
            return  # it answered; or it has become the last server, and was asked with the time-out of the others
        reason = f"it hangs: no row was answered in {self._connection.timeout_seconds:g} s, nor one token after that"
        if (lines := self._connection.last_lines()) is not None:
            raise StepError(
                f"{replica.url}: {reason}; its last lines:\n{lines}\nFinished rows are kept; the same command goes on "
                "from there. If the machine is only slow, raise engine.timeout_seconds."
            )
        self._take_out(replica, reason)

    def _living(self, *, beside: Replica | None = None) -> list[Replica]:
        return [replica for replica in self._all if replica.dead is None and replica is not beside]

    def _take_out(self, replica: Replica, reason: str) -> None:
        if replica.dead is None:
            replica.dead = reason
            replica.postpone_return()
            logger.warning("%s is taken out: %s", replica.url, reason)

    # --- servers that come back ---

    async def _watch(self, session: aiohttp.ClientSession, replica: Replica) -> None:
        while True:
            if replica.dead is not None and time.monotonic() >= replica.ask_at:
                replica.postpone_return()
                if await self._is_back(session, replica):
                    replica.answered_at = time.monotonic()
                    replica.dead = None
                    logger.warning("%s is back", replica.url)
            await asyncio.sleep(RETURN_SECONDS)

    async def _is_back(self, session: aiohttp.ClientSession, replica: Replica) -> bool:
        """Whether it lists the model and gives a token: a server that fails every row may still list its models."""
        try:
            async with session.get(
                f"{replica.url}/models", timeout=aiohttp.ClientTimeout(total=ASK_SECONDS)
            ) as response:
                if response.status != 200 or not lists_model(
                    await response.read(), self._connection.model, self._connection.context
                ):
                    return False
            async with asyncio.timeout(PATIENCE_SECONDS):
                status, body = await self._ask_token(session, replica)
        except (aiohttp.ClientError, OSError):
            return False
        return status == 200 and not isinstance(completion_from(body, 1), Failure)


def _tries(failure: Failure, n_rows: int) -> int:
    """How often a request that fails in this way is tried. A group is not: its rows are then asked one by one."""
    if failure.is_busy:
        return BUSY_TRIES
    if n_rows > 1:
        return 1
    return BUSY_TRIES if failure.is_cut else ROW_TRIES


def _backoff(n_tries: int) -> float:
    """Seconds until the next try: doubled each time, with jitter so that rows do not come back all at once."""
    return random.uniform(0.5, 1.0) * min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2.0 ** (n_tries - 1))


def _is_timeout(error: Exception) -> bool:
    """Whether a server accepted the connection and then did not answer in time."""
    return isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError)
