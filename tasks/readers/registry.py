"""What a dataset reader is, and the register of all readers: each one is declared with `@reader` above its function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

Task = Literal["grounded_qa", "open", "number", "multiple_choice"]
TASKS: tuple[Task, ...] = get_args(Task)
Setting = Literal["path", "hub", "fields", "documents"]
AUTO = "auto"  # the default in a recipe: the reader `rows`
Message = dict[str, str]  # role, content


class RawRecord(NamedTuple):
    """One row or JSON item, not checked yet.

    Attributes:
        place: Its place in the file, e.g. `line 12`.
    """

    path: str
    place: str
    value: Any  # Any: JSON values from outside, checked by the reader

    @property
    def where(self) -> str:
        """File and place, for messages."""
        return f"{self.path}:{self.place}"


class RawExample(NamedTuple):
    """An example before it has a prompt.

    Attributes:
        messages: A chat that is used as it is; None: the prompt is rendered from a template.
        golds: As in the dataset; the refusal replaces them where `answerable` is false.
        answerable: None: the dataset does not say. Only rows of task grounded_qa keep it.
        group: What the row belongs to, such as its document; None: it belongs to nothing.
        history: Turns of a dialogue up to the answer, for the template.
        source, split, domain: Set by the row itself (lab only); None: set by the recipe.
    """

    question: str
    document: str | None
    messages: list[Message] | None
    golds: list[str]
    incorrect: list[str]
    answerable: bool | None
    group: str | None
    history: Sequence[Message] = ()
    source: str | None = None
    split: str | None = None
    domain: str | None = None


class Dropped(NamedTuple):
    """A row that its reader leaves out; rows are counted by reason."""

    reason: str


@dataclass(frozen=True)
class ReaderInput:
    """The parts of a source that its reader is given.

    Attributes:
        key: Where the source stands in the recipe, e.g. `data.sources.0`, for messages.
        records: The rows of its files, or of its Hub dataset, in order.
        documents: The rows of the file in `documents`; empty where this is not set.
        columns: The recipe's `fields`: the column of each part of a row (question, answer, ...); None: it has none.
        n_rows, seed: How many rows to draw, and from which seed, for a reader that draws its rows itself.
    """

    key: str
    records: Iterator[RawRecord]
    documents: Iterator[RawRecord]
    columns: Mapping[str, str | None]
    n_rows: int
    seed: int


Read = Callable[[ReaderInput], Iterator[RawExample | Dropped]]


@dataclass(frozen=True)
class Reader:
    """A declared reader.

    Attributes:
        name: The value of `reader` in a recipe.
        title: The name of the format, for people.
        files: In a few words, for the reference: which files it reads.
        task: The task of all its rows; None: the source's `task` says it.
        settings: The settings of a source that it reads. A recipe that sets another one is refused. `documents` is
            required where it is listed.
        prompt: The shipped prompt template of its rows; None: the one of their task.
        version: Only for a reader that draws its rows itself instead of reading files: raise it when the rows change.
    """

    name: str
    title: str
    files: str
    task: Task | None
    settings: tuple[Setting, ...]
    prompt: str | None
    version: int | None
    read: Read

    def __post_init__(self) -> None:
        where = f"reader {self.name!r} in {self.read.__module__}"
        if self.name in (AUTO, *READERS):
            raise ValueError(f"{where}: there is a reader of this name already. Choose another name.")
        if not self.title.strip() or not self.files.strip():
            raise ValueError(f"{where}: title or files is empty. Name the format, and say which files it reads.")
        if self.task not in (None, *TASKS):
            raise ValueError(f"{where}: unknown task {self.task!r}. Use {', '.join(TASKS)}, or None for the recipe's.")
        if unknown := sorted(set(self.settings) - set(get_args(Setting))):
            raise ValueError(f"{where}: unknown setting {unknown[0]!r}. Known: {', '.join(get_args(Setting))}.")

    @property
    def draws(self) -> bool:
        """Whether it draws its rows itself instead of reading files."""
        return self.version is not None


READERS: dict[str, Reader] = {}


def reader(
    name: str, *, title: str, files: str, task: Task | None, settings: tuple[Setting, ...] = ("path", "hub"),
    prompt: str | None = None, version: int | None = None,
) -> Callable[[Read], Read]:  # fmt: skip
    """Declare the function below as a reader; see `Reader` for the arguments.

    Raises:
        ValueError: The name is taken, or a part of the declaration is empty or unknown.
    """

    def declare(read: Read) -> Read:
        READERS[name] = Reader(name, title, files, task, settings, prompt, version, read)
        return read

    return declare


def reader_names() -> list[str]:
    """The values that `reader` of a source may have."""
    return [AUTO, *sorted(READERS)]


def reader_of(name: str) -> Reader:
    """The reader of this name.

    Raises:
        ValueError: There is none; the message lists the known names.
    """
    found = READERS.get("rows" if name == AUTO else name)
    if found is None:
        raise ValueError(f"there is no reader {name!r}. Use one of {', '.join(reader_names())}.")
    return found
