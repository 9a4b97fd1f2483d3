"""What OpenAI-compatible servers send back, checked before anything is believed: their replies are untrusted input."""

from __future__ import annotations

import math
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from tasks.engines.base import Reply

_BUSY = {429, 502, 503, 504}
_TRANSIENT = {403, 408, 409, 425, 500}  # 403: firewalls refuse single texts so; for good it must not be
_ROUNDING = 1e-6  # of a sum of probabilities


class Failure(NamedTuple):
    """Why a request gave nothing.

    Attributes:
        retryable: Whether another try, later, may help.
        is_busy: The server takes nothing now, whatever it is asked: no row is to blame.
        is_cut: The connection broke.
        wait_seconds: What the server asks for before the next try.
    """

    problem: str
    retryable: bool
    is_busy: bool = False
    is_cut: bool = False
    wait_seconds: float = 0.0


class Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Logprob(BaseModel):
    token: str = ""
    logprob: float


class Position(BaseModel):
    """`token` is the one that was said."""

    token: str = ""
    top_logprobs: list[Logprob]


class Logprobs(BaseModel):
    """`tokens` and `top_logprobs` in completions, `content` in chats."""

    tokens: list[str] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None
    content: list[Position] | None = None


class ChatMessage(BaseModel):
    content: str | None = None


class Choice(BaseModel):
    """`text` in completions, `message` in chats; the last two are vLLM's own."""

    index: int = 0
    text: str | None = None
    message: ChatMessage | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, Logprob] | None] | None = None


class Completion(BaseModel):
    choices: list[Choice]
    usage: Usage | None = None


class ListedModel(BaseModel):
    """`max_model_len` is vLLM's own."""

    id: str
    owned_by: str | None = None
    max_model_len: int | None = None


class ModelList(BaseModel):
    data: list[ListedModel]


def completion_from(said: bytes, n_rows: int) -> Completion | Failure:
    """The reply with its choices in the order of the prompts, if it is what was asked for."""
    try:
        found = Completion.model_validate_json(said)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return Failure(f"malformed_reply: {where} {first['msg']}", retryable=True)
    if not found.choices:
        return Failure("empty_choices: the server gave no answer", retryable=True)
    found.choices.sort(key=lambda choice: choice.index)
    if [choice.index for choice in found.choices] != list(range(n_rows)):
        return Failure(f"malformed_reply: {len(found.choices)} choices for {n_rows} prompts", retryable=True)
    if any(choice.text is None and choice.message is None for choice in found.choices):
        return Failure("malformed_reply: a choice without text", retryable=True)
    return found


def failure_from(status: int, said: bytes, retry_after: str | None) -> Failure:
    text = " ".join(said.decode(errors="replace").split())[:300]
    if status in _BUSY:
        return Failure(f"http_{status}: {text}", True, is_busy=True, wait_seconds=_asked_wait(retry_after))
    if "context length" in text or "max_model_len" in text or "maximum model length" in text:
        return Failure(f"context_overflow: {text}", retryable=False)
    return Failure(f"http_{status}: {text}", retryable=status in _TRANSIENT)


def _asked_wait(retry_after: str | None) -> float:
    """Seconds of a Retry-After header; 0 for its rare form with a date."""
    try:
        return max(0.0, float(retry_after or 0))
    except ValueError:
        return 0.0


def lists_model(said: bytes, name: str, context: int | None) -> bool:
    """Whether a server's list of models has one, for prompts as long as before; so does a list that cannot be read."""
    try:
        found = ModelList.model_validate_json(said)
    except ValidationError:
        return True
    return any(
        model.id == name and (context is None or model.max_model_len is None or model.max_model_len >= context)
        for model in found.data
    )


def reply_from(
    key: str, choice: Choice, n_prompt: int | None, n_new: int | None, logprobs: dict[str, float] | None
) -> Reply:
    reason = choice.finish_reason
    if reason not in ("stop", "length"):
        # A filter would say the same again; "abort" and "error" are the server's.
        retryable = reason in (None, "abort", "error")
        return Reply(key, None, problem=f"unfinished: the server ended with {reason!r}", retryable=retryable)
    text = choice.text if choice.message is None else choice.message.content
    return Reply(key, (text or "").strip(), reason, n_prompt, n_new, choice_logprobs=logprobs)


def chosen(top: dict[str, float], names: dict[str, str], said: str) -> dict[str, float] | None:
    """Log-probabilities of the choices by the name of their first token; None if those do not tell them apart.

    None, too, where another token was said: then the choices are far behind it, and which of them is ahead there tells
    nothing of the answer that follows. One that is not among the top ones is at most as probable as the last of them,
    and as all that they leave, and counts so.
    """
    if len(set(names.values())) < len(names) or said not in names.values() or said not in top:
        return None
    left = max(_ROUNDING, 1 - sum(math.exp(min(0.0, logprob)) for logprob in top.values()))
    floor = min(*top.values(), math.log(left))
    return {choice: top.get(name, floor) for choice, name in names.items()}


def logprobs_of_texts(choice: Choice, choices: tuple[str, ...]) -> dict[str, float] | None:
    content = (choice.logprobs and choice.logprobs.content) or []
    if not content:
        return None
    # The most probable last, so that it is what " Accept" and "accept" together are read as.
    entries = sorted(content[0].top_logprobs, key=lambda entry: entry.logprob)
    top = {entry.token.strip().lower(): entry.logprob for entry in entries}
    longest_first = sorted(filter(None, top), key=len, reverse=True)
    names = {c: next((t for t in longest_first if c.lower().startswith(t)), c) for c in choices}
    return chosen(top, names, content[0].token.strip().lower())
