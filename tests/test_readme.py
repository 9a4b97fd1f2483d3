"""What the README tells people to type exists."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from typer.testing import CliRunner

from flows.cli.main import app
from tasks.config import parse_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make ([a-z]+)", README)) <= targets


def test_every_ssr_command_exists() -> None:
    for command in set(re.findall(r"ssr ([a-z]+) ", README)):
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command


def test_the_recipe_of_the_readme_is_valid() -> None:
    recipe = re.search(r"```yaml\n(.*?)```", README, re.S)
    assert recipe is not None
    parse_recipe(yaml.safe_load(recipe.group(1)), where="README.md")


def test_every_shipped_recipe_is_valid() -> None:
    for path in (ROOT / "deployments" / "recipes").glob("*.yaml"):
        parse_recipe(yaml.safe_load(path.read_text()), where=path.name)


def test_every_path_in_the_readme_exists() -> None:
    for path in set(re.findall(r"`((?:flows|tasks|tests|deployments)/[a-z_./]*|[A-Z]+\.md)`", README)):
        assert (ROOT / path).exists(), path
