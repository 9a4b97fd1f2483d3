"""A chat as the token ids a model reads: one rendering for every engine, which pins the chat template.

Ids and not text are sent to a server, so that no second tokenizer or template has a say, and rendering is paid once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2 import TemplateError

from tasks.engines.base import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASKED: Message = {"role": "user", "content": "?"}


class UnreadableChat(ValueError):
    """The model's template refuses a chat, such as one whose roles do not take turns. Its text is a row's problem."""


class ChatTokenizer:
    """Chats to token ids with a model's own tokenizer and template.

    Each method raises UnreadableChat for a chat that the template refuses.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._choices: dict[str, list[int]] = {}

    def ids(self, messages: list[Message]) -> list[int]:
        """The prompt, up to where the answer begins."""
        return self._encode(self._text(messages, prompt=True))

    def with_answer(self, messages: list[Message], answer: str) -> tuple[list[int], list[int]]:
        """The prompt, and the answer with its end as the template writes them."""
        prompt = self._text(messages, prompt=True)
        whole = self._text([*messages, {"role": "assistant", "content": answer}], prompt=False)
        if not whole.startswith(prompt):  # a template that treats the last turn differently
            return self._encode(prompt), self._encode(answer)
        return self._encode(prompt), self._encode(whole[len(prompt) :])

    def choice_ids(self, choice: str) -> list[int]:
        """A short answer as the model would begin it, without its end: " accept" where the template puts a space."""
        if choice not in self._choices:
            _, answer = self.with_answer([_ASKED], choice)
            _, other = self.with_answer([_ASKED], f"{choice} {choice}")
            n_same = next(
                (i for i, pair in enumerate(zip(answer, other, strict=False)) if pair[0] != pair[1]), len(answer)
            )
            self._choices[choice] = answer[: max(1, n_same)]
        return self._choices[choice]

    def choice_text(self, choice: str) -> str:
        """The text of `choice_ids`, with the space that the template may put before it."""
        ids = self.choice_ids(choice)
        # Decoded behind another token: some tokenizers strip the space of a text's first token.
        mark = self._encode("?")
        return str(self._tokenizer.decode(mark + ids)).removeprefix(str(self._tokenizer.decode(mark)))

    def _text(self, messages: list[Message], *, prompt: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(m) for m in messages], tokenize=False, add_generation_prompt=prompt
            )
        except (TemplateError, TypeError) as error:
            raise UnreadableChat(f"chat_template: {error}") from error
        assert isinstance(text, str)  # tokenize=False and one chat
        return text

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
