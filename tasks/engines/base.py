"""The interface of an engine: what it is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypedDict

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.engines.replicas import Connection


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


class LoadedModel(NamedTuple):
    """A model in this process."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


class Engine(Protocol):
    """Answers requests. A request that fails gives a reply with a problem, and the others go on."""

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, *, done: Container[str] = ()
    ) -> Iterator[Reply]:
        """One reply for each request whose key is not in `done`, in any order, as they finish.

        Requests are read as they are needed. Finished ones are among them because an engine may have to repeat a whole
        batch to give the same bits again.
        """

    def likelihoods(self, continuations: Iterable[Continuation], *, done: Container[str] = ()) -> Iterator[Likelihood]:
        """One likelihood for each continuation whose key is not in `done`, in any order; otherwise as `generate`."""

    def measured_model(self) -> LoadedModel | Connection:
        """What lm-evaluation-harness measures instead of asking this engine: a loaded model, or a vLLM server."""
