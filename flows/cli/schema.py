"""`ssr schema`: what a recipe may hold, as a JSON schema for editors.

`make reference` writes it to a file; a test fails when that is stale.
"""

from __future__ import annotations

from typing import Any

from flows.cli.options import print_json

Schema = dict[str, Any]  # Any: a JSON schema


def schema() -> None:
    """Print the JSON schema of a recipe, with which an editor completes and checks recipes."""
    print_json(recipe_schema())


def recipe_schema() -> Schema:
    """The JSON schema of a recipe, in which a section that has a short form (`engine: vllm`) may be a word, too."""
    from tasks.config import RunConfig
    from tasks.config.reading import SHORT_FORMS

    found = RunConfig.model_json_schema()
    for section in (found, *found["$defs"].values()):
        for name, key in SHORT_FORMS.items():
            if field := section["properties"].get(name):
                _allow_word(field, key, found["$defs"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "Recipe of `ssr run`"}


def _allow_word(field: Schema, key: str, sections: Schema) -> None:
    """Let the value of `key` stand for the whole section."""
    forms = field.setdefault("anyOf", [{"$ref": field.pop("$ref")}] if "$ref" in field else [])
    section = sections[forms[0]["$ref"].rpartition("/")[2]]
    word = section["properties"][key]
    forms.append({name: word[name] for name in ("type", "enum") if name in word})
