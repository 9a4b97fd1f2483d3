"""lm-evaluation-harness's client of a vLLM server, with cheaper log-probabilities and the same scores.

The harness asks for a prompt's log-probabilities with `echo`, once for each choice of an item. So the server computes
the whole prompt each time, cannot use its prefix cache, and sends each token back twice with its text. Here instead:

- A choice of one token (MMLU's letters) is scored as the next token after the prompt: one request an item, whatever the
  number of choices, and a shared few-shot prompt comes from the prefix cache.
- A longer choice still needs the log-probabilities of the prompt, but only those of the prompt's own tokens.

Not covered: generation, which the harness's own client does, and the harness's request cache, which is never used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.engines.remote import GROUP_ROWS, Connection
from tasks.errors import StepError

if TYPE_CHECKING:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

MAX_IN_FLIGHT = 256  # does not bound memory: the harness holds the prompts of all requests
# A request to vLLM may name at most 128 token ids, for all of its prompts together.
MAX_CHOICES = 128 // GROUP_ROWS

Asked = tuple[Any, list[int], list[int]]  # Any: the harness's cache key; context and continuation as token ids
Scored = tuple[float, bool]  # log-probability, and whether the continuation is what the model would say
Context = tuple[int, ...]
Json = dict[str, Any]  # Any: JSON values


def served_model(to: Connection) -> LocalCompletionsAPI:
    """The harness's view of one model (the base or an adapter) of a vLLM server."""
    import aiohttp
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    class ServedModel(LocalCompletionsAPI):  # type: ignore[misc]  # the harness is untyped
        """`choices` goes through the harness's own sending, with its batches and retries, to the body of a request."""

        def _loglikelihood_tokens(self, requests: list[Asked], **kwargs: Any) -> list[Scored]:  # Any: as the harness's
            choices = _choices_by_context(requests, self.max_length)
            contexts = list(choices)
            found: dict[Context, dict[int, Scored]] = {}
            if contexts:
                asked = self.get_batched_requests(contexts, contexts, generate=False, choices=choices)
                answers = [answer for batch in asyncio.run(asked) for answer in batch]
                found = dict(zip(contexts, answers, strict=True))
            scored = [_read(one, found, self.max_length) for one in requests]
            rest = [one for one, score in zip(requests, scored, strict=True) if score is None]
            others = iter(super()._loglikelihood_tokens(rest, **kwargs) if rest else [])
            return [next(others) if score is None else score for score in scored]

        def _create_payload(
            self, messages: Any, generate: bool = False, *args: Any, choices: Mapping[Context, list[int]] | None = None,
            **kwargs: Any,
        ) -> Json:  # fmt: skip  # Any: as the harness's
            if generate:
                return dict(super()._create_payload(messages, generate, *args, **kwargs))
            body: Json = {"model": self.model, "prompt": messages, "temperature": 0, "max_tokens": 1}
            if choices is None:
                return body | {"prompt_logprobs": 0}
            tokens = sorted({token for context in messages for token in choices[tuple(context)]})
            return body | {"logprob_token_ids": tokens, "logprobs": 1, "return_tokens_as_token_ids": True}

        @staticmethod
        def parse_logprobs(
            outputs: Json, tokens: Sequence[Sequence[int]], ctxlens: Sequence[int | None], **kwargs: Any
        ) -> list[Any]:  # Any: as the harness's
            """Scores of continuations; where choices were asked for, all of them by token id."""
            answers = sorted(outputs["choices"], key=lambda answer: answer["index"])
            # If one answer were missing, the harness would give every later item the answer of its neighbour.
            if [answer["index"] for answer in answers] != list(range(len(tokens))):
                raise ValueError(f"{len(answers)} answers to {len(tokens)} prompts")
            return [
                _first_token(answer) if start is None else _continuation(answer, prompt[start:], start)
                for answer, prompt, start in zip(answers, tokens, ctxlens, strict=True)
            ]

        async def get_batched_requests(self, *args: Any, **kwargs: Any) -> Any:  # Any: as the harness's
            try:
                return await super().get_batched_requests(*args, **kwargs)
            except (aiohttp.ClientError, OSError, LookupError, TypeError, ValueError) as error:
                # The caller takes an OSError or a ConnectionError for a dataset that cannot be loaded.
                raise StepError(
                    f"{self.base_url} does not measure model {self.model}: {type(error).__name__}: {error}. "
                    f"{to.explain_death() or ''}\nFinished benchmarks are kept; the same command goes on from there."
                ) from error

    return ServedModel(
        base_url=f"{to.urls[0]}/completions", model=to.model, tokenizer=str(to.tokenizer_folder),
        tokenizer_backend="huggingface", tokenized_requests=True, batch_size=GROUP_ROWS,
        # At least two: with one, the harness sends in another way, which blocks.
        num_concurrent=max(2, min(to.concurrency, MAX_IN_FLIGHT) // GROUP_ROWS),
        max_length=to.context, timeout=int(to.timeout_seconds),
    )  # fmt: skip


def _context(asked: Asked, max_length: int) -> Context:
    """The prompt before the last token, cut on the left where the harness cuts it."""
    _, context, continuation = asked
    return tuple((context + continuation)[-max_length:][:-1])


def _choices_by_context(requests: Sequence[Asked], max_length: int) -> dict[Context, list[int]]:
    """The one-token continuations of each context, where they are few enough for one request."""
    found: dict[Context, list[int]] = {}
    for asked in requests:
        if len(asked[2]) == 1:
            tokens = found.setdefault(_context(asked, max_length), [])
            if asked[2][0] not in tokens:
                tokens.append(asked[2][0])
    # Sorted, so that prompts that begin alike are neighbours in a request and in the prefix cache.
    return {context: tokens for context, tokens in sorted(found.items()) if len(tokens) <= MAX_CHOICES}


def _read(asked: Asked, found: Mapping[Context, Mapping[int, Scored]], max_length: int) -> Scored | None:
    """The score of a one-token continuation; None where it was not asked for here and the harness must score it."""
    if len(asked[2]) != 1:
        return None
    return found.get(_context(asked, max_length), {}).get(asked[2][0])


def _first_token(answer: Json) -> dict[int, Scored]:
    """The score of each token that was asked for. The greedy one is the token sampled at temperature 0."""
    logprobs = answer["logprobs"]
    (said,), (top,) = logprobs["tokens"], logprobs["top_logprobs"]
    return {int(name.removeprefix("token_id:")): (logprob, name == said) for name, logprob in top.items()}


def _continuation(answer: Json, tokens: Sequence[int], start: int) -> Scored:
    entries = [entry[str(token)] for entry, token in zip(answer["prompt_logprobs"][start:], tokens, strict=True)]
    return sum(entry["logprob"] for entry in entries), all(entry["rank"] == 1 for entry in entries)
