"""REFERENCE.md and the recipe schema say what the config and the commands are, and are what is committed."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from reference_page import reference
from typer.testing import CliRunner

from flows.cli.main import app
from flows.cli.schema import recipe_schema
from flows.runs.recipes import RECIPES, shipped
from tasks.config import RunConfig, Section

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "deployments" / "recipe.schema.json"


def test_the_reference_is_current() -> None:
    assert (ROOT / "REFERENCE.md").read_text() == reference(), "run: make reference"


def test_the_schema_for_editors_is_current() -> None:
    assert json.loads(SCHEMA.read_text()) == recipe_schema(), "run: make reference"


def test_ssr_schema_prints_the_schema() -> None:
    assert json.loads(CliRunner().invoke(app, ["schema"]).stdout) == recipe_schema()


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_names_the_schema_and_fits_it(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text()
    marker, place = text.partition("\n")[0].split("$schema=")
    assert marker == "# yaml-language-server: "
    assert (RECIPES / place).resolve() == SCHEMA
    jsonschema.validate(yaml.safe_load(text), recipe_schema())


def test_the_schema_refuses_a_misspelt_key_and_takes_short_forms() -> None:
    judge = {"llm": {"judges": [{"model": {"base": "lab-judge"}, "engine": "vllm"}]}}
    jsonschema.validate({"engine": "vllm", "execution": "deployments", "judge": judge}, recipe_schema())
    with pytest.raises(jsonschema.ValidationError, match="learning_rat"):
        jsonschema.validate({"train": {"learning_rat": 1e-4}}, recipe_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"engine": "vlm"}, recipe_schema())


def test_the_reference_marks_runtime_fields() -> None:
    lines = [line for line in reference().splitlines() if line.startswith("| `micro_batch_size`")]
    assert [line.endswith("| yes |") for line in lines] == [True]
    assert "| `learning_rate` | number > 0 | `0.0002` | Peak learning rate |  |" in reference()


def test_every_field_of_every_section_is_described() -> None:
    def sections(model: type[Section]) -> list[type[Section]]:
        found = [model]
        for field in model.model_fields.values():
            kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
            for kind in kinds:
                if isinstance(kind, type) and issubclass(kind, Section):
                    found += sections(kind)
        return found

    bare = [
        f"{section.__name__}.{name}"
        for section in sections(RunConfig)
        for name, field in section.model_fields.items()
        if not field.description
    ]
    assert bare == []
