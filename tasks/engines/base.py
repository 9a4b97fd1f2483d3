"""The interface of an engine."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tasks.engines.messages import Continuation, Likelihood, Reply, Request, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.engines.replicas import Connection


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
