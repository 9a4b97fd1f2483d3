"""What an engine is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypedDict


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How to decode.

    Attributes:
        temperature: 0 is greedy.
        choices: If given, the answer is one of these, and the reply carries their log-probabilities.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    choices: tuple[str, ...] = ()


class Request(NamedTuple):
    """A prompt to answer.

    Attributes:
        key: Identifies the row on the reply, since replies may come in any order.
        seed: For sampling; made from the row's content, so that other rows cannot change it.
    """

    key: str
    messages: list[Message]
    seed: int


class Reply(NamedTuple):
    """An answer, or why there is none.

    Attributes:
        text: The stripped answer; None when the row failed.
        finish_reason: "stop" or "length".
        problem: "<type>: what went wrong", None when all went well.
        retryable: Whether another try may help; None without a problem.
        choice_logprobs: Log-probability of each of `Sampling.choices` as the next words, without the constraint to
            them; None where the engine does not know it, or the answer begins with none of them.
    """

    key: str
    text: str | None
    finish_reason: str | None = None
    n_prompt_tokens: int | None = None
    n_output_tokens: int | None = None
    problem: str | None = None
    retryable: bool | None = None
    choice_logprobs: dict[str, float] | None = None


class Continuation(NamedTuple):
    """A prompt with a given answer, whose likelihood is measured."""

    key: str
    messages: list[Message]
    text: str


class Likelihood(NamedTuple):
    """How probable the model finds an answer.

    Attributes:
        nll: Mean negative log-likelihood per token of the answer and its end, in nats; None when the row failed.
        problem: As for `Reply`.
        retryable: As for `Reply`.
    """

    key: str
    nll: float | None
    problem: str | None = None
    retryable: bool | None = None
