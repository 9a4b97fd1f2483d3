"""An OpenAI-compatible server that fails as it is told to, and counts what it was paid for.

    with FaultyServer(faults=[http(429), cut()]) as server:  # its first two requests fail, the others are answered
        ... server.url ...

Answers follow from the prompt alone. Prompts are token ids (completions) or the last message's text (chat).
Not covered: streaming, and anything the client does not ask for.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Self

from aiohttp import web

Json = dict[str, Any]
Prompt = tuple[int, ...] | str
Fault = Callable[[web.BaseRequest, Json], Awaitable[web.StreamResponse | None]]  # None: the good reply after all


# --- what it answers ---


def answer_to(prompt: Prompt) -> str:
    return f"answer {_number(prompt)}"


def chance_of_first(prompt: Prompt) -> float:
    """Probability of the first of two choices."""
    return (_number(prompt) % 98 + 1) / 100


def logprob_of(token: int) -> float:
    """Of a token of a prompt."""
    return -(token % 7 + 1) / 10


def _number(prompt: Prompt) -> int:
    return int(hashlib.sha256(repr(prompt).encode()).hexdigest()[:8], 16)


# --- what goes wrong ---


def http(status: int, text: str = "no", **headers: str) -> Fault:
    async def fault(request: web.BaseRequest, good: Json) -> web.StreamResponse:
        return web.Response(status=status, text=text, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return fault


def said(text: str) -> Fault:
    """Status 200 and any text."""
    return http(200, text)


def slow(seconds: float) -> Fault:
    async def fault(request: web.BaseRequest, good: Json) -> None:
        await asyncio.sleep(seconds)

    return fault


def long(seconds: float) -> Fault:
    """A row whose answer takes so long; a single token comes at once."""

    async def fault(request: web.BaseRequest, good: Json) -> None:
        if json.loads(await request.read())["max_tokens"] > 1:
            await asyncio.sleep(seconds)

    return fault


def cut(*, in_body: bool = False) -> Fault:
    """The connection breaks, before the reply or within it."""

    async def fault(request: web.BaseRequest, good: Json) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        if in_body:
            await response.prepare(request)
            await response.write(json.dumps(good).encode()[:20])
        assert request.transport is not None
        request.transport.abort()
        return response

    return fault


def changed(change: Callable[[Json], object]) -> Fault:
    """The good reply, changed in place."""

    async def fault(request: web.BaseRequest, good: Json) -> web.StreamResponse:
        change(good)
        return web.json_response(good)

    return fault


def first_choice(**fields: object) -> Fault:
    """The good reply with other fields in its first choice."""
    return changed(lambda good: good["choices"][0].update(fields))


# --- the server ---


class FaultyServer:
    """Runs in a thread of its own; use as a context manager.

    Args:
        faults: One for each of the next requests.
        poison: Status that a request gets, whole, if the prompt stands anywhere in it.
        refuses: Fields that give 400.
        dies_after: Answered rows after which it breaks all connections and is gone.
        models_seconds: How long its list of models takes.
        always: A fault for every request.
        listing: What it gives in place of its list of models.
        model: What it serves; several, with a space between them.
        needs_key: Without it, all it says is 401.
        port: 0: any that is free.

    Attributes:
        paid: How often each prompt was answered.
        seen: How often each prompt was asked.
        most_rows: The most rows that were in flight at a time.
        n_listed: How often it was asked for its models.
    """

    def __init__(
        self, *, faults: Iterable[Fault] = (), poison: dict[Prompt, int] | None = None, refuses: Iterable[str] = (),
        dies_after: float = math.inf, models_seconds: float = 0.0, always: Fault | None = None, context: int = 512,
        model: str = "base", port: int = 0, listing: Fault | None = None, needs_key: str | None = None,
    ) -> None:  # fmt: skip
        self.faults, self.always = list(faults), always
        self.poison, self.refuses = poison or {}, frozenset(refuses)
        self.dies_after, self.models_seconds, self.context = dies_after, models_seconds, context
        self.paid: Counter[Prompt] = Counter()
        self.seen: Counter[Prompt] = Counter()
        self.n_requests = self.n_listed = self.most_rows = self._rows_in_flight = 0
        self.last_body: Json = {}
        self.model, self.port, self.listing, self.needs_key = model, port, listing, needs_key
        self._loop = asyncio.new_event_loop()
        self._ready, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._ready.set()
        self._loop.run_forever()
        self._die()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    async def _listen(self) -> None:
        self._server = web.Server(self._answer)
        self._listener = await self._loop.create_server(self._server, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    def _die(self) -> None:
        self._listener.close()
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/health":
            return web.Response()
        if self.needs_key and request.headers.get("Authorization") != f"Bearer {self.needs_key}":
            return web.Response(status=401, text="who are you?")
        if request.path == "/v1/models":
            self.n_listed += 1
            await asyncio.sleep(self.models_seconds)
            fault = self.listing or self.always
            if fault and (response := await fault(request, {})):
                return response
            served = {"owned_by": "vllm", "max_model_len": self.context}
            return web.json_response({"data": [{"id": name, **served} for name in self.model.split()]})
        body = self.last_body = json.loads(await request.read())
        is_chat = request.path == "/v1/chat/completions"
        prompts = [body["messages"][-1]["content"]] if is_chat else [tuple(ids) for ids in body["prompt"]]
        self.n_requests += 1
        self.seen.update(prompts)
        self._rows_in_flight += len(prompts)
        self.most_rows = max(self.most_rows, self._rows_in_flight)
        try:
            return await self._answer_rows(request, body, prompts, is_chat=is_chat)
        finally:
            self._rows_in_flight -= len(prompts)

    async def _answer_rows(
        self, request: web.BaseRequest, body: Json, prompts: list[Prompt], *, is_chat: bool
    ) -> web.StreamResponse:
        if refused := self.refuses & body.keys():
            return web.json_response({"error": f"extra field {', '.join(refused)}"}, status=400)
        if poisoned := [status for prompt, status in self.poison.items() if prompt in prompts]:
            return web.Response(status=poisoned[0], text="a row is not to its taste")
        one = _chat_choice if is_chat else _choice
        choices = [{"index": i, "finish_reason": "stop", **one(prompt, body)} for i, prompt in enumerate(prompts)]
        usage = {"prompt_tokens": 7, "completion_tokens": 3}
        good: Json = {"choices": choices[::-1], "usage": usage}  # in any order
        fault = self.always or (self.faults.pop(0) if self.faults else None)
        if fault and (response := await fault(request, good)):
            return response
        if self.paid.total() + len(prompts) > self.dies_after:
            self._die()
        elif request.transport is not None and not request.transport.is_closing():
            self.paid.update(prompts)
        return web.json_response(good)


def _choice(prompt: Prompt, body: Json) -> Json:
    if "prompt_logprobs" in body:
        entries = [{str(token): {"logprob": logprob_of(int(token)), "rank": 1}} for token in prompt[1:]]
        return {"text": "", "prompt_logprobs": [None, *entries]}
    names = [f"token_id:{token}" for token in body.get("allowed_token_ids", ())]
    if not names:
        return {"text": f" {answer_to(prompt)} ", "token_ids": [1, 2, 3]}
    top = _of_two(names, prompt)
    best = max(top, key=top.__getitem__)
    logprobs = {"tokens": [best], "top_logprobs": [top]} if "logprobs" in body else None
    return {"text": "x", "token_ids": [int(best.removeprefix("token_id:"))], "logprobs": logprobs}


def _chat_choice(prompt: Prompt, body: Json) -> Json:
    if "structured_outputs" not in body:
        return {"message": {"content": f" {answer_to(prompt)} "}}
    top = _of_two(body["structured_outputs"]["choice"], prompt)
    best = max(top, key=top.__getitem__)
    logprobs = {"content": [first_position(best, top)]} if "logprobs" in body else None
    return {"message": {"content": best}, "logprobs": logprobs}


def first_position(said: str, top: dict[str, float]) -> Json:
    """Where a chat's answer begins: what was said there, and what else might have been."""
    return {"token": said, "top_logprobs": [{"token": token, "logprob": lp} for token, lp in top.items()]}


def _of_two(names: list[str], prompt: Prompt) -> dict[str, float]:
    first = chance_of_first(prompt)
    return {names[0]: math.log(first), names[1]: math.log(1 - first)}
