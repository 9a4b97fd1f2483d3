"""What every engine takes and gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypedDict


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How to decode. `temperature` 0 is greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0


class Request(NamedTuple):
    """A prompt to answer.

    Attributes:
        key: Comes back on the reply; replies may come in any order.
        seed: For sampling; from the row's content, so that other rows cannot change it.
    """

    key: str
    messages: list[Message]
    seed: int


class Reply(NamedTuple):
    """An answer, or why there is none.

    Attributes:
        text: Stripped; None when it failed.
        finish_reason: "stop" or "length".
        problem: "<type>: what went wrong", None when all went well.
        retryable: Whether another try may help; None without a problem.
    """

    key: str
    text: str | None
    finish_reason: str | None = None
    n_prompt_tokens: int | None = None
    n_output_tokens: int | None = None
    problem: str | None = None
    retryable: bool | None = None


class Engine(Protocol):
    """Answers requests; one that cannot be answered gives a reply with a problem and never ends the others."""

    def batches(self, requests: list[Request]) -> list[list[Request]]:
        """Split requests into the groups that must be answered together to give the same bits again."""

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Reply]:
        """One reply per request, in any order."""
