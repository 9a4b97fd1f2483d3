"""The lab's task, whose rows are drawn and not read from files."""

from __future__ import annotations

from collections.abc import Iterator

from tasks.lab.task import VERSION, task_rows
from tasks.readers.registry import Dropped, RawExample, ReaderInput, reader


@reader(
    "lab", title="the lab", task="grounded_qa", files="no files: it draws questions about a small made-up world",
    settings=(), prompt="lab.v1", version=VERSION,
)  # fmt: skip
def lab(source: ReaderInput) -> Iterator[RawExample | Dropped]:
    """The lab's task, with the split, domain and source that its rows bring."""
    for row in task_rows(source.n_rows, seed=source.seed):
        yield RawExample(
            row.question, row.document, None, row.golds, row.incorrect, row.answerable, row.group,
            source=row.source, split=row.split, domain=row.domain,
        )  # fmt: skip
