"""Versioned text templates of prompts, rewrites and rubrics, rendered by a sandboxed Jinja.

Data is passed as values, never as template text. A shipped template is never edited: a change is a new file with the
next version, because answers were paid for with the old text.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import SandboxedEnvironment

from tasks.errors import DataError

_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


@dataclass(frozen=True)
class TemplateFolder:
    """The templates for one purpose: shipped ones in a folder, or files of the user's own.

    Attributes:
        folder: Where the shipped ones lie, as `name.txt`.
        key: The recipe's field that names one, for messages.
        variables: The names of the values that a template is given.
        by_task: The shipped template that each task uses where the recipe names none.
    """

    folder: Path
    key: str
    variables: tuple[str, ...]
    by_task: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if missing := sorted({*self.by_task.values()} - {*self.shipped()}):
            raise ValueError(f"{self.folder}: {missing[0]}.txt is the template of a task, but is not there. Add it.")

    def shipped(self) -> list[str]:
        """The names of the shipped templates."""
        return sorted(path.stem for path in self.folder.glob("*.txt"))

    def load(self, name: str) -> PromptTemplate:
        """A shipped template by its name, or a file by its path.

        Raises:
            DataError: It is neither a shipped name nor a text file, it is not a template, or it uses an unknown
                variable.
        """
        path = self.folder / f"{name}.txt" if name in self.shipped() else Path(name).expanduser()
        where = f"{self.key}={name}"
        try:
            text = path.read_text(encoding="utf-8")
            used = meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
            template = _ENVIRONMENT.from_string(text)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{where}: no template of this name, nor a text file. Set it to one of {', '.join(self.shipped())} or "
                "to a file."
            ) from error
        except TemplateSyntaxError as error:
            raise DataError(
                f"{where}: line {error.lineno}: not a Jinja template: {error.message}. Correct it."
            ) from error
        if unknown := sorted(used - {*self.variables, *_ENVIRONMENT.globals}):
            nearest = difflib.get_close_matches(unknown[0], self.variables, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise DataError(f"{where}: there is no variable {unknown[0]!r}.{hint} {self.may_use}")
        return PromptTemplate(self, name, text, template)

    @property
    def may_use(self) -> str:
        """Which variables there are, as the end of a message."""
        *most, last = self.variables
        return f"It may use {', '.join(most)} and {last}."


@dataclass(frozen=True)
class PromptTemplate:
    """A template with its text, from which it is compiled."""

    folder: TemplateFolder
    name: str
    text: str
    compiled: Template

    def render(self, **values: object) -> str:
        """The text, with a value for each variable of the folder.

        Raises:
            DataError: The template does what the sandbox forbids, or fails on these values.
        """
        try:
            return self.compiled.render(values)
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise DataError(f"{self.folder.key}={self.name}: it fails: {error}. {self.folder.may_use}") from error
