"""The prompt that asks the model to rewrite a gold answer: a versioned text file rendered by a sandboxed Jinja.

A template sees `prompt` (the last message of the chat, as the model is asked it) and `gold`. They go in as values,
never as template text. A shipped template is never edited: a change is a new file with the next version, because
rewrites already paid for belong to the old text.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError
from jinja2.sandbox import SandboxedEnvironment

from tasks.engines import Message
from tasks.errors import DataError

_FOLDER = Path(__file__).parent / "prompts"
_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


def template_text(name: str) -> str:
    """The text of a shipped template, or of a file.

    Raises:
        DataError: It is neither a shipped name nor a text file, or not a template.
    """
    shipped = sorted(path.stem for path in _FOLDER.glob("*.txt"))
    path = _FOLDER / f"{name}.txt" if name in shipped else Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"rewrite.template={name}: no template of this name, nor a text file. Set it to one of "
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
        raise DataError(
            f"rewrite.template={name}: line {error.lineno}: not a Jinja template: {error.message}. Correct it."
        ) from error


def rewrite_prompt(template: Template, messages: list[Message], gold: str, *, name: str) -> list[Message]:
    """The chat of an example with its last message replaced by the request to rewrite.

    Raises:
        DataError: The template uses a variable that it is not given, or does what the sandbox forbids.
    """
    *earlier, last = messages
    try:
        content = template.render(prompt=last["content"], gold=gold)
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise DataError(f"rewrite.template={name}: it fails: {error}. It may use prompt and gold.") from error
    return [*earlier, {"role": "user", "content": content}]
