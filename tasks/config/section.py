"""What every section of the recipe is: frozen, without unknown keys, and able to say what changes a step's output.

A field's description is its label in forms and in the reference. It stands in `Field`, or in a docstring below the
field where it does not fit on the line. A field marked `RUNTIME` changes how fast a step runs or where, never what it
writes, and so stays out of the step's fingerprint.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict

RUNTIME: JsonDict = {"runtime": True}


class Section(BaseModel):
    """A part of the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def refuse_unread(self, names: Iterable[str], why: str, *, place: str = "") -> None:
        """Refuse fields that are set and have no effect.

        Args:
            why: The reason, which follows "has no effect" in the message.
            place: What stands before the name of a field in the message.

        Raises:
            ValueError: One of them differs from its default.
        """
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{place}{name} has no effect {why}. Remove it.")

    def identity(self) -> dict[str, Any]:
        """The fields that change what a step writes, as JSON values."""
        found: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("runtime"):
                continue
            value = getattr(self, name)
            if isinstance(value, Section):
                found[name] = value.identity()
            elif isinstance(value, tuple):
                found[name] = [v.identity() if isinstance(v, Section) else v for v in value]
            else:
                found[name] = value
        return found
