"""Override lines: how the form writes them, and which lines of a person clash with a field of the form."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tasks.config import Section
from tasks.errors import ConfigError


def line(key: str, value: Any) -> str:  # Any: JSON values and sections
    """The line that sets a key."""
    # JSON is YAML, in which override lines are written; escapes of characters beyond 16 bits are not.
    return f"{key}={json.dumps(value, default=_section_as_json, ensure_ascii=False)}"


def _section_as_json(section: Section) -> dict[str, Any]:  # Any: JSON values
    return section.model_dump(mode="json", exclude_defaults=True)


def refuse_clashes(fields: Iterable[tuple[str, str]], lines: Iterable[str]) -> None:
    """Refuse a line about a key that a field of the form sets, about a key above it, or about one below it.

    A line counts more than a field, so it would undo in silence what is filled in.

    Args:
        fields: The title of each field that is filled in, with a key that it sets.

    Raises:
        ConfigError: With the field, the line, and what to do.
    """
    fields = list(fields)
    for one in lines:
        key = f"{one.partition('=')[0].strip()}."
        for title, of_field in fields:
            if key.startswith(f"{of_field}.") or f"{of_field}.".startswith(key):
                shown = one if len(one) <= 80 else f"{one[:79]}…"
                raise ConfigError(
                    f"{title} and the line {shown} under More changes set the same. Leave out one of the two."
                )
