"""Makes REFERENCE.md: every field of a recipe and every command, from the config and the command line themselves.

`make reference` writes the page, and a test fails when it is stale.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import typer

from flows.cli.main import app
from flows.cli.schema import Schema, recipe_schema
from flows.rehearsal import rehearse
from tasks.config import RunConfig, Section, parse_recipe
from tasks.running.step import Planned, Step, as_input

_INTRODUCTION = """\
# Reference

`make reference` writes this page from the code, and a test fails when it is stale. `ssr schema` prints the same fields
as a JSON schema. An editor that knows the first line of a shipped recipe completes and checks recipes with it.

## Recipe

A recipe is a YAML file with these sections. Every field has a default, unless it is *required*. A key that does not
exist is refused, and so is one that has no effect beside the others. `--set section.field=value` overrides a field;
`--set data.sources.0.limit=100` reaches into a list. `engine: vllm` is short for `engine: {kind: vllm}`, and
`execution: deployments` for `execution: {steps: deployments}`.

A *runtime* field changes how fast or where a step runs, or when it gives up. It never changes what a step writes, and
no step is made again for it. Any other field makes the steps that read it run again, with what follows from them;
"Read by" names those steps. The report shows the whole recipe.
"""
_RANGES = {
    "exclusiveMinimum": "> {}", "minimum": ">= {}", "exclusiveMaximum": "< {}", "maximum": "<= {}",
    "pattern": "matches `{}`", "minItems": "(at least {})",
}  # fmt: skip
# Uses every step that some recipe has, so that each section finds its readers.
_EVERY_STEP = {
    "arms": [{"name": name, "policy": name} for name in ("ssr", "s3ft", "min_nll")],
    "generate": {"n_samples": 2, "temperature": 0.7},
    "promotion": {"arm": "ssr"},
}


def reference() -> str:
    """The text of REFERENCE.md."""
    lines = [_INTRODUCTION, *_sections(), "## Commands\n", *_commands()]
    return "\n".join(lines).rstrip() + "\n"


def _sections() -> Iterator[str]:
    schema = recipe_schema()
    readers = _readers()
    shown: dict[str, str] = {}  # where each section was described first
    waiting = [("", schema)]
    while waiting:
        path, section = waiting.pop(0)
        below: list[tuple[str, str]] = []
        rows = []
        for name, field in section["properties"].items():
            full = f"{path}.{name}".lstrip(".")
            if held := held_section(field):
                place = full + ("[]" if field.get("type") == "array" else "")
                if held in shown:
                    rows.append(_row(name, field, section, f"as [`{shown[held]}`](#{_anchor(shown[held])})"))
                else:
                    shown[held] = place
                    below.append((place, held))
                    rows.append(_row(name, field, section, f"[section](#{_anchor(place)})"))
            else:
                rows.append(_row(name, field, section))
        if path:
            about = section.get("description", "").replace("\n\n", "\n").strip()
            yield f"### `{path}`\n\n{about}\n"
            if read_by := readers.get(section["title"]):
                yield f"Read by: {', '.join(f'`{step}`' for step in read_by)}.\n"
        yield "| field | type and range | default | what it is | runtime |\n|---|---|---|---|---|"
        yield "\n".join(rows) + "\n"
        waiting[:0] = [(place, schema["$defs"][held]) for place, held in below]


def _row(name: str, field: Schema, section: Schema, kind: str = "") -> str:
    required = name in section.get("required", ())
    default = (
        "*required*" if required else "" if kind and field.get("default") is not None else _value(field["default"])
    )
    runtime = "yes" if field.get("runtime") else ""
    about = field.get("description", "")
    return " | ".join((f"| `{name}`", _cell(kind or _type(field)), _cell(default), _cell(about), f"{runtime} |"))


def held_section(field: Schema) -> str | None:
    """The name of the section that a field holds, alone or in a list; None for a plain value."""
    for form in (field, field.get("items", {}), *field.get("anyOf", ())):
        if "$ref" in form:
            return str(form["$ref"]).rpartition("/")[2]
    return None


def _type(field: Schema) -> str:
    """The type of a plain field with its range; null is named where it is a value."""
    forms = field.get("anyOf", [field])
    return " or ".join(_type_alone(form) for form in forms)


def _type_alone(form: Schema) -> str:
    if "enum" in form:
        return ", ".join(f"`{value}`" for value in form["enum"])
    names = {"string": "text", "boolean": "`true` or `false`", "array": "list of texts", "null": "`null`"}
    ranges = [text.format(form[key]) for key, text in _RANGES.items() if key in form]
    return f"{names.get(form['type'], form['type'])} {', '.join(ranges)}".strip()


def _value(value: Any) -> str:  # Any: a JSON value
    text = json.dumps(value, ensure_ascii=False)
    return "`" + (text if len(text) < 60 else text[:57] + "...") + "`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _anchor(path: str) -> str:
    """How GitHub names the anchor of a heading."""
    return "".join(letter for letter in path.lower() if letter.isalnum() or letter in "-_")


def _readers() -> dict[str, list[str]]:
    """The steps that read each section, by the name of its class, in the order of a run."""
    found: dict[str, list[str]] = {}

    def note(step: Step, label: str, after: Planned | None = None, /, **parts: Section | Planned) -> Planned:
        for part in parts.values():
            if isinstance(part, Section) and not isinstance(part, RunConfig):
                known = found.setdefault(type(part).__name__, [])
                known.extend({step.name} - set(known))
        return as_input({"step": step.name, "fingerprint": label})

    for engine in ("transformers", "vllm"):
        rehearse(note, parse_recipe(_EVERY_STEP | {"engine": engine}, where="every step"))
    found["ArmConfig"] = found["SelectConfig"] + found["TrainConfig"]  # an arm is given to them in these parts
    found["ReportConfig"] = ["report"]
    return found


def _commands() -> Iterator[str]:
    group: Any = typer.main.get_command(app)  # Any: typer's own copy of click is private
    yield "`SSR_STORE` in the environment stands for `--store`. Exit codes: 0 done, 1 failed, 2 bad input.\n"
    for name, command in _flat(group, "ssr"):
        about = " ".join((command.help or "").split())
        yield f"### `{name}`\n\n{about}\n"
        if rows := [_option(one) for one in command.params if one.name != "help"]:
            yield "| argument or option | default | what it is |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _flat(command: Any, name: str) -> Iterator[tuple[str, Any]]:  # Any: as above
    for child_name, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from _flat(child, f"{name} {child_name}")
        else:
            yield f"{name} {child_name}", child


def _option(parameter: Any) -> str:  # Any: as above
    is_option = parameter.opts[0].startswith("-")
    names = ", ".join((*parameter.opts, *parameter.secondary_opts)) if is_option else parameter.name.upper()
    kind = parameter.type_descriptor.annotation
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    default = (
        "*required*" if parameter.required else "" if parameter.default in (None, "", False) else parameter.default
    )
    about = (parameter.help or "") + (f" One of {', '.join(choices)}." if choices else "")
    return f"| `{names}` | {_cell(str(default))} | {_cell(about)} |"


if __name__ == "__main__":
    sys.stdout.write(reference())
