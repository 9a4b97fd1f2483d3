"""The engine kind `transformers`: a model in the process of the step, for tiny models, CPUs and Apple machines.

Floating-point results depend on the other rows of a batch. So batches are planned ahead from the rows alone, and a
resumed step repeats an unfinished batch as a whole, which gives the same bits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tasks.config import EngineConfig, ModelConfig
from tasks.engines.base import Engine, LoadedModel
from tasks.engines.chat_tokenizer import ChatTokenizer, RefusedChat, check_fits
from tasks.engines.messages import Continuation, Likelihood, Reply, Request, Sampling
from tasks.models import best_device, context_length, load_model, load_tokenizer, model_folder

if TYPE_CHECKING:
    from transformers import GenerationConfig

logger = logging.getLogger(__name__)

WINDOW_ROWS = 4_096  # rows that are sorted by length together: enough to fill batches, and memory stays constant
_PLANNED_NEW_TOKENS = 32  # of an answer, when batches are planned

Asked = TypeVar("Asked", Request, Continuation)
Found = TypeVar("Found", Reply, Likelihood)


@contextmanager
def open_transformers(
    model: ModelConfig, config: EngineConfig, *, work: Path, adapter: Path | None
) -> Iterator[Engine]:
    """An engine in this process, which ends with the step; nothing is written to `work`."""
    yield TransformersEngine(model, batch_tokens=config.batch_tokens, adapter=adapter)


class TransformersEngine:
    """A model in this process, with an adapter on top if given.

    Args:
        batch_tokens: Most padded tokens of a batch, prompts and answers together, which decides the memory it needs.
    """

    def __init__(self, model: ModelConfig, *, batch_tokens: int, adapter: Path | None = None) -> None:
        self.tokenizer = load_tokenizer(model)
        self.model = load_model(model, adapter)
        self.model.generation_config = _neutral(self.model.generation_config)
        self._chat_tokenizer = ChatTokenizer(self.tokenizer)
        self._batch_tokens = batch_tokens
        self._context = context_length(model_folder(model))

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, *, done: Container[str] = ()
    ) -> Iterator[Reply]:
        """Answer in batches of similar length; a batch with an unfinished row is repeated as a whole."""
        return self._by_batch(requests, done, lambda batch: self._answer(batch, sampling))

    def measured_model(self) -> LoadedModel:
        """The model, with its adapter, and its tokenizer."""
        return LoadedModel(self.model, self.tokenizer)

    def _by_batch(
        self, rows: Iterable[Asked], done: Container[str], answer: Callable[[list[Asked]], Iterator[Found]]
    ) -> Iterator[Found]:
        pending = iter(rows)
        while window := list(islice(pending, WINDOW_ROWS)):
            for batch in self.batches(window):
                if not all(row.key in done for row in batch):
                    yield from (found for found in answer(batch) if found.key not in done)

    def batches(self, rows: list[Asked]) -> list[list[Asked]]:
        """Rows of similar length together, as many as fit into `batch_tokens`; equal lengths are sorted by key."""
        made: list[list[Asked]] = []
        for row in sorted(rows, key=lambda row: (_n_characters(row), row.key)):
            padded = (_n_characters(row) // 3 + _PLANNED_NEW_TOKENS) * (len(made[-1]) + 1 if made else 1)
            if not made or padded > self._batch_tokens:
                made.append([])
            made[-1].append(row)
        return made

    def _answer(self, batch: list[Request], sampling: Sampling) -> Iterator[Reply]:
        """One batch; a prompt too long for the model is a reply with a problem."""
        fitting: list[tuple[Request, list[int]]] = []
        for request in batch:
            try:
                ids = self._chat_tokenizer.ids(request.messages)
                check_fits(len(ids), sampling.max_new_tokens, self._context)
                fitting.append((request, ids))
            except RefusedChat as error:
                yield Reply(request.key, None, problem=str(error), retryable=False)
        if fitting and sampling.choices:
            yield from self._choose(fitting, sampling.choices)
        elif fitting:
            yield from self._generate_batch(fitting, sampling)

    def _generate_batch(self, batch: list[tuple[Request, list[int]]], sampling: Sampling) -> Iterator[Reply]:
        import torch

        padded = self.tokenizer.pad({"input_ids": [ids for _, ids in batch]}, return_tensors="pt").to(best_device())
        options: dict[str, object] = {"do_sample": False}
        if sampling.temperature > 0:
            torch.manual_seed(min(request.seed for request, _ in batch))
            options = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        with torch.inference_mode():
            generated = self.model.generate(
                input_ids=padded["input_ids"], attention_mask=padded["attention_mask"],
                max_new_tokens=sampling.max_new_tokens, pad_token_id=self.tokenizer.pad_token_id, **options,
            )  # fmt: skip
        new_ids = generated[:, padded["input_ids"].shape[1] :].tolist()
        for (request, prompt_ids), ids in zip(batch, new_ids, strict=True):
            yield self._reply(request.key, len(prompt_ids), ids)

    def _reply(self, key: str, n_prompt_tokens: int, ids: list[int]) -> Reply:
        ends = self._end_ids()
        length = next((i for i, token in enumerate(ids) if token in ends), None)
        kept = ids if length is None else ids[:length]
        text = str(self.tokenizer.decode(kept, skip_special_tokens=True)).strip()
        reason = "length" if length is None else "stop"
        return Reply(key, text, reason, n_prompt_tokens, len(kept) + (length is not None))

    def _end_ids(self) -> set[int]:
        configured = self.model.generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [configured]
        return {end for end in [*ends, self.tokenizer.eos_token_id] if end is not None}

    def _choose(self, batch: list[tuple[Request, list[int]]], choices: tuple[str, ...]) -> Iterator[Reply]:
        """The most probable choice of each row; every choice is measured in a forward pass of its own."""
        found: dict[str, dict[str, float]] = {request.key: {} for request, _ in batch}
        for choice in choices:
            ids = self._chat_tokenizer.choice_ids(choice)
            rows = [(request.key, prompt, ids) for request, prompt in batch]
            for key, logprob in self._logprobs(rows).items():
                found[key][choice] = logprob
        for request, prompt in batch:
            logprobs = found[request.key]
            best = max(choices, key=logprobs.__getitem__)
            yield Reply(request.key, best, "stop", len(prompt), 1, choice_logprobs=logprobs)

    def likelihoods(self, continuations: Iterable[Continuation], *, done: Container[str] = ()) -> Iterator[Likelihood]:
        """Measure in batches of similar length; a batch with an unfinished row is repeated as a whole."""
        return self._by_batch(continuations, done, self._measure)

    def _measure(self, batch: list[Continuation]) -> Iterator[Likelihood]:
        rows = []
        for one in batch:
            try:
                prompt, answer = self._chat_tokenizer.with_answer(one.messages, one.text)
                check_fits(len(prompt), len(answer), self._context)
                rows.append((one.key, prompt, answer))
            except RefusedChat as error:
                yield Likelihood(one.key, None, str(error), retryable=False)
        lengths = {key: len(answer) for key, _, answer in rows}
        for key, logprob in (self._logprobs(rows) if rows else {}).items():
            yield Likelihood(key, -logprob / lengths[key])

    def _logprobs(self, rows: list[tuple[str, list[int], list[int]]]) -> dict[str, float]:
        """The summed log-probability of each answer behind its prompt."""
        import torch

        padded = self.tokenizer.pad({"input_ids": [p + a for _, p, a in rows]}, return_tensors="pt").to(best_device())
        longest = max(len(answer) for _, _, answer in rows)
        with torch.inference_mode():
            # Padding is on the left, so the answers' logits are the last ones.
            out = self.model(
                input_ids=padded["input_ids"], attention_mask=padded["attention_mask"],
                position_ids=(padded["attention_mask"].cumsum(-1) - 1).clamp(min=0), logits_to_keep=longest + 1,
            )  # fmt: skip
            scores = out.logits[:, :-1].float().log_softmax(-1)
        targets = padded["input_ids"][:, -longest:].unsqueeze(-1)
        by_token = scores.gather(-1, targets).squeeze(-1)
        return {key: float(by_token[i, longest - len(answer) :].sum()) for i, (key, _, answer) in enumerate(rows)}


def _n_characters(row: Request | Continuation) -> int:
    """The length of a row: characters are cheap to count, and only the order of lengths matters much."""
    return sum(len(turn["content"]) for turn in row.messages) + (len(row.text) if isinstance(row, Continuation) else 0)


def _neutral(config: GenerationConfig) -> GenerationConfig:
    """The tokens that end an answer, without other settings of the model's repository, such as a penalty.

    Only the recipe decides how answers are sampled. The vLLM servers that steps start ignore such settings, too.
    """
    from transformers import GenerationConfig

    return GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
