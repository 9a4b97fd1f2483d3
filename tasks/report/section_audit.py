"""The audit of the LLM judge, below its verdicts: what its `accept` is worth, and what another threshold would do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tasks.report.audits import Audit, Facts
from tasks.report.blocks import Block, Cell, Table, row
from tasks.wording import MISSING, count, interval, level, percent

if TYPE_CHECKING:
    from tasks.report.findings import Findings

_MADE = {
    "other_gold": "another gold of the row", "wrapped": "the gold in a sentence",
    "respelled": "case or full stop changed", "refusal_reworded": "a refusal in other words",
    "other_answer": "the gold of another example", "known_wrong": "an answer known to be wrong",
    "negated": "the gold denied", "emptied": "nothing", "truncated": "half of the gold",
    "refused": "a refusal, though there is an answer",
}  # fmt: skip


def audit_blocks(found: Findings) -> Iterator[Block]:
    """Tables of every audit; nothing where there was none."""
    for audit in found.audits:
        yield _rates(audit)
        yield _targets(audit)
        yield _kinds(audit)
        if audit.sweep:
            yield _sweep(audit)


def _rates(audit: Audit) -> Table:
    rows = [
        row(c["answerable"], count(c["right_accepted"] + c["right_rejected"]),
            count(c["wrong_accepted"] + c["wrong_rejected"]), _share(c["precision"]), _share(c["recall"]),
            _share(c["false_accepts"]), count(c["unjudged"]))
        for c in audit.classes
    ]  # fmt: skip
    wanted = audit.min_precision
    asked = "" if wanted is None else f" The recipe asks for a precision of {percent(wanted)}."
    missed = f" It was missed: {audit.fell_short}." if audit.fell_short else ""
    return Table(
        ["Examples", "Right probes", "Wrong probes", "Precision of accept", "Recall", "False accepts", "Unjudged"],
        rows,
        f"Audit of the LLM judge of {audit.of} on {audit.n_probes:,} probes whose truth is known, without the rules' "
        f"help. Precision: right ones of the accepted probes; recall: accepted of the right ones; false accepts: "
        f"accepted of the wrong ones; with Wilson's {level(0.95)} intervals.{asked}{missed}",
    )  # fmt: skip


def _targets(audit: Audit) -> Table:
    rows = [
        row(c["answerable"], count(c["decided"]), count(c["accepted"]), _expected(c), _share(c["precision_of_answers"]))
        for c in audit.classes
    ]
    return Table(
        ["Examples", "Decided by LLM", "Accepted", "Wrong among them (expected)", "Right among them (expected)"], rows,
        "What follows for the real answers. With recall t, false accepts f and acceptance rate a, the share of right "
        "answers is p = (a - f) / (t - f), clipped to 0 and 1 (Rogan and Gladen 1978), and of n decided answers "
        "n (1 - p) f are wrong and accepted. Classes are worked out apart and added up. It holds as far as the judge "
        "errs on answers as it does on probes; real mistakes can be subtler.",
    )  # fmt: skip


def _kinds(audit: Audit) -> Table:
    rows = []
    for kind in audit.kinds:
        right, n_judged = "accept" if kind["acceptable"] else "reject", kind["accept"] + kind["reject"]
        rightly = percent(kind[right] / n_judged) if n_judged else MISSING
        counts = [count(kind[name]) for name in ("accept", "reject", "unjudged")]
        rows.append(row(_MADE.get(kind["kind"]) or kind["kind"], right, rightly, *counts))
    return Table(
        ["Probe", "Right verdict", "Judged rightly", "Accept", "Reject", "Unjudged"], rows,
        "Where the judge errs, by how the probe was made.", folded=f"Probes of the judge of {audit.of} by kind",
        prose=True,
    )  # fmt: skip


def _sweep(audit: Audit) -> Table:
    rows = [
        row(f"{at['threshold']:.2f}", percent(at["precision"]), percent(at["recall"]), count(at["accepted_probes"]),
            count(at["accepted"]))
        for at in audit.sweep
    ]  # fmt: skip
    chosen = frozenset(i for i, at in enumerate(audit.sweep) if at["threshold"] == audit.threshold)
    return Table(
        ["Threshold", "Precision", "Recall", "Accepted probes", f"Accepted {audit.of}"], rows,
        f"What another judge.llm.threshold would do (now {audit.threshold:g}), from the probabilities that are stored: "
        "changing it asks the judge nothing again.",
        folded=f"Thresholds of the judge of {audit.of}", marked_rows=chosen,
    )  # fmt: skip


def _share(share: Facts | None) -> Cell:
    if share is None:
        return Cell(MISSING)
    return Cell(percent(share["value"]), interval(share["low"], share["high"], sign=False))


def _expected(row: Facts) -> Cell:
    wrong = row["wrong_accepted_answers"]
    if not row["accepted"]:
        return Cell("0")
    return Cell(count(wrong["value"]), f"[{count(wrong['low'])}, {count(wrong['high'])}]")
