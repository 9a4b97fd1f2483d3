"""The replies of OpenAI-compatible servers: parsed and checked, because they are untrusted input."""

from __future__ import annotations

import math
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from tasks.engines.messages import Reply

_BUSY = {429, 502, 503, 504}
_TRANSIENT = {403, 408, 409, 425, 500}  # 403: a firewall may refuse a single text so, and take it later
_MIN_LEFT = 1e-6  # probability that is left beside the listed tokens at least: their sum may be rounded up to 1


class Failure(NamedTuple):
    """Why a request got no usable reply.

    Attributes:
        problem: "<type>: what went wrong", as a row's problem.
        retryable: Whether a later retry may help.
        is_busy: The server takes no request now, so the rows of this one did not cause the failure.
        is_cut: The connection broke.
        wait_seconds: The wait before the next try that the server asks for (Retry-After); 0 without one.
    """

    problem: str
    retryable: bool
    is_busy: bool = False
    is_cut: bool = False
    wait_seconds: float = 0.0


class Usage(BaseModel):
    """The number of tokens of a request; None where the server does not count them."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Logprob(BaseModel):
    """A token with its log-probability in nats."""

    token: str = ""
    logprob: float


class Position(BaseModel):
    """One place of an answer: the token that was generated there, and the most probable ones."""

    token: str = ""
    top_logprobs: list[Logprob]


class Logprobs(BaseModel):
    """Log-probabilities of an answer: `tokens` and `top_logprobs` in completions, `content` in chats."""

    tokens: list[str] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None
    content: list[Position] | None = None


class ChatMessage(BaseModel):
    """The answer of a chat."""

    content: str | None = None


class Choice(BaseModel):
    """One answer: `text` in completions, `message` in chats. Only vLLM sends the last two fields."""

    index: int = 0
    text: str | None = None
    message: ChatMessage | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    token_ids: list[int] | None = None
    prompt_logprobs: list[dict[str, Logprob] | None] | None = None


class Completion(BaseModel):
    """The reply to one request, which may hold several prompts."""

    choices: list[Choice]
    usage: Usage | None = None


class ListedModel(BaseModel):
    """One model of a server's list. Only vLLM sends `max_model_len`, the longest prompt with its answer in tokens."""

    id: str
    owned_by: str | None = None
    max_model_len: int | None = None


class ModelList(BaseModel):
    """The models that a server lists."""

    data: list[ListedModel]


def completion_from(body: bytes, n_rows: int) -> Completion | Failure:
    """The reply with one choice for each prompt, in the order of the prompts; a failure if it is anything else."""
    try:
        found = Completion.model_validate_json(body)
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


def failure_from(status: int, body: bytes, retry_after: str | None) -> Failure:
    """The failure that a reply with a status other than 200 stands for."""
    text = " ".join(body.decode(errors="replace").split())[:300]
    if status in _BUSY:
        return Failure(f"http_{status}: {text}", True, is_busy=True, wait_seconds=_wait_seconds(retry_after))
    if "context length" in text or "max_model_len" in text or "maximum model length" in text:
        return Failure(f"context_overflow: {text}", retryable=False)
    return Failure(f"http_{status}: {text}", retryable=status in _TRANSIENT)


def _wait_seconds(retry_after: str | None) -> float:
    """The seconds of a Retry-After header; 0 without it, and for its rare form with a date."""
    try:
        return max(0.0, float(retry_after or 0))
    except ValueError:
        return 0.0


def lists_model(body: bytes, name: str, context: int | None) -> bool:
    """Whether a server lists a model and takes prompts of `context` tokens for it.

    A list that cannot be read counts as one that has the model: some servers send none.
    """
    try:
        found = ModelList.model_validate_json(body)
    except ValidationError:
        return True
    return any(
        model.id == name and (context is None or model.max_model_len is None or model.max_model_len >= context)
        for model in found.data
    )


def reply_from(
    key: str, choice: Choice, n_prompt: int | None, n_new: int | None, logprobs: dict[str, float] | None
) -> Reply:
    """The reply to a row; an answer that the server broke off is a problem."""
    reason = choice.finish_reason
    if reason not in ("stop", "length"):
        # A content filter would decide the same again. "abort" and "error" are failures of the server.
        retryable = reason in (None, "abort", "error")
        return Reply(key, None, problem=f"unfinished: the server ended with {reason!r}", retryable=retryable)
    text = choice.text if choice.message is None else choice.message.content
    return Reply(key, (text or "").strip(), reason, n_prompt, n_new, choice_logprobs=logprobs)


def choice_logprobs(top: dict[str, float], names: dict[str, str], generated: str) -> dict[str, float] | None:
    """The log-probability of each choice, which is that of its first token.

    Args:
        top: Log-probabilities of the most probable tokens, by the token's name.
        names: The name of the first token of each choice.
        generated: The name of the token that was generated.

    Returns:
        None if two choices begin with the same token, or another token was generated: then the choices are far less
        probable than that one, and their order tells nothing of the answer that follows. A choice that is not in `top`
        counts as probable as the least probable token of `top`, or as all that `top` leaves, whichever is less.
    """
    if len(set(names.values())) < len(names) or generated not in names.values() or generated not in top:
        return None
    left = max(_MIN_LEFT, 1 - sum(math.exp(min(0.0, logprob)) for logprob in top.values()))
    floor = min(*top.values(), math.log(left))
    return {choice: top.get(name, floor) for choice, name in names.items()}


def logprobs_of_texts(choice: Choice, choices: tuple[str, ...]) -> dict[str, float] | None:
    """The log-probability of each choice from a chat, whose tokens are texts; None as in `choice_logprobs`."""
    content = (choice.logprobs and choice.logprobs.content) or []
    if not content:
        return None
    # Sorted so that of " Accept" and "accept", which become one name, the more probable one is kept.
    entries = sorted(content[0].top_logprobs, key=lambda entry: entry.logprob)
    top = {entry.token.strip().lower(): entry.logprob for entry in entries}
    longest_first = sorted(filter(None, top), key=len, reverse=True)
    names = {c: next((t for t in longest_first if c.lower().startswith(t)), c) for c in choices}
    return choice_logprobs(top, names, content[0].token.strip().lower())
