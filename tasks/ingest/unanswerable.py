"""Makes unanswerable questions for a dataset without any: a question beside a document without its answer.

Which rows and documents are used follows from hashes of their content and from the seed, never from their order.
Documents stand on a ring by hash, and a question takes the first fitting document after its own hash (consistent
hashing). Adding a document therefore changes only the questions next to it, and memory holds one window of the ring.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from tasks.artifacts.digest import digest_of, stable_seed
from tasks.config import UnanswerableConfig
from tasks.measures.words import normalise
from tasks.readers.registry import RawExample
from tasks.tables.schema import EXAMPLES
from tasks.tables.spool import Row, sorted_rows, spool, spooled

TRIES = 16  # how many documents are tried for one question

_TEXTS, _CHAT = EXAMPLES.field("golds").type, EXAMPLES.field("messages").type
_LISTS = {"golds": _TEXTS, "incorrect": _TEXTS, "messages": _CHAT, "history": _CHAT, "answerable": pa.bool_()}
_SPOOLED = pa.schema(
    [(name, _LISTS.get(name, pa.string())) for name in RawExample._fields]
    + [("draw", pa.float64()), ("ring", pa.string()), ("position", pa.string())]
)
_DOCUMENT = pa.schema([_SPOOLED.field(name) for name in ("position", "document", "group")])


class _Document(NamedTuple):
    position: str
    text: str
    group: str | None
    words: str  # normalised


def with_unanswerable(
    examples: Iterable[RawExample], config: UnanswerableConfig, *, refusal: str, folder: Path, counts: Counter[str]
) -> Iterator[RawExample]:
    """The same examples, of which some get another document and the refusal as gold.

    Each answerable row is drawn independently, so the share is met in expectation. Unanswerable rows of the dataset
    count towards the share.

    Args:
        examples: Each must have a document.
        folder: An empty folder for temporary files.
        counts: Receives `unanswerable_built`, and `unanswerable_not_built` where no nearby document fits.
    """
    tally: Counter[str] = Counter()
    raw = folder / "raw.parquet"
    spool(_drawn(examples, config.seed, tally), raw, _SPOOLED)
    chance = _chance(config.share, tally)
    yield from (_example(row) for row in spooled(raw) if not _is_picked(row, chance))
    picked = sorted_rows(
        (row for row in spooled(raw) if _is_picked(row, chance)), folder / "picked", _SPOOLED, key="ring"
    )
    documents = sorted_rows(spooled(raw, columns=_DOCUMENT.names), folder / "documents", _DOCUMENT, key="position")
    for row, window in _along_the_ring(picked, _ring(documents)):
        example = _example(row)
        document = _fitting(example, window)
        counts["unanswerable_built" if document else "unanswerable_not_built"] += 1
        yield example._replace(document=document, golds=[refusal], answerable=False) if document else example


def _is_picked(row: Row, chance: float) -> bool:
    return bool(row["answerable"]) and row["draw"] < chance


def _drawn(examples: Iterable[RawExample], seed: int, tally: Counter[str]) -> Iterator[Row]:
    for example in examples:
        tally["rows"] += 1
        tally["unanswerable"] += example.answerable is False
        content = digest_of([example.question, example.document, example.golds, list(example.history)])
        yield example._asdict() | {
            "draw": stable_seed(seed, "draw", content) / 2**63,
            "ring": f"{stable_seed(seed, 'ring', content) << 1:016x}",
            "position": digest_of(example.document)[:16],
        }


def _chance(share: float, tally: Counter[str]) -> float:
    """The probability of picking an answerable row with which `share` of all rows become unanswerable."""
    has = tally["unanswerable"] / tally["rows"] if tally["rows"] else 1.0
    return max(0.0, (share - has) / (1 - has)) if has < 1 else 0.0


def _ring(rows: Iterable[Row]) -> Iterator[_Document]:
    """Distinct documents by position, then the first ones again after the last position."""
    first: list[_Document] = []
    for position, copies in groupby(rows, key=itemgetter("position")):
        text, groups = None, set()
        for copy in copies:
            text = copy["document"]
            groups.add(copy["group"])
        document = _Document(position, text or "", min(groups - {None}, default=None), normalise(text or ""))
        if len(first) < TRIES:
            first.append(document)
        yield document
    yield from (document._replace(position="~" + document.position) for document in first)  # ~ sorts behind hex


def _along_the_ring(picked: Iterable[Row], ring: Iterator[_Document]) -> Iterator[tuple[Row, Iterable[_Document]]]:
    """Each picked row with the documents that follow it on the ring. Both inputs are sorted."""
    window: deque[_Document] = deque()
    for row in picked:
        while window and window[0].position < row["ring"]:
            window.popleft()
        while len(window) < TRIES and (document := next(ring, None)):
            if document.position >= row["ring"]:
                window.append(document)
        yield row, window


def _fitting(example: RawExample, window: Iterable[_Document]) -> str | None:
    """The first document without a gold answer; one of another group is preferred."""
    golds = [normalise(gold) for gold in example.golds]
    fits = [d for d in window if d.text != example.document and not any(gold in d.words for gold in golds)]
    if not fits:
        return None
    return next((d for d in fits if d.group != example.group), fits[0]).text


def _example(row: Row) -> RawExample:
    return RawExample(**{name: row[name] for name in RawExample._fields})
