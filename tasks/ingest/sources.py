"""A source of the recipe: checks that its settings fit together, digests its content, and yields its raw examples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple

from tasks.config import DataConfig, FieldsConfig, SourceConfig
from tasks.errors import ConfigError
from tasks.ingest.example_prompts import prompt_template
from tasks.ingest.hub import hub_records, revision_digest
from tasks.readers.data_files import DataFile, content_digest, find_files
from tasks.readers.formats import records
from tasks.readers.registry import Dropped, RawExample, RawRecord, Reader, ReaderInput, Task, reader_of


class Source(NamedTuple):
    """A source that has been checked.

    Attributes:
        key: Its place in the recipe, e.g. `data.sources.0`.
        task: The task of its rows.
    """

    config: SourceConfig
    key: str
    task: Task

    @property
    def reader(self) -> Reader:
        """The declared reader of its rows."""
        return reader_of(self.config.reader)

    @property
    def label(self) -> str:
        """How messages name the source."""
        return str(self.config.path or self.config.hub or self.reader.name)


def sources_of(config: DataConfig) -> list[Source]:
    """The sources of a recipe.

    Raises:
        ConfigError: A source sets something that would have no effect, or lacks what its reader needs.
    """
    found = []
    for index, source in enumerate(config.sources):
        key = f"data.sources.{index}"
        for setting, problem in _problems(source, reader_of(source.reader)):
            raise ConfigError(f"{key}.{setting}: {problem}")
        found.append(Source(source, key, reader_of(source.reader).task or source.task))
    return found


def _problems(source: SourceConfig, reader: Reader) -> Iterator[tuple[str, str]]:
    """Each setting that has no effect or contradicts another, with what to do about it."""
    task = reader.task or source.task
    if source.task not in ("open", task):  # open is the default of a source
        yield "task", f"reader {reader.name} makes {task} rows, not {source.task}. Remove `task`."
    if "fields" not in reader.settings and source.fields != FieldsConfig():
        yield "fields", f"reader {reader.name} has columns of its own. Remove `fields`, or set `reader: rows`."
    if "documents" in reader.settings and source.documents is None:
        yield "documents", f"reader {reader.name} needs the file of the documents. Set it."
    if "documents" not in reader.settings and source.documents is not None:
        yield "documents", f"reader {reader.name} does not use it. Remove it."
    if source.fields.messages and (source.prompt or source.unanswerable):
        setting = "prompt" if source.prompt else "unanswerable"
        yield setting, "the chat in `fields.messages` is kept as it is. Remove one of the two."
    if "fields" in reader.settings and task == "grounded_qa" and not (source.fields.document or source.fields.messages):
        yield "fields.document", "a grounded_qa row needs a document. Set fields.document=<column>."
    if source.unanswerable and task != "grounded_qa":
        yield "unanswerable", f"only grounded_qa questions can be made unanswerable, not {task}. Remove it."
    yield from _origin_problems(source, reader)


def _origin_problems(source: SourceConfig, reader: Reader) -> Iterator[tuple[str, str]]:
    if reader.draws:
        defaults = SourceConfig(reader=source.reader)
        for name in ("path", "hub", "split", "domain", "unanswerable"):
            if getattr(source, name) != getattr(defaults, name):
                yield name, f"reader {reader.name} draws its own rows, splits and domains. Remove it."
    elif source.path and "path" not in reader.settings:
        yield "path", f"reader {reader.name} reads from the Hub alone. Set `hub` instead."
    elif source.hub and "hub" not in reader.settings:
        yield "hub", f"reader {reader.name} reads files alone. Download them and set `path`."
    if source.hub is None:
        for name, unset in (("hub_config", None), ("hub_split", "train"), ("revision", None)):
            if getattr(source, name) != unset:
                yield name, "has no effect without `hub`. Remove it."


def source_digest(source: Source) -> dict[str, Any]:  # Any: JSON values
    """Digests of what a source reads from outside: its bytes or revision, and its prompt template.

    Raises:
        DataError: A file, dataset or template cannot be found.
    """
    config = source.config
    found: dict[str, Any] = {"prompt": None}
    if not config.fields.messages:
        found["prompt"] = prompt_template(config, source.task, key=source.key).text
    if source.reader.draws:
        return found | {source.reader.name: source.reader.version}
    if config.hub:
        return found | {"revision": revision_digest(config, key=source.key)}
    found["files"] = _content(source, "path")
    if config.documents:
        found["documents"] = _content(source, "documents")
    return found


def _content(source: Source, setting: Literal["path", "documents"]) -> list[list[str]]:
    """Digests of the files. Only the suffixes of their names count, because they decide how a file is read."""
    files = _files(source, setting)
    return sorted([*PurePosixPath(file.name).suffixes, content_digest(file)] for file in files)


def raw_examples(source: Source, config: DataConfig) -> Iterator[RawExample | Dropped]:
    """All examples of a source, in its order, and the rows that its reader leaves out."""
    given = ReaderInput(
        source.key, _records(source), _from_files(source, "documents"), source.config.fields.model_dump(),
        config.lab_rows, config.seed,
    )  # fmt: skip
    return source.reader.read(given)


def _records(source: Source) -> Iterator[RawRecord]:
    if source.config.hub:
        revision = revision_digest(source.config, key=source.key)
        yield from hub_records(source.config, revision, key=source.key)
    else:
        yield from _from_files(source, "path")


def _from_files(source: Source, setting: Literal["path", "documents"]) -> Iterator[RawRecord]:
    """The records of the files that a setting names, in order; none where it is not set."""
    for file in _files(source, setting):
        yield from records(file)


def _files(source: Source, setting: Literal["path", "documents"]) -> list[DataFile]:
    path = getattr(source.config, setting)
    return find_files(path, key=f"{source.key}.{setting}") if path else []
