"""Reads single values of untrusted rows; an error names the file, the place and the value."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from tasks.errors import DataError
from tasks.readers.registry import Message, RawRecord

_ROLES = ("system", "user", "assistant")


def as_text(value: Any, record: RawRecord, name: str) -> str | None:  # Any: a JSON value
    """A text, or a number as a text; None for null and NaN.

    Raises:
        DataError: It is something else, or contains half of a surrogate pair, which UTF-8 cannot encode.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise _wrong_type(value, record, name, "a text")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{record.where}: {name!r} is not valid Unicode text: {text[:60]!r}. Repair this row."
        ) from None
    return text


def as_texts(value: Any, record: RawRecord, name: str) -> list[str]:  # Any: a JSON value
    """The texts in a text, a list of texts, or SQuAD's `{"text": [...]}`: stripped, distinct, without blank ones."""
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
    if isinstance(value, dict):
        raise _wrong_type(value, record, name, "a text or a list of texts")
    texts = [as_text(item, record, name) for item in (value if isinstance(value, list) else [value])]
    return list(dict.fromkeys(text.strip() for text in texts if text and text.strip()))


def as_list(value: Any, record: RawRecord, name: str) -> list[Any]:  # Any: JSON values
    """A list; empty for null."""
    if value is not None and not isinstance(value, list):
        raise _wrong_type(value, record, name, "a list")
    return value or []


def as_bool(value: Any, record: RawRecord, name: str) -> bool | None:  # Any: a JSON value
    """A truth value, which may be 0, 1 or a word as in CSV; None for null and empty."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    word = str(value).strip().lower()
    if word in ("true", "1", "1.0", "yes"):
        return True
    if word in ("false", "0", "0.0", "no"):
        return False
    raise _wrong_type(value, record, name, "true or false")


def as_chat(value: Any, record: RawRecord, name: str) -> list[Message]:  # Any: a JSON value
    """A list of messages; empty for null.

    Raises:
        DataError: It is something else, or a message has no known role or no text.
    """
    return [_message(one, record, f"{name}.{i}") for i, one in enumerate(as_list(value, record, name))]


def _message(message: Any, record: RawRecord, name: str) -> Message:  # Any: a JSON value
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        role = message.get("role") if isinstance(message, dict) else message
        raise DataError(f"{record.where}: {name}: role {role!r} is none of {', '.join(_ROLES)}. Correct this chat.")
    if not isinstance(message.get("content"), str):
        raise _wrong_type(message.get("content"), record, f"{name}.content", "a text")
    return {"role": message["role"], "content": as_text(message["content"], record, name) or ""}


def member(value: Any, name: str, record: RawRecord, kind: type, *, of: str) -> Any:  # Any: JSON values
    """A member of an object in an official format.

    Args:
        of: The name of the format, for the message.

    Raises:
        DataError: `value` is no object, or the member is missing or of another type.
    """
    if not isinstance(value, dict):
        raise _wrong_type(value, record, of, "an object")
    if name not in value:
        found = ", ".join(map(str, list(value)[:12])) or "nothing"
        raise DataError(f"{record.where}: no {name!r} (found {found}), so this is not {of}. Choose another `reader`.")
    if not isinstance(value[name], kind) or (kind is int and isinstance(value[name], bool)):
        raise _wrong_type(value[name], record, name, {list: "a list", dict: "an object", int: "a whole number"}[kind])
    return value[name]


def text_member(value: Any, name: str, record: RawRecord, *, of: str) -> str:  # Any: JSON values
    """A text in an official format; null counts as empty."""
    member(value, name, record, object, of=of)
    return as_text(value[name], record, name) or ""


def _wrong_type(value: Any, record: RawRecord, name: str, wanted: str) -> DataError:  # Any: a JSON value
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return DataError(
        f"{record.where}: {name!r} must be {wanted}, found {type(value).__name__} {shown}. "
        "Correct this row or the mapping."
    )
