"""MultiDoc2Dial: one example per turn of the agent that refers to a document.

Dialogues: `{"dial_data": {domain: [{"turns": [{"role", "utterance", "references": [{"doc_id", ...}]}]}]}}`.
Documents: `{"doc_data": {domain: {doc_id: {"doc_text", ...}}}}`; all are held in memory (488 in the full set).
Not covered: the older layout of Doc2Dial, and cutting a document down to the referenced spans.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasks.errors import DataError
from tasks.readers.registry import Dropped, Message, RawExample, RawRecord, ReaderInput, reader
from tasks.readers.values import member, text_member

_OF = "MultiDoc2Dial"
_ROLES = {"user": "user", "agent": "assistant"}

Documents = dict[str, str]


@reader(
    "md2d", title=_OF, task="grounded_qa", settings=("path", "documents"), prompt="grounded-dialogue.v1",
    files="the official JSON of dialogues, with that of the documents in `documents`",
)  # fmt: skip
def md2d(source: ReaderInput) -> Iterator[RawExample | Dropped]:
    """The agent's turns: gold = the utterance, document = the whole text of what it refers to, group = document id."""
    texts = {doc_id: text for record in source.documents for doc_id, text in _documents(record)}
    for record in source.records:
        for domain, listed in member(record.value, "dial_data", record, dict, of=_OF).items():
            for dialogue in member({domain: listed}, domain, record, list, of=_OF):
                dial_id = dialogue.get("dial_id", "?") if isinstance(dialogue, dict) else "?"
                yield from _agent_turns(dialogue, texts, record._replace(place=f"dialogue {dial_id}"))


def _documents(record: RawRecord) -> Iterator[tuple[str, str]]:
    for domain, listed in member(record.value, "doc_data", record, dict, of=f"{_OF} documents").items():
        for doc_id in member({domain: listed}, domain, record, dict, of=f"{_OF} documents"):
            yield doc_id, text_member(listed[doc_id], "doc_text", record._replace(place=doc_id), of=f"{_OF} documents")


def _agent_turns(dialogue: Any, texts: Documents, record: RawRecord) -> Iterator[RawExample | Dropped]:  # Any: JSON
    history: list[Message] = []
    for turn in member(dialogue, "turns", record, list, of=_OF):
        role = text_member(turn, "role", record, of=_OF)
        if role not in _ROLES:
            raise DataError(f"{record.where}: role {role!r}, known are user and agent. Correct this turn.")
        utterance = text_member(turn, "utterance", record, of=_OF).strip()
        if role == "agent":
            yield _agent_turn(turn, utterance, list(history), texts, record)
        history.append({"role": _ROLES[role], "content": utterance})


def _agent_turn(
    turn: Any, utterance: str, history: list[Message], texts: Documents, record: RawRecord
) -> RawExample | Dropped:  # Any: a JSON value
    references = member(turn, "references", record, list, of=_OF)
    doc_ids = list(dict.fromkeys(text_member(reference, "doc_id", record, of=_OF) for reference in references))
    if not doc_ids:
        return Dropped("no_reference")
    if any(doc_id not in texts for doc_id in doc_ids):
        return Dropped("missing_document")
    question = next((said["content"] for said in reversed(history) if said["role"] == "user"), "")
    document = "\n\n".join(texts[doc_id] for doc_id in doc_ids)
    golds = [utterance] if utterance else []
    return RawExample(question, document, None, golds, [], True, doc_ids[0], history=history)
