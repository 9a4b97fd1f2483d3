"""Prompt templates: versioned text files rendered by a sandboxed Jinja. Data goes in as values, never as template text.

A template sees `question`, `document` (null where there is none), `history` (earlier turns of a dialogue, with role and
content) and `refusal` (the gold answer of an unanswerable question). A shipped template is never edited: a change is a
new file with the next version, because outputs already paid for belong to the old text.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError
from jinja2.sandbox import SandboxedEnvironment

from tasks.config import SourceConfig
from tasks.errors import DataError
from tasks.ingest.raw import Message, RawExample

_FOLDER = Path(__file__).parent / "prompts"
_BY_TASK = {
    "grounded_qa": "grounded-qa.v1", "open": "open.v1", "number": "number.v1", "multiple_choice": "multiple-choice.v1",
}  # fmt: skip
_BY_READER = {"lab": "lab.v1", "md2d": "grounded-dialogue.v1"}
_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


def template_text(source: SourceConfig, task: str, *, key: str) -> str:
    """The text of the template that a source uses.

    Raises:
        DataError: It is neither a shipped name nor a file, or not a template.
    """
    name = source.prompt or _BY_READER.get(source.reader) or _BY_TASK[task]
    shipped = sorted(path.stem for path in _FOLDER.glob("*.txt"))
    path = _FOLDER / f"{name}.txt" if name in shipped else Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{name}: no prompt template of this name, nor a text file. Set {key}.prompt to one of "
            f"{', '.join(shipped)} or to a file."
        ) from error
    compiled(text, name)
    return text


def compiled(text: str, name: str) -> Template:
    """A template ready to render.

    Raises:
        DataError: It is not a Jinja template.
    """
    try:
        return _ENVIRONMENT.from_string(text)
    except TemplateSyntaxError as error:
        raise DataError(f"{name}:line {error.lineno}: not a Jinja template: {error.message}. Correct it.") from error


def render(template: Template, raw: RawExample, *, refusal: str, name: str) -> list[Message]:
    """The prompt of an example as a chat of one user message.

    Raises:
        DataError: The template uses a variable that it is not given, or does what the sandbox forbids.
    """
    try:
        content = template.render(question=raw.question, document=raw.document, history=raw.history, refusal=refusal)
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise DataError(
            f"{name}: the prompt template fails: {error}. It may use question, document, history and refusal."
        ) from error
    return [{"role": "user", "content": content}]
