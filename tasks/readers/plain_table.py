"""Plain tables: rows with the columns that the recipe names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tasks.errors import DataError
from tasks.readers.registry import Dropped, Message, RawExample, RawRecord, ReaderInput, reader
from tasks.readers.values import as_bool, as_chat, as_text, as_texts

_ABSENT = object()

Columns = Mapping[str, str | None]


@reader(
    "rows", title="plain table", task=None, files="JSONL, JSON, CSV or Parquet with the columns that `fields` names",
    settings=("path", "hub", "fields"),
)  # fmt: skip
def rows(source: ReaderInput) -> Iterator[RawExample | Dropped]:
    """One example per record.

    Raises:
        DataError: The first record of a file lacks a mapped column, or a value is of the wrong type. A column that
            only a later record lacks is null there, because JSONL may leave nulls out.
    """
    path = None
    for record in source.records:
        if not isinstance(record.value, dict):
            raise DataError(
                f"{record.where}: expected an object, found {type(record.value).__name__}. Correct this row."
            )
        if record.path != path:
            path = record.path
            _check_columns(record, source)
        yield _example(record, source.columns)


def _check_columns(record: RawRecord, source: ReaderInput) -> None:
    is_chat = source.columns["messages"] is not None
    answerable = as_bool(*_value(record, source.columns["answerable"]))
    for field, column in source.columns.items():
        # A chat replaces the question and may contain the answer; an unanswerable row needs no answer.
        optional = field in ("question", "answer") if is_chat else field == "answer" and answerable is False
        if column is not None and not optional and _find(record.value, column) is _ABSENT:
            found = ", ".join(map(str, record.value))
            raise DataError(
                f"{record.path}: no column {column!r} (found {found}). Map it: {source.key}.fields.{field}=<column>"
            )


def _example(record: RawRecord, columns: Columns) -> RawExample:
    golds = as_texts(*_value(record, columns["answer"]))
    question = as_text(*_value(record, columns["question"])) or ""
    messages = as_chat(*_value(record, columns["messages"])) if columns["messages"] else None
    if messages and messages[-1]["role"] == "assistant":
        golds = golds or [messages[-1]["content"]]
        messages = messages[:-1]
    if messages:
        question = question or _last_user_text(messages, record)
    return RawExample(
        question, as_text(*_value(record, columns["document"])), messages, golds,
        as_texts(*_value(record, columns["incorrect"])), as_bool(*_value(record, columns["answerable"])),
        as_text(*_value(record, columns["group"])),
    )  # fmt: skip


def _last_user_text(messages: list[Message], record: RawRecord) -> str:
    if messages[-1]["role"] != "user":
        raise DataError(
            f"{record.where}: the chat ends with {messages[-1]['role']}, not with the user. Correct this chat."
        )
    return messages[-1]["content"]


def _value(record: RawRecord, column: str | None) -> tuple[Any, RawRecord, str]:  # Any: a JSON value
    """The value of a column, null where it is absent, with its record and name: arguments of `as_text`."""
    value = None if column is None else _find(record.value, column)
    return None if value is _ABSENT else value, record, column or ""


def _find(value: Any, column: str) -> Any:  # Any: JSON values
    """The value of a column. A name with dots is looked up whole first, then part by part."""
    if isinstance(value, dict) and column in value:
        return value[column]
    first, dot, rest = column.partition(".")
    if not dot:
        return _ABSENT
    if isinstance(value, list) and first.isdigit():
        return _find_below(value[int(first)], rest) if int(first) < len(value) else None
    return _find_below(value[first], rest) if isinstance(value, dict) and first in value else _ABSENT


def _find_below(value: Any, column: str) -> Any:  # Any: JSON values
    return None if value is None else _find(value, column)
