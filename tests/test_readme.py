"""What the pages for people tell them to type, to read and to copy exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from documented import require_commands, require_fields, require_paths

from tasks.config import parse_recipe
from tasks.policies import POLICIES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ("README.md", "GUIDE.md", "REFERENCE.md", "CONTRIBUTING.md", "DECISIONS.md", "CHANGELOG.md")


def test_the_commands_of_the_readme_exist() -> None:
    typed = [line for line in re.sub(r"```.*?```", "", README, flags=re.S).splitlines() if line.startswith("    ")]
    assert typed
    require_commands(typed)


def test_the_recipe_of_the_readme_is_valid() -> None:
    recipe = re.search(r"```yaml\n(.*?)```", README, re.S)
    assert recipe is not None
    parse_recipe(yaml.safe_load(recipe.group(1)), where="README.md")


def test_the_readme_is_short_and_shows_the_report() -> None:
    assert len(README.splitlines()) <= 130
    picture = re.search(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert picture is not None
    assert (ROOT / picture.group(1)).stat().st_size < 300_000


@pytest.mark.parametrize("page", PAGES)
def test_paths_and_links_of_a_page_exist(page: str) -> None:
    require_paths((ROOT / page).read_text())


@pytest.mark.parametrize("page", PAGES)
def test_fields_that_a_page_names_exist(page: str) -> None:
    require_fields((ROOT / page).read_text())


@pytest.mark.parametrize("page", PAGES)
def test_links_within_a_page_lead_to_a_heading(page: str) -> None:
    text = (ROOT / page).read_text()
    headings = {_anchor(title) for title in re.findall(r"^#+ (.*)$", text, re.M)}
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= headings


def _anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def test_every_shipped_recipe_is_valid() -> None:
    for path in (ROOT / "deployments" / "recipes").glob("*.yaml"):
        parse_recipe(yaml.safe_load(path.read_text()), where=path.name)


@pytest.mark.parametrize("name", POLICIES)
def test_the_guide_says_what_each_policy_trains_on(name: str) -> None:
    assert f"\n| `{name}` | " in (ROOT / "GUIDE.md").read_text()
