"""The prompt of an example, from a template: see `tasks.templates`.

A template sees `question`, `document` (null where there is none), `history` (earlier turns of a dialogue, with role and
content) and `refusal` (the gold answer of an unanswerable question).
"""

from __future__ import annotations

from pathlib import Path

from tasks.config import SourceConfig
from tasks.ingest.raw import Message, RawExample
from tasks.templates import Kind, Ready

_FOLDER = Path(__file__).parent / "prompts"
_BY_TASK = {
    "grounded_qa": "grounded-qa.v1", "open": "open.v1", "number": "number.v1", "multiple_choice": "multiple-choice.v1",
}  # fmt: skip
_BY_READER = {"lab": "lab.v1", "md2d": "grounded-dialogue.v1"}


def prompt_text(source: SourceConfig, task: str, *, key: str) -> str:
    """The text of the template that a source uses; raises as `Kind.text` does."""
    return _kind(key).text(_name(source, task))


def prompt_template(source: SourceConfig, task: str, *, key: str) -> Ready:
    """The template that a source uses; raises as `Kind.text` does."""
    return _kind(key).load(_name(source, task))


def _kind(key: str) -> Kind:
    return Kind(_FOLDER, f"{key}.prompt", ("question", "document", "history", "refusal"))


def _name(source: SourceConfig, task: str) -> str:
    return source.prompt or _BY_READER.get(source.reader) or _BY_TASK[task]


def prompt(template: Ready, raw: RawExample, *, refusal: str) -> list[Message]:
    """The prompt of an example as a chat of one user message; raises as `Ready.render` does."""
    content = template.render(question=raw.question, document=raw.document, history=raw.history, refusal=refusal)
    return [{"role": "user", "content": content}]
