"""The prompt that asks the model to rewrite a gold answer, from a template: see `tasks.templates`.

A template sees `prompt` (the last message of the chat, as the model is asked it) and `gold`.
"""

from __future__ import annotations

from pathlib import Path

from tasks.engines import Message
from tasks.templates import Kind, Ready

REWRITES = Kind(Path(__file__).parent / "prompts", "rewrite.template", ("prompt", "gold"))


def rewrite_prompt(template: Ready, messages: list[Message], gold: str) -> list[Message]:
    """The chat of an example, its last message replaced by the request to rewrite; raises as `Ready.render` does."""
    *earlier, last = messages
    return [*earlier, {"role": "user", "content": template.render(prompt=last["content"], gold=gold)}]
