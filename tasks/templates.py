"""Versioned text templates rendered by a sandboxed Jinja: prompts, rewrites, rubrics.

Data goes in as values, never as template text. A shipped template is never edited: a change is a new file with the
next version, because what was paid for belongs to the old text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError
from jinja2.sandbox import SandboxedEnvironment

from tasks.errors import DataError

_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


@dataclass(frozen=True)
class Kind:
    """Templates for one purpose.

    Attributes:
        folder: Where the shipped ones lie, as `name.txt`.
        key: The recipe's field that names one, for messages.
        variables: What a template sees.
    """

    folder: Path
    key: str
    variables: tuple[str, ...]

    def text(self, name: str) -> str:
        """The text of a shipped template, or of a file.

        Raises:
            DataError: It is neither a shipped name nor a text file, or not a template.
        """
        shipped = sorted(path.stem for path in self.folder.glob("*.txt"))
        path = self.folder / f"{name}.txt" if name in shipped else Path(name).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{self.key}={name}: no template of this name, nor a text file. Set it to one of "
                f"{', '.join(shipped)} or to a file."
            ) from error
        self.ready(text, name)
        return text

    def ready(self, text: str, name: str) -> Ready:
        """A template to render, from its text; `name` is for messages.

        Raises:
            DataError: It is not a Jinja template.
        """
        try:
            return Ready(self, name, _ENVIRONMENT.from_string(text))
        except TemplateSyntaxError as error:
            raise DataError(
                f"{self.key}={name}: line {error.lineno}: not a Jinja template: {error.message}. Correct it."
            ) from error

    def load(self, name: str) -> Ready:
        """A template to render, by its name or path; raises as `text` does."""
        return self.ready(self.text(name), name)


@dataclass(frozen=True)
class Ready:
    """A template to render."""

    kind: Kind
    name: str
    template: Template

    def render(self, **values: object) -> str:
        """The text with a value for each of its kind's variables.

        Raises:
            DataError: The template uses another variable, or does what the sandbox forbids.
        """
        try:
            return self.template.render(values)
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            *most, last = self.kind.variables
            raise DataError(
                f"{self.kind.key}={self.name}: it fails: {error}. It may use {', '.join(most)} and {last}."
            ) from error
