"""Turns a chat into the token ids that a model reads, in the same way for every engine.

Servers are sent ids and not text, so that the chat template is the one of the model's folder, whatever the server has.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from tasks.engines.messages import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANY_QUESTION: Message = {"role": "user", "content": "?"}


class RefusedChat(ValueError):
    """A chat that the model cannot take: its template refuses it, or it is too long. The text is a row's problem."""


def check_fits(n_prompt: int, n_new: int, context: int | None) -> None:
    """Refuse a prompt that does not fit into the model's context together with its answer.

    Args:
        context: In tokens; None where only the server knows.

    Raises:
        RefusedChat: It does not fit.
    """
    if context is not None and n_prompt + n_new > context:
        raise RefusedChat(f"context_overflow: {n_prompt} prompt + {n_new} new tokens > {context}")


class ChatTokenizer:
    """Turns chats into token ids with a model's own tokenizer and template.

    Every method raises RefusedChat for a chat that the template refuses.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._choices: dict[str, list[int]] = {}

    def ids(self, messages: list[Message]) -> list[int]:
        """The ids of the prompt, up to where the answer begins."""
        return self._encode(self._text(messages, prompt=True))

    def with_answer(self, messages: list[Message], answer: str) -> tuple[list[int], list[int]]:
        """The ids of the prompt, and those of the answer with its end of turn, as the template writes both."""
        prompt = self._text(messages, prompt=True)
        whole = self._text([*messages, {"role": "assistant", "content": answer}], prompt=False)
        if not whole.startswith(prompt):  # the template treats the last turn differently
            return self._encode(prompt), self._encode(answer)
        return self._encode(prompt), self._encode(whole[len(prompt) :])

    def choice_ids(self, choice: str) -> list[int]:
        """The ids with which the model would begin a short answer, without an end of turn.

        They stand for " accept" where the template puts a space before the answer.
        """
        if choice not in self._choices:
            _, answer = self.with_answer([_ANY_QUESTION], choice)
            _, other = self.with_answer([_ANY_QUESTION], f"{choice} {choice}")
            same = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(answer, other, strict=False))]
            self._choices[choice] = same or answer[:1]
        return self._choices[choice]

    def _text(self, messages: list[Message], *, prompt: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(m) for m in messages], tokenize=False, add_generation_prompt=prompt
            )
        except (TemplateError, TypeError) as error:
            raise RefusedChat(f"chat_template: {error}") from error
        assert isinstance(text, str)  # it is, with tokenize=False and one chat
        return text

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
