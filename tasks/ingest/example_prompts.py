"""The prompt of an example, rendered from a template; see `tasks.templates`.

A template sees `question`, `document` (null where there is none), `history` (earlier turns of a dialogue, with role and
content) and `refusal` (the gold answer of an unanswerable question).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tasks.config import SourceConfig
from tasks.readers.registry import Message, RawExample, Task, reader_of
from tasks.templates import PromptTemplate, TemplateFolder

_BY_TASK = {
    "grounded_qa": "grounded-qa.v1", "open": "open.v1", "number": "number.v1", "multiple_choice": "multiple-choice.v1",
}  # fmt: skip
PROMPTS = TemplateFolder(
    Path(__file__).parent / "prompts", "prompt", ("question", "document", "history", "refusal"), _BY_TASK
)


def prompt_template(source: SourceConfig, task: Task, *, key: str) -> PromptTemplate:
    """The template of a source; `key` is its place in the recipe. Raises as `TemplateFolder.load` does."""
    name = source.prompt or reader_of(source.reader).prompt or PROMPTS.by_task[task]
    return replace(PROMPTS, key=f"{key}.prompt").load(name)


def prompt(template: PromptTemplate, raw: RawExample, *, refusal: str) -> list[Message]:
    """The prompt of an example as a chat of one user message; raises as `PromptTemplate.render` does."""
    content = template.render(question=raw.question, document=raw.document, history=raw.history, refusal=refusal)
    return [{"role": "user", "content": content}]
