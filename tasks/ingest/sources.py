"""A source of the recipe: what it asks for, whether it is consistent, its content digest, and its raw examples."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple

from tasks.config import DataConfig, FieldsConfig, SourceConfig
from tasks.errors import ConfigError
from tasks.ingest.files import DataFile, content_digest, find_files
from tasks.ingest.formats import records
from tasks.ingest.hub import hub_records, revision_digest
from tasks.ingest.md2d import md2d
from tasks.ingest.prompts import prompt_text
from tasks.ingest.raw import Dropped, RawExample
from tasks.ingest.readers import READERS, lab
from tasks.ingest.rows import rows
from tasks.lab.task import VERSION as LAB_VERSION

# These formats hold one kind of task; for them `open`, the default of a source, stands for that task.
_TASK_OF_READER = {
    "squad2": "grounded_qa", "md2d": "grounded_qa", "nq": "grounded_qa", "musique": "grounded_qa", "lab": "grounded_qa",
    "gsm8k": "number",
}  # fmt: skip


class Source(NamedTuple):
    """A source that has been checked.

    Attributes:
        key: Where it stands in the recipe, e.g. `data.sources.0`.
        task: The task of its rows.
    """

    config: SourceConfig
    key: str
    task: str

    @property
    def reader(self) -> str:
        return "rows" if self.config.reader == "auto" else self.config.reader

    @property
    def shown(self) -> str:
        """What a message calls it."""
        return str(self.config.path or self.config.hub or self.reader)


def sources_of(config: DataConfig) -> list[Source]:
    """The sources of a recipe.

    Raises:
        ConfigError: A source sets something that would have no effect, or lacks what its reader needs.
    """
    found = []
    for index, source in enumerate(config.sources):
        key = f"data.sources.{index}"
        for setting, problem in _problems(source):
            raise ConfigError(f"{key}.{setting}: {problem}")
        task = _TASK_OF_READER.get(source.reader, source.task) if source.task == "open" else source.task
        found.append(Source(source, key, task))
    return found


def _problems(source: SourceConfig) -> Iterator[tuple[str, str]]:
    """Each setting that has no effect or contradicts another, and what to do."""
    reader = "rows" if source.reader == "auto" else source.reader
    task = _TASK_OF_READER.get(reader, source.task)
    if source.task not in ("open", task):
        yield "task", f"reader {reader} makes {task} rows, not {source.task}. Remove `task`."
    if reader != "rows" and source.fields != FieldsConfig():
        yield "fields", f"reader {reader} has columns of its own. Remove `fields`, or set `reader: rows`."
    if reader == "md2d" and source.documents is None:
        yield "documents", "reader md2d needs the documents file (multidoc2dial_doc.json). Set it."
    if reader != "md2d" and source.documents is not None:
        yield "documents", f"only reader md2d uses it, not {reader}. Remove it."
    if source.fields.messages and (source.prompt or source.unanswerable):
        setting = "prompt" if source.prompt else "unanswerable"
        yield setting, "the chat in `fields.messages` is kept as it is. Remove one of the two."
    if reader == "rows" and task == "grounded_qa" and not (source.fields.document or source.fields.messages):
        yield "fields.document", "a grounded_qa row needs a document. Set fields.document=<column>."
    if source.unanswerable and task != "grounded_qa":
        yield "unanswerable", f"only grounded_qa questions can be made unanswerable, not {task}. Remove it."
    yield from _origin_problems(source)


def _origin_problems(source: SourceConfig) -> Iterator[tuple[str, str]]:
    if source.reader == "lab":
        defaults = SourceConfig(reader="lab")
        for name in ("path", "hub", "split", "domain", "unanswerable"):
            if getattr(source, name) != getattr(defaults, name):
                yield name, "the lab draws its own rows, splits and domains. Remove it."
    if source.reader == "md2d" and source.hub:
        yield "hub", "reader md2d reads the official files. Download them and set `path` and `documents`."
    if source.hub is None:
        for name, unset in (("hub_config", None), ("hub_split", "train"), ("revision", None)):
            if getattr(source, name) != unset:
                yield name, "has no effect without `hub`. Remove it."


def source_digest(source: Source) -> dict[str, Any]:  # Any: JSON values
    """Digests of all that enters from outside through a source: bytes or revision, and the prompt template.

    Raises:
        DataError: Something is not there.
    """
    config = source.config
    found: dict[str, Any] = {"prompt": None}
    if not config.fields.messages:
        found["prompt"] = prompt_text(config, source.task, key=source.key)
    if source.reader == "lab":
        return found | {"lab": LAB_VERSION}
    if config.hub:
        return found | {"revision": revision_digest(config, key=source.key)}
    found["files"] = _content(source, "path")
    if config.documents:
        found["documents"] = _content(source, "documents")
    return found


def _content(source: Source, key: Literal["path", "documents"]) -> list[list[str]]:
    """What is in the files; of their names only the endings count, which say how to read them."""
    files = _files(source, key)
    return sorted([*PurePosixPath(file.name).suffixes, content_digest(file)] for file in files)


def raw_examples(source: Source, config: DataConfig) -> Iterator[RawExample | Dropped]:
    """Everything in a source, in the order in which it stands there."""
    if source.reader == "lab":
        return lab(config.lab_rows, seed=config.seed)
    if source.reader == "md2d":
        return md2d(_files(source, "path"), _files(source, "documents"))
    if source.config.hub:
        revision = revision_digest(source.config, key=source.key)
        found = hub_records(source.config, revision, key=source.key)
    else:
        found = chain.from_iterable(records(file) for file in _files(source, "path"))
    if source.reader == "rows":
        return rows(found, source.config.fields, key=f"{source.key}.fields")
    return READERS[source.reader](found)


def _files(source: Source, setting: str) -> list[DataFile]:
    return find_files(str(getattr(source.config, setting)), key=f"{source.key}.{setting}")
