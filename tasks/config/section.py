"""What every section of the recipe is: frozen, without unknown keys, and able to say what changes a step's output.

A field marked `RUNTIME` changes how fast a step runs or where, never what it writes, and so stays out of the step's
fingerprint.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict

RUNTIME: JsonDict = {"runtime": True}


class Section(BaseModel):
    """A part of the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
