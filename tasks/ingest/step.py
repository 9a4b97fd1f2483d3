"""The ingest step: reads every source, filters, renders and splits its rows, and writes one table of examples."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tasks.artifacts.digest import digest_of
from tasks.config import DataConfig
from tasks.errors import DataError
from tasks.ingest.choose import RENDERED, chosen, decide
from tasks.ingest.example_prompts import prompt, prompt_template
from tasks.ingest.sources import Source, raw_examples, source_digest, sources_of
from tasks.ingest.unanswerable import with_unanswerable
from tasks.measures.choice_letters import choice_letter
from tasks.measures.final_numbers import final_number
from tasks.readers.registry import Dropped, Message, RawExample
from tasks.running.step import Context, step
from tasks.tables import schema
from tasks.tables.spool import Row, spool

logger = logging.getLogger(__name__)

_REPORT_ROWS = 2000
_WRITE_ROWS = 1024
_ID_CHARS = 32
_NEXT = "Look at the first reason: columns, `reader`, limits."
_NEXT_FOR = {
    "gold_without_letter": "Task multiple_choice compares letters: give answers as A, B, C (not as an index or as "
    "text), or set `task: open`.",
    "gold_without_number": "Task number compares numbers: give answers in digits, or set `task: open`.",
}


def _outside(*, config: DataConfig) -> dict[str, Any]:  # Any: JSON values
    return {source.key: source_digest(source) for source in sources_of(config)}


@step(version=4, pool="cpu", table=schema.EXAMPLES, outside=_outside)
def ingest(ctx: Context, *, config: DataConfig) -> None:
    """Read the sources. Writes `examples.parquet`.

    Raises:
        DataError: A source cannot be read, or nothing is left to train on.
    """
    intake = _Intake(ctx, config)
    # The staging folder belongs to this process alone. Another worker may be making the same artifact.
    with TemporaryDirectory(dir=ctx.out, prefix=".ingest-") as name:
        folder = Path(name)
        rendered = folder / "rendered.parquet"
        spool(intake.rendered(folder), rendered, RENDERED)
        decided = decide(rendered, folder)
        kept = _write(ctx, chosen(rendered, decided, folder, intake.dropped))
    _require_unchanged(ctx, config)
    ctx.account(intake.n_rows, kept["rows.train"] + kept["rows.test"], intake.dropped)
    ctx.counts |= dict(sorted(kept.items())) | dict(sorted(intake.counts.items()))
    _require_rows(kept, intake.dropped)


def _require_unchanged(ctx: Context, config: DataConfig) -> None:
    """Raise DataError where the sources changed after the fingerprint was computed."""
    if ingest.plan(config=config).ref != ctx.ref:
        raise DataError(
            "data: the files or the revision changed after the run was planned. Run the same command again."
        )


def _write(ctx: Context, rows: Iterator[Row]) -> Counter[str]:
    """Write the table. Returns counts of rows by split and by source, and of unanswerable ones."""
    kept: Counter[str] = Counter({"rows.train": 0, "rows.test": 0, "unanswerable": 0})
    with schema.TableWriter(ctx.out / "examples.parquet", schema.EXAMPLES) as writer:
        while batch := list(islice(rows, _WRITE_ROWS)):
            writer.write(batch)
            for row in batch:
                kept.update([f"rows.{row['split']}", f"rows.{row['split']}.{row['source']}"])
                kept["unanswerable"] += row["answerable"] is False
    return kept


def _require_rows(kept: Mapping[str, int], dropped: Mapping[str, int]) -> None:
    by_size = sorted(dropped.items(), key=lambda pair: (-pair[1], pair[0]))
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in by_size)
    if not kept["rows.train"] + kept["rows.test"]:
        raise DataError(f"data: no row is left, dropped for: {reasons}. {_NEXT_FOR.get(by_size[0][0], _NEXT)}")
    if not kept["rows.train"]:
        more = "".join(f" {_NEXT_FOR[reason]}" for reason, _ in by_size if reason in _NEXT_FOR)
        raise DataError(
            f"data: no training row: all {kept['rows.test']:,} rows are in the test split (dropped: "
            f"{reasons or 'none'}). Set `split: auto` or `split: train` on a source, or lower data.test_share.{more}"
        )


class _Intake:
    """Reads all sources once and counts the rows that are dropped."""

    def __init__(self, ctx: Context, config: DataConfig) -> None:
        self.n_rows = 0
        self._n_rendered = 0
        self.dropped: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self._ctx, self._config = ctx, config

    def rendered(self, folder: Path) -> Iterator[Row]:
        """Rows of `RENDERED`. Their order does not matter."""
        for index, source in enumerate(sources_of(self._config)):
            examples = self._usable(source)
            if making := source.config.unanswerable:
                spooled = folder / f"source-{index}"
                spooled.mkdir()
                examples = with_unanswerable(
                    examples, making, refusal=self._config.refusal, folder=spooled, counts=self.counts
                )
            yield from self._with_prompts(source, index, examples)

    def _usable(self, source: Source) -> Iterator[RawExample]:
        """The examples of a source that have all that their task needs. The others are counted."""
        n_before = self.n_rows
        for found in raw_examples(source, self._config):
            self.n_rows += 1
            if self.n_rows % _REPORT_ROWS == 0:
                self._ctx.progress(self.n_rows, 0, f"rows read, now {source.config.name}")
            checked = found if isinstance(found, Dropped) else _checked(found, source, self._config.refusal)
            if isinstance(checked, Dropped):
                self.dropped[checked.reason] += 1
            else:
                yield checked
        n_read = self.n_rows - n_before
        if not n_read:
            raise DataError(f"{source.label}: there is no row in it. Check {source.key}.")
        logger.info("ingest: %s: %s rows read from %s", source.config.name, f"{n_read:,}", source.label)

    def _with_prompts(self, source: Source, index: int, examples: Iterator[RawExample]) -> Iterator[Row]:
        template = None
        if not source.config.fields.messages:
            template = prompt_template(source.config, source.task, key=source.key)
        for raw in examples:
            messages = raw.messages
            if messages is None:
                assert template is not None  # only a source with `fields.messages` yields chats
                messages = prompt(template, raw, refusal=self._config.refusal)
            if sum(len(message["content"]) for message in messages) > self._config.max_prompt_chars:
                self.dropped["prompt_too_long"] += 1
                continue
            row = _row(raw, messages, source, test_share=self._config.test_share)
            self._n_rendered += 1
            yield row | {
                "row": self._n_rendered, "source_index": index, "row_limit": source.config.limit,
                "prompt_hash": digest_of(messages), "row_hash": digest_of(row),
            }  # fmt: skip


def _checked(raw: RawExample, source: Source, refusal: str) -> RawExample | Dropped:
    """The example with the golds and answerability that its task requires, or the reason to drop it."""
    grounded = source.task == "grounded_qa"
    answerable = (raw.answerable is not False) if grounded else None
    golds = [refusal] if answerable is False else _distinct(raw.golds)
    if not raw.question.strip() or raw.messages == []:
        return Dropped("no_question")
    if not golds:
        return Dropped("no_gold")
    # No answer can match such golds: every model would score 0 on them.
    if source.task == "multiple_choice" and not any(map(choice_letter, golds)):
        return Dropped("gold_without_letter")
    if source.task == "number" and all(final_number(gold) is None for gold in golds):
        return Dropped("gold_without_number")
    if grounded and raw.messages is None and not (raw.document or "").strip():
        return Dropped("no_document")
    incorrect = [text for text in _distinct(raw.incorrect) if text not in golds]
    return raw._replace(question=raw.question.strip(), golds=golds, incorrect=incorrect, answerable=answerable)


def _distinct(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(text.strip() for text in texts if text.strip()))


def _row(raw: RawExample, messages: list[Message], source: Source, *, test_share: float) -> Row:
    return {
        "example_id": digest_of({"messages": messages, "golds": raw.golds})[:_ID_CHARS],
        "source": raw.source or source.config.name, "split": raw.split or _split(source, messages, test_share),
        "domain": raw.domain or source.config.domain, "task": source.task, "messages": messages,
        "question": raw.question, "dialogue": _dialogue(raw), "document": raw.document, "golds": raw.golds,
        "incorrect": raw.incorrect, "answerable": raw.answerable, "group": raw.group,
    }  # fmt: skip


def _dialogue(raw: RawExample) -> list[Message] | None:
    turns = raw.messages or list(raw.history)
    return turns if len(turns) > 1 else None


def _split(source: Source, messages: list[Message], test_share: float) -> str:
    """The split, by a hash of the prompt alone: a prompt with two golds must not be in both splits."""
    if source.config.domain == "out":
        return "test"
    if source.config.split != "auto":
        return source.config.split
    return "test" if int(digest_of(messages)[:13], 16) / 16**13 < test_share else "train"
