"""The verdicts of the judge and the targets made from them: acceptance, reasons, target mix, and examples to read.

Tables are joined on disk, so that memory does not grow with the number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.measures.statistics import Estimate, wilson
from tasks.tables.duckdb_query import query

MAX_REASONS = 30


@dataclass(frozen=True)
class Acceptance:
    """Verdicts on one kind of output for one class of examples.

    Attributes:
        answerable: all, answerable, unanswerable, or unmarked where the task does not say.
        rate: accept / (accept + reject), with Wilson's interval: unjudged outputs are apart.
        coverage: (accept + reject) / all.
    """

    kind: str
    answerable: str
    accept: int
    reject: int
    unjudged: int
    rate: Estimate
    coverage: float


@dataclass(frozen=True)
class Reason:
    """How often a rule or judge gave a verdict for a reason."""

    kind: str
    verdict: str
    decided_by: str | None
    reason: str
    n: int


@dataclass(frozen=True)
class Mix:
    """How many targets of each kind, and for which reasons, one or more arms with the same targets train on."""

    arms: list[str]
    counts: dict[str, int]
    reasons: list[tuple[str, str, int]]

    @property
    def n_rows(self) -> int:
        """All targets."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class ShownTarget:
    """What an arm's policy chose for an example."""

    arms: list[str]
    target: str
    target_type: str
    reason: str


@dataclass(frozen=True)
class Example:
    """One judged output with its prompt, golds, verdict and targets. Long texts are cut in the middle."""

    example_id: str
    kind: str
    verdict: str
    decided_by: str | None
    reason: str
    p_accept: float | None
    prompt: str
    golds: list[str]
    output: str | None
    problem: str | None
    targets: list[ShownTarget]


@dataclass(frozen=True)
class VerdictsAndTargets:
    """Verdicts, targets and examples of a run. `n_reasons` counts all distinct reasons, also those not listed."""

    acceptance: list[Acceptance]
    reasons: list[Reason]
    n_reasons: int
    mixes: list[Mix]
    examples: list[Example]


Tables = Mapping[str, Path | list[Path]]
Targets = Mapping[tuple[str, ...], Path]  # by the names of the arms that train on them


def verdicts_and_targets(
    *, examples: Path, outputs: list[Path], verdicts: list[Path], targets: Targets, n_examples: int, confidence: float,
    spill: Path,
) -> VerdictsAndTargets:  # fmt: skip
    """Summarise verdicts and targets, and pick the first `n_examples` of each kind and verdict by example_id."""
    tables: Tables = {"examples": examples, "outputs": outputs, "verdicts": verdicts}
    reasons = _rows(_REASONS, tables, spill)
    return VerdictsAndTargets(
        _acceptance(_rows(_VERDICTS, tables, spill), confidence), [Reason(**row) for row in reasons[:MAX_REASONS]],
        len(reasons), [_mix(arms, path, spill) for arms, path in targets.items()],
        _examples(tables, targets, n_examples, spill),
    )  # fmt: skip


_VERDICTS = """
    SELECT v.kind,
        CASE WHEN e.answerable THEN 'answerable' WHEN NOT e.answerable THEN 'unanswerable' ELSE 'unmarked' END
            AS answerable,
        count(*) FILTER (v.verdict = 'accept') AS accept,
        count(*) FILTER (v.verdict = 'reject') AS reject,
        count(*) FILTER (v.verdict = 'unjudged') AS unjudged
    FROM {verdicts} v LEFT JOIN {examples} e USING (example_id)
    GROUP BY ALL ORDER BY ALL
"""

_REASONS = """
    SELECT kind, verdict, decided_by, reason, count(*) AS n FROM {verdicts}
    GROUP BY ALL ORDER BY kind, verdict, n DESC, decided_by, reason
"""


def _rows(sql: str, tables: Tables, spill: Path) -> list[dict[str, Any]]:  # Any: values of a table
    with query(sql, tables, spill=spill) as reader:
        rows: list[dict[str, Any]] = reader.read_all().to_pylist()  # Any: values of a table
        return rows


def _acceptance(rows: list[dict[str, Any]], confidence: float) -> list[Acceptance]:  # Any: values of a table
    """One line a class, after one for all classes where there are several."""
    found = []
    for kind in sorted({row["kind"] for row in rows}):
        classes = [row for row in rows if row["kind"] == kind]
        total = {name: sum(row[name] for row in classes) for name in ("accept", "reject", "unjudged")}
        everything = {"kind": kind, "answerable": "all", **total}
        for row in (everything, *(classes if len(classes) > 1 else ())):
            judged = row["accept"] + row["reject"]
            rate = wilson(row["accept"], judged, confidence=confidence)
            found.append(Acceptance(**row, rate=rate, coverage=judged / (judged + row["unjudged"])))
    return found


def _mix(arms: tuple[str, ...], targets: Path, spill: Path) -> Mix:
    sql = "SELECT target_type, reason, count(*) AS n FROM {targets} GROUP BY ALL ORDER BY target_type, n DESC, reason"
    rows = _rows(sql, {"targets": targets}, spill)
    counts = {kind: sum(r["n"] for r in rows if r["target_type"] == kind) for kind in ("self", "rewrite", "gold")}
    return Mix(list(arms), counts, [(r["target_type"], r["reason"], r["n"]) for r in rows])


def _examples(tables: Tables, targets: Targets, n_examples: int, spill: Path) -> list[Example]:
    """The first outputs of each (kind, verdict) by example_id, with the target that each policy chose."""
    if not n_examples:
        return []
    chosen = [(f"t{i}", arms, path) for i, (arms, path) in enumerate(targets.items())]
    columns = "".join(
        f", struct_pack(t := {t}.target, k := {t}.target_type, r := {t}.reason) AS {t}" for t, _, _ in chosen
    )
    joins = " ".join(f"LEFT JOIN {{{t}}} {t} ON {t}.example_id = v.example_id" for t, _, _ in chosen)
    sql = f"""
        WITH ranked AS (
            SELECT *, row_number() OVER (PARTITION BY kind, verdict ORDER BY example_id, sample_index) AS place
            FROM {{verdicts}}
        )
        SELECT v.*, o.text, o.problem, e.messages, e.golds {columns}
        FROM ranked v
        JOIN {{examples}} e ON e.example_id = v.example_id
        JOIN {{outputs}} o ON (o.example_id, o.kind, o.sample_index) = (v.example_id, v.kind, v.sample_index)
        {joins}
        WHERE v.place <= {n_examples} ORDER BY v.kind, v.verdict, v.place
    """
    rows = _rows(sql, {**tables, **{t: path for t, _, path in chosen}}, spill)
    return [_example(row, {t: arms for t, arms, _ in chosen}) for row in rows]


def _example(row: dict[str, Any], arms: Mapping[str, tuple[str, ...]]) -> Example:  # Any: values of a table
    prompt = "\n\n".join(f"{m['role']}: {m['content']}" for m in row["messages"])
    shown = [
        ShownTarget(list(names), cut(row[t]["t"], 400), row[t]["k"], row[t]["r"])
        for t, names in arms.items()
        if row[t]["t"] is not None
    ]
    return Example(
        row["example_id"], row["kind"], row["verdict"], row["decided_by"], cut(row["reason"], 200), row["p_accept"],
        cut(prompt, 700), [cut(gold, 300) for gold in row["golds"][:3]],
        None if row["text"] is None else cut(row["text"], 400), row["problem"], shown,
    )  # fmt: skip


def cut(text: str, limit: int) -> str:
    """The text with its middle left out where it is longer than `limit`: questions tend to stand at the end."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
