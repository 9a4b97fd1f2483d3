"""Plain tables: columns named in the recipe -> raw examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tasks.config import FieldsConfig
from tasks.errors import DataError
from tasks.ingest.raw import Dropped, Message, RawExample, Record, as_bool, as_text, as_texts

_ROLES = ("system", "user", "assistant")
_ABSENT = object()


def rows(records: Iterable[Record], fields: FieldsConfig, *, key: str) -> Iterator[RawExample | Dropped]:
    """One example a record.

    Args:
        key: Where `fields` stands in the recipe, for messages.

    Raises:
        DataError: The first record of a file lacks a mapped column, or a value is of the wrong type. A column that
            only later records lack counts as null there, as JSONL leaves nulls out.
    """
    path = None
    for record in records:
        if not isinstance(record.value, dict):
            raise DataError(
                f"{record.where}: expected an object, found {type(record.value).__name__}. Correct this row."
            )
        if record.path != path:
            path = record.path
            _check_columns(record, fields, key)
        yield _example(record, fields)


def _check_columns(record: Record, fields: FieldsConfig, key: str) -> None:
    answerable = fields.answerable and as_bool(_at(record, fields.answerable), record, fields.answerable)
    for field, column in fields.model_dump().items():
        # A chat replaces the question and may bring its answer; an unanswerable row needs none.
        optional = field in ("question", "answer") if fields.messages else field == "answer" and answerable is False
        if column is not None and not optional and _find(record.value, column) is _ABSENT:
            found = ", ".join(map(str, record.value))
            raise DataError(f"{record.path}: no column {column!r} (found {found}). Map it: {key}.{field}=<column>")


def _example(record: Record, fields: FieldsConfig) -> RawExample:
    golds = as_texts(_at(record, fields.answer), record, fields.answer)
    question = as_text(_at(record, fields.question), record, fields.question) or ""
    messages = _chat(record, fields.messages) if fields.messages else None
    if messages and messages[-1]["role"] == "assistant":
        golds = golds or [messages[-1]["content"]]
        messages = messages[:-1]
    if messages:
        question = question or _last_user_text(messages, record)
    incorrect = as_texts(_at(record, fields.incorrect), record, str(fields.incorrect))
    return RawExample(
        question, as_text(_at(record, fields.document), record, str(fields.document)), messages, golds, incorrect,
        as_bool(_at(record, fields.answerable), record, str(fields.answerable)),
        as_text(_at(record, fields.group), record, str(fields.group)),
    )  # fmt: skip


def _chat(record: Record, column: str) -> list[Message]:
    """A chat, checked; empty where it is null."""
    chat = _at(record, column)
    if chat is None:
        return []
    if not isinstance(chat, list):
        raise DataError(
            f"{record.where}: {column!r} must be a list of messages, found {type(chat).__name__}. Correct it."
        )
    return [_message(message, f"{column}.{index}", record) for index, message in enumerate(chat)]


def _message(message: Any, name: str, record: Record) -> Message:  # Any: a JSON value
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        role = message.get("role") if isinstance(message, dict) else message
        raise DataError(f"{record.where}: {name}: role {role!r} is none of {', '.join(_ROLES)}. Correct this chat.")
    content = message.get("content")
    if not isinstance(content, str):
        raise DataError(f"{record.where}: {name}: content must be a text, found {type(content).__name__}. Correct it.")
    return {"role": message["role"], "content": as_text(content, record, name) or ""}


def _last_user_text(messages: list[Message], record: Record) -> str:
    if messages[-1]["role"] != "user":
        raise DataError(
            f"{record.where}: the chat ends with {messages[-1]['role']}, not with the user. Correct this chat."
        )
    return messages[-1]["content"]


def _at(record: Record, column: str | None) -> Any:  # Any: a JSON value
    value = None if column is None else _find(record.value, column)
    return None if value is _ABSENT else value


def _find(value: Any, column: str) -> Any:  # Any: JSON values
    """The value of a column; a name with dots is looked up as it is first, then a part at a time."""
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
