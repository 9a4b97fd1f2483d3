"""Recipe files and override lines -> a checked recipe, or a message that names the place and the nearest right key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ValidationError

from tasks.config.recipe import RunConfig
from tasks.errors import ConfigError

Override = Annotated[str, "a.b=c"]
SHORT_FORMS = {
    "engine": "kind",
    "execution": "steps",
}  # a section that may be written as one word: the value of this key


def load_recipe(path: Path, overrides: Iterable[Override] = ()) -> RunConfig:
    """Read a recipe file and apply `--set` overrides.

    Raises:
        ConfigError: The file is missing or not YAML, or a key or value is wrong; the message names the nearest
            right key.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe. `ssr recipes` lists the shipped ones.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of sections, found {type(raw).__name__}")
    raw.setdefault("name", path.stem)
    lines = list(overrides)
    for override in lines:
        _apply(raw, override)
    recipe = parse_recipe(raw, where=str(path))
    _refuse_idle(recipe, lines)
    return recipe


def parse_recipe(raw: dict[str, Any], *, where: str) -> RunConfig:  # Any: YAML values, checked here
    """Check a recipe given as plain values."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {_explain(problem)}" for problem in error.errors())) from error


def _apply(raw: dict[str, Any], override: Override) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: write it as section.key=value")
    *parents, last = key.split(".")
    node: Any = raw  # Any: walks through YAML values
    for parent in parents:
        if isinstance(node, list):
            node = node[_index(node, parent, override)]
        else:
            if parent in SHORT_FORMS and isinstance(node.get(parent), str):
                node[parent] = {SHORT_FORMS[parent]: node[parent]}
            node = node.setdefault(parent, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {override}: {parent} is a value, it has nothing below it")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: not a YAML value: {error}") from error
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    else:
        node[last] = value


def _refuse_idle(recipe: RunConfig, overrides: list[Override]) -> None:
    """Refuse an override of training that no arm would follow: its learning rate, say, where each has its own."""
    in_arms = {f"train.{option}": field for option, field in recipe.arms[0].options().items()}
    for override in overrides:
        name = in_arms.get(override.partition("=")[0])
        if name and all(getattr(arm, name) is not None for arm in recipe.arms):
            arms = ", ".join(f"arms.{i}.{name}" for i in range(len(recipe.arms)))
            raise ConfigError(f"--set {override}: has no effect, every arm has its own. Set {arms}")


def _index(node: list[Any], key: str, override: Override) -> int:
    if not key.isdigit() or int(key) >= len(node):
        raise ConfigError(f"--set {override}: {key} is not a place in a list of {len(node)}")
    return int(key)


def _explain(problem: Any) -> str:  # Any: pydantic's ErrorDetails, whose context is untyped
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"][:-1])
        nearest = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known here: {', '.join(known)}"
        return f"unknown key {place!r}: {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    shown = repr(problem["input"])
    return f"{place or 'recipe'}: {message}" + (f" (found {shown})" if len(shown) < 80 else "")


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for part in location:
        if isinstance(part, int):
            continue
        annotation: Any = model.model_fields[part].annotation  # Any: a typing construct
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
