"""Override lines: how the form writes them, and which one would leave a field of the form without effect.

Lines that a person writes count more than fields. One that names a whole section, such as `train={...}`, would undo
in silence what is filled in above it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from tasks.config import RunConfig, Section, TrainConfig
from tasks.errors import ConfigError


def line(key: str, value: Any) -> str:  # Any: JSON values and sections
    """The line that sets a key."""
    # JSON is YAML, in which override lines are written; escapes of characters beyond 16 bits are not.
    return f"{key}={json.dumps(value, default=_section_as_json, ensure_ascii=False)}"


def _section_as_json(section: Section) -> dict[str, Any]:  # Any: JSON values
    return section.model_dump(mode="json", exclude_defaults=True)


def refuse_outweighed(
    read: Callable[[list[str]], RunConfig], lines: list[str], fields: Iterable[tuple[str, list[str]]], more: list[str]
) -> None:
    """Refuse a line that leaves a field without effect.

    Args:
        read: Makes a recipe of lines.
        lines: What all fields say.
        fields: The title of each field that is filled in, and what the others say without it.
        more: The lines that count more.

    Raises:
        ConfigError: With the field, the line, and what to do.
    """

    @cache
    def effect(*said: str) -> object:
        try:
            recipe = read(list(said))
        except ConfigError:
            return None
        # What is trained, not what is written: epochs count for arms without their own, whichever line names them.
        trained = [(arm.name, arm.select_config(), arm.train_config(recipe.train)) for arm in recipe.arms]
        return recipe.model_copy(update={"arms": (), "train": TrainConfig()}), trained

    for title, without in fields:
        if found := _outweighing(effect, lines, without, more):
            shown = found if len(found) <= 80 else f"{found[:79]}…"
            raise ConfigError(
                f"{title} has no effect: the line {shown} under More changes outweighs it. Leave out one of the two."
            )


def _outweighing(effect: Callable[..., object], lines: list[str], without: list[str], more: list[str]) -> str | None:
    def same(n: int) -> bool:
        """Whether the first `n` lines give the same with the field and without it."""
        return effect(*lines, *more[:n]) == effect(*without, *more[:n])

    if not same(len(more)):
        return None
    if not same(0):
        return next(more[n] for n in reversed(range(len(more))) if not same(n))
    # The field says what the recipe says anyway: only a line about the same key, or all around it, has replaced it.
    own = [_key(one) for one in lines if one not in without]
    return next((one for one in more if any(f"{key}.".startswith(f"{_key(one)}.") for key in own)), None)


def _key(text: str) -> str:
    return text.partition("=")[0].strip()
