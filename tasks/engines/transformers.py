"""In-process generation with transformers: for tiny models, CPUs and Apple machines.

Floating-point results depend on the batch a row shares, so batches are fixed ahead from the rows alone: a resumed step
repeats a batch whole and gets the same bits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from tasks.config import ModelConfig
from tasks.engines.base import Reply, Request, Sampling
from tasks.models import best_device, context_length, load_model, load_tokenizer, model_folder

logger = logging.getLogger(__name__)


class TransformersEngine:
    """A model in this process, with an adapter on top if given.

    Args:
        batch_tokens: Padded tokens a batch, prompt and answer together: the memory it needs.
    """

    def __init__(self, model: ModelConfig, *, batch_tokens: int, adapter: Path | None = None) -> None:
        self.tokenizer = load_tokenizer(model)
        self.model = load_model(model, adapter)
        self._batch_tokens = batch_tokens
        self._context = context_length(model_folder(model))
        self._max_new_tokens_planned = 32

    def render(self, request: Request) -> str:
        """The prompt as the model reads it."""
        text = self.tokenizer.apply_chat_template(
            [dict(m) for m in request.messages], tokenize=False, add_generation_prompt=True
        )
        assert isinstance(text, str)  # tokenize=False and one chat
        return text

    def batches(self, requests: list[Request]) -> list[list[Request]]:
        """Requests of like length together, as many as fit `batch_tokens`; ties in length go by key."""
        # Characters stand in for tokens: cheap, and only the order matters much.
        measured = sorted((sum(len(m["content"]) for m in r.messages), r.key, r) for r in requests)
        made: list[list[Request]] = []
        for n_chars, _, request in measured:
            padded = (n_chars // 3 + self._max_new_tokens_planned) * (len(made[-1]) + 1 if made else 1)
            if not made or padded > self._batch_tokens:
                made.append([])
            made[-1].append(request)
        return made

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Reply]:
        """Answer the requests as one batch; a prompt too long for the model is a reply with a problem."""
        fitting: list[tuple[Request, list[int]]] = []
        for request in requests:
            ids = self.tokenizer(self.render(request), add_special_tokens=False)["input_ids"]
            if len(ids) + sampling.max_new_tokens > self._context:
                limit = f"{len(ids)} prompt + {sampling.max_new_tokens} new tokens > {self._context}"
                yield Reply(request.key, None, problem=f"context_overflow: {limit}", retryable=False)
            else:
                fitting.append((request, ids))
        if fitting:
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
                input_ids=padded["input_ids"],
                attention_mask=padded["attention_mask"],
                max_new_tokens=sampling.max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
                **options,
            )
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
