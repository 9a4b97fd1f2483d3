"""GUIDE.md: its blocks are run as a reader would run them, one section after the other, in one folder.

What stands behind the language of a block, where a reader of the page does not see it, says what becomes of it:

    ```jsonl questions.jsonl      a file, under this name; a recipe where it is YAML with `data`
    ```yaml part                  a part of a recipe: it must be valid
    ```sh run                     commands that are run, with the steps in this process
    ```sh                         commands whose words and options must exist: they need a GPU, a server or the network
    ```python run                 a program that is run
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import yaml
from documented import commands, require_commands
from in_process import ssr, steps_in_process

from flows.runs.records import load_run
from tasks.artifacts.store import open_store
from tasks.config import load_recipe, parse_recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))
from faulty_server import FaultyServer

if TYPE_CHECKING:
    from s3 import S3

pytest_plugins = ["s3"]

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "GUIDE.md").read_text()
_BLOCK = re.compile(r"^```(\w+)(?: ([^\n]*))?\n(.*?)^```$", re.M | re.S)
N_ROWS = {"questions": 10, "tickets": 10, "chats": 6, "squad": 6}


class Block(NamedTuple):
    section: str
    language: str
    mark: str  # of the kinds above
    text: str

    @property
    def is_file(self) -> bool:
        return "." in self.mark


def blocks() -> Iterator[Block]:
    for section in re.split(r"^## ", GUIDE, flags=re.M)[1:]:
        title = section.partition("\n")[0]
        yield from (Block(title, *(found or "" for found in match.groups())) for match in _BLOCK.finditer(section))


BLOCKS = list(blocks())
FILES = [block for block in BLOCKS if block.is_file]
RECIPES = [block.mark for block in FILES if block.language == "yaml" and "\ndata:" in block.text]
RUN_SECTIONS = list(dict.fromkeys(block.section for block in BLOCKS if block.mark == "run"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file of the guide."""
    folder = tmp_path_factory.mktemp("guide")
    for block in FILES:
        (folder / block.mark).write_text(block.text)
    return folder


@pytest.fixture
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In the folder of the files, with an environment that the commands may change."""
    monkeypatch.chdir(folder)
    before = dict(os.environ)
    yield folder
    os.environ.clear()
    os.environ.update(before)


def test_every_block_is_of_a_known_kind() -> None:
    known = {("yaml", "part"), ("sh", ""), ("sh", "run"), ("python", "run")}
    assert {(block.language, block.mark) for block in BLOCKS if not block.is_file} == known
    assert GUIDE.count("```") == 2 * len(BLOCKS)


def test_recipes_are_valid(in_folder: Path) -> None:
    assert set(N_ROWS) < {name.removesuffix(".yaml") for name in RECIPES}
    for name in RECIPES:
        assert load_recipe(Path(name)).name == name.removesuffix(".yaml")


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.mark == "part"], ids=lambda b: b.section)
def test_parts_of_recipes_are_valid(block: Block) -> None:
    parse_recipe(yaml.safe_load(block.text), where=f"GUIDE.md, {block.section}")


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "sh"], ids=lambda b: b.section)
def test_commands_and_options_exist(block: Block) -> None:
    require_commands(block.text.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("section", RUN_SECTIONS)
def test_a_section_runs(section: str, in_folder: Path, prefect_server: None, s3: S3) -> None:
    with FaultyServer(model="my-judge", needs_key="the-key") as judge, steps_in_process():
        here = {"http://localhost:8000/v1": judge.url, "http://localhost:9000": s3.endpoint, "s3://bucket": s3.uri}
        for block in FILES:
            (in_folder / block.mark).write_text(_moved(block.text, here))
        for block in BLOCKS:
            if (block.section, block.language, block.mark) == (section, "sh", "run"):
                _run(block._replace(text=_moved(block.text, here)))
            elif (block.section, block.language, block.mark) == (section, "python", "run"):
                found: dict[str, object] = {}
                exec(block.text, found)  # the page's own program
                assert set(found["items"]["model"]) == {"base", "sft", "ssr"}  # type: ignore[index]  # a data frame
        if section == "A language model as the judge":
            assert judge.paid, "the judge behind the URL was asked"
    if section == "Your own data":
        _require_all_rows()


def _moved(text: str, here: dict[str, str]) -> str:
    for address, stand_in in here.items():
        text = text.replace(address, stand_in)
    return text


def _run(block: Block) -> None:
    for program, *words in commands(block.text.splitlines()):
        if program == "export":
            os.environ.update([words[0].split("=", 1)])
        else:
            assert program == "ssr"
            done = ssr(*words)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "report.html" in done.stdout or words[0] != "run"


def _require_all_rows() -> None:
    """Every row of every format was read and kept."""
    store = open_store(".ssr")
    for name, n_rows in N_ROWS.items():
        ingested = load_run(store, f"{name}-").step("ingest")
        assert ingested is not None
        manifest = store.manifest(**ingested.ref)
        assert manifest is not None
        assert (manifest.counts["rows_in"], manifest.counts["rows_out"]) == (n_rows, n_rows), name
