"""A reader is declared in one place: a toy one runs from its file to examples, and a forgotten part fails at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.form.parts import DataPart
from flows.rehearsal import plan_steps
from tasks.artifacts.store import open_store
from tasks.config import DataConfig, SourceConfig, parse_recipe
from tasks.errors import ConfigError
from tasks.ingest import ingest
from tasks.readers import registry
from tasks.readers.registry import Dropped, RawExample, ReaderInput, reader, reader_names, reader_of


@pytest.fixture(autouse=True)
def _own_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "READERS", dict(registry.READERS))


def declare(name: str = "toy", **changes: Any) -> None:
    @reader(name, **{"title": "Toy", "files": "Lines of who and where", "task": "grounded_qa"} | changes)
    def toy(source: ReaderInput) -> Iterator[RawExample | Dropped]:
        for record in source.records:
            who, where = record.value["who"], record.value["where"]
            document = f"{who} lives in {where}." if where else f"{who} is tall."
            yield RawExample(f"Where does {who} live?", document, None, [where], [], bool(where), None)


@pytest.fixture
def people(tmp_path: Path) -> str:
    path = tmp_path / "people.jsonl"
    lines = [{"who": f"P{i}", "where": None if i % 3 == 0 else f"Town {i}"} for i in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_one_declaration_takes_a_file_to_examples_with_the_task_of_the_reader(people: str, tmp_path: Path) -> None:
    declare()
    store = open_store(str(tmp_path / "store"))
    config = DataConfig.model_validate({"sources": [{"path": people, "reader": "toy"}]})
    ref = ingest.plan(config=config).execute(store)
    rows = pq.read_table(store.fetch(ref) / "examples.parquet").to_pylist()
    assert len(rows) == 12
    assert {row["task"] for row in rows} == {"grounded_qa"}
    assert sum(row["answerable"] is False for row in rows) == 4
    assert all(row["document"] in row["messages"][0]["content"] for row in rows)


def test_a_recipe_with_a_declared_reader_can_be_planned(people: str) -> None:
    declare()
    recipe = {"data": {"sources": [{"path": people, "reader": "toy"}]}, "evaluate": {"benchmarks": []}}
    labels = [one.label for one in plan_steps(parse_recipe(recipe, where="toy"))]
    assert labels[0] == "ingest"
    assert labels[-1] == "report"


@pytest.mark.parametrize("form", [SourceConfig, DataPart])
def test_the_schemas_of_recipe_and_run_form_offer_a_declared_reader(form: type[SourceConfig | DataPart]) -> None:
    declare()
    assert form.model_json_schema()["properties"]["reader"]["enum"] == reader_names()
    assert "toy" in reader_names()


def test_an_unknown_reader_is_refused_with_the_known_ones(people: str) -> None:
    recipe = {"data": {"sources": [{"path": people, "reader": "squad"}]}}
    with pytest.raises(ConfigError, match=r"sources\.0\.reader: there is no reader 'squad'. Use one of auto, .*squad2"):
        parse_recipe(recipe, where="toy")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "squad2"}, "there is a reader of this name already"),
        ({"name": "auto"}, "there is a reader of this name already"),
        ({"task": "grounded"}, "unknown task 'grounded'. Use grounded_qa, open, number, multiple_choice"),
        ({"title": ""}, "title or files is empty"),
        ({"files": " "}, "title or files is empty"),
        ({"settings": ("path", "columns")}, "unknown setting 'columns'. Known: path, hub"),
    ],
)
def test_a_mistake_in_a_declaration_fails_where_it_is_declared(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        declare(**changes)
    assert "toy" not in registry.READERS


def test_a_declaration_without_a_task_is_refused() -> None:
    with pytest.raises(TypeError, match="required keyword-only argument: 'task'"):
        reader("toy", title="Toy", files="Lines")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("declared", "source", "setting"),
    [
        ({}, {"documents": "d.json"}, "documents"),
        ({}, {"fields": {"answer": "a"}}, "fields"),
        ({}, {"task": "number"}, "task"),
        ({"settings": ("path", "documents")}, {}, "documents"),
        ({"settings": ("hub",)}, {}, "path"),
        ({"settings": ("path",)}, {"path": None, "hub": "me/people"}, "hub"),
        ({"settings": (), "version": 1}, {}, "path"),
    ],
)
def test_what_a_declared_reader_does_not_read_is_refused_in_a_recipe(
    people: str, declared: dict[str, Any], source: dict[str, Any], setting: str
) -> None:
    declare(**declared)
    config = DataConfig.model_validate({"sources": [{"path": people, "reader": "toy"} | source]})
    with pytest.raises(ConfigError, match=rf"data\.sources\.0\.{setting}: "):
        ingest.plan(config=config)


def test_every_module_of_readers_is_loaded_by_itself() -> None:
    modules = {path.stem for path in Path(registry.__file__).parent.glob("*.py")}
    declared = {reader_of(name).read.__module__.rpartition(".")[2] for name in reader_names()}
    assert declared == modules - {"__init__", "data_files", "formats", "registry", "values"}
