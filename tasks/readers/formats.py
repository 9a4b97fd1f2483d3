"""Decodes JSONL, JSON, CSV and Parquet into a stream of records. A JSON array is decoded item by item.

A `.json` file may be an array, an object whose `data` is an array (SQuAD), or objects one after another.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import DataError
from tasks.readers.data_files import SUFFIXES, DataFile, opened
from tasks.readers.registry import RawRecord

_BATCH_ROWS = 512
_CHUNK = 1 << 16
_LONGEST_TOKEN = 16  # an error this close to the end of the text may be a token that is not read whole yet
_LONGEST_CELL = 1 << 27


def records(file: DataFile) -> Iterator[RawRecord]:
    """The records of a file in order.

    Raises:
        DataError: The format is unknown, or the content does not match it; the message names the line.
    """
    read = _READ.get(file.suffix)
    if read is None:
        raise DataError(
            f"{file.path}: unknown format {file.suffix!r}. Known: {' '.join(SUFFIXES)}, each also with .gz."
        )
    with opened(file) as stream:
        yield from read(stream, file.path)


def _jsonl(stream: BinaryIO, path: str) -> Iterator[RawRecord]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise _not_utf8(path, number) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:line {number}: not JSON: {error}. Correct or remove this line.") from error
        yield RawRecord(path, f"line {number}", value)


def _csv(stream: BinaryIO, path: str) -> Iterator[RawRecord]:
    csv.field_size_limit(_LONGEST_CELL)
    rows = csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), strict=True)
    try:
        for row in rows:
            place = f"line {rows.line_num}"
            if None in row or None in row.values():
                names = ", ".join(rows.fieldnames or [])
                raise DataError(
                    f"{path}:{place}: not as many cells as the header has columns ({names}). Check the quotes."
                )
            yield RawRecord(path, place, row)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, rows.line_num + 1) from error
    except csv.Error as error:
        raise DataError(f"{path}:line {rows.line_num}: not CSV: {error}. Check the quotes.") from error


def _parquet(stream: BinaryIO, path: str) -> Iterator[RawRecord]:
    try:
        number = 0
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=_BATCH_ROWS):
            for value in batch.to_pylist():
                number += 1
                yield RawRecord(path, f"row {number}", value)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not Parquet, or damaged: {error}. Write the file again.") from error


def _json(stream: BinaryIO, path: str) -> Iterator[RawRecord]:
    text = _JsonText(stream, path)
    while opening := text.peek():
        if opening == "[":
            yield from _items(text, path)
        elif opening == "{":
            yield from _object(text, path)
        else:
            raise DataError(f"{path}:{text.place}: expected '[' or '{{', found {opening!r}. Is this a JSON file?")


def _object(text: _JsonText, path: str) -> Iterator[RawRecord]:
    """The records of an object: the items of its array `data`, or without such an array the object itself."""
    place, members, has_data = text.place, {}, False
    text.take("{")
    while text.peek() != "}":
        name = text.value()
        text.take(":")
        if name == "data" and text.peek() == "[":
            has_data = True
            yield from _items(text, path)
        else:
            members[name] = text.value()
        text.separate("}")
    text.take("}")
    if not has_data:
        yield RawRecord(path, place, members)


def _items(text: _JsonText, path: str) -> Iterator[RawRecord]:
    text.take("[")
    while text.peek() != "]":
        place = text.place
        yield RawRecord(path, place, text.value())
        text.separate("]")
    text.take("]")


class _JsonText:
    """Decodes JSON values one after another from a stream. Memory holds the text of one value at a time."""

    def __init__(self, stream: BinaryIO, path: str) -> None:
        self._stream = io.TextIOWrapper(stream, "utf-8-sig")
        self._path = path
        self._text, self._at, self._lines_before = "", 0, 0
        self._decode = json.JSONDecoder().raw_decode

    @property
    def place(self) -> str:
        """The current line, for messages."""
        return self._place(self._at)

    def _place(self, at: int) -> str:
        return f"line {self._lines_before + self._text.count(chr(10), 0, at) + 1}"

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            if not self._read_more():
                return ""

    def take(self, character: str) -> None:
        """Skip this character; raises DataError where another one follows."""
        if (found := self.peek()) != character:
            raise self._broken(f"expected {character!r}, found {found or 'the end of the file'!r}", self._at)
        self._at += 1

    def separate(self, closing: str) -> None:
        """Skip the comma after a member or an item, unless the closing bracket follows."""
        if self.peek() != closing:
            self.take(",")
            if self.peek() == closing:
                raise self._broken(f"expected a value after ',', found {closing!r}", self._at)

    def value(self) -> Any:  # Any: a JSON value
        """Decode the next value; raises DataError where it is not JSON."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _LONGEST_TOKEN
                if cut and self._read_more():
                    continue
                raise self._broken(error.msg, error.pos) from error
            except RecursionError as error:
                raise self._broken("nested too deeply", self._at) from error
            if end == len(self._text) and self._read_more():
                continue  # the number may have more digits
            self._at = end
            return value

    def _read_more(self) -> bool:
        self._lines_before += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :], 0
        try:
            # The text doubles each time, so decoding a long value again from its start stays linear in its length.
            more = self._stream.read(max(_CHUNK, len(self._text)))
        except UnicodeDecodeError as error:
            raise _not_utf8(self._path, self._lines_before + self._text.count("\n") + 1) from error
        self._text += more
        return bool(more)

    def _broken(self, why: str, at: int) -> DataError:
        return DataError(f"{self._path}:{self._place(at)}: not JSON: {why}. Correct the file there.")


def _not_utf8(path: str, line: int) -> DataError:
    return DataError(f"{path}:line {line} or after: not UTF-8 text. Convert it: iconv -f LATIN1 -t UTF-8")


_READ: dict[str, Callable[[BinaryIO, str], Iterator[RawRecord]]] = {
    ".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet,
}  # fmt: skip
