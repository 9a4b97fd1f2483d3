"""The audit of the LLM judge in the report: what the judge step left in its manifest, shown and warned of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from toy_run import ATTACK, Run

from tasks.config import LlmJudgeConfig
from tasks.judge.audit import AnswerTally, JudgedProbe, summary
from tasks.judge.panel import PanelVerdict
from tasks.judge.probes import JudgeProbe
from tasks.judge.rubrics import JudgeCase
from tasks.tables.schema import VERDICTS


def probes(
    acceptable: bool, verdict: str, n: int, *, answerable: bool = True, kind: str = "wrapped"
) -> list[JudgedProbe]:
    score = {"accept": 0.9, "reject": 0.1, "unjudged": None}[verdict]
    probe = JudgeProbe("p", kind, "a", acceptable, JudgeCase("grounded_qa", "Q", "D", ["G"], answerable, "C"))
    return [JudgedProbe(probe, PanelVerdict(verdict, score, score, ""))] * n


JUDGED = [
    *probes(True, "accept", 45), *probes(True, "reject", 5), *probes(False, "reject", 35, kind="negated"),
    *probes(False, "accept", 15, kind="known_wrong"), *probes(True, "unjudged", 2),
    *probes(True, "accept", 10, answerable=False), *probes(False, "reject", 10, answerable=False, kind="emptied"),
]  # fmt: skip


def audit(min_precision: float | None = None, fell_short: str | None = None, **changes: Any) -> dict[str, Any]:
    llm = {"judges": [{"model": {"base": "x"}}], "audit": {"min_precision": min_precision}}
    found = summary(
        JUDGED, {"answerable": AnswerTally(60, 40)}, LlmJudgeConfig.model_validate(llm), fell_short=fell_short
    )
    return json.loads(json.dumps(found)) | changes


def put_verdicts(run: Run, facts: dict[str, Any] | None, name: str = "verdicts") -> None:
    table = pq.read_table(run.store.fetch(run.artifacts["verdicts"]) / "verdicts.parquet")
    more = {"audit": facts} if facts else None
    counts = {"rows_in": table.num_rows, "rows_out": table.num_rows}
    run.put(name, "judge", {"verdicts.parquet": (VERDICTS, table.to_pylist())}, counts, more_facts=more)


def report(run: Run, out: Path) -> tuple[Any, str, str]:  # Any: JSON values
    made = run.report(out)
    return json.loads((made / "report.json").read_text()), *((made / f"report.{x}").read_text() for x in ("html", "md"))


def test_the_audit_stands_in_every_form(run: Run, tmp_path: Path) -> None:
    put_verdicts(run, audit())
    found, html, markdown = report(run, tmp_path / "out")
    (shown,) = found["audits"]
    everything, answerable, unanswerable = shown["classes"]
    assert (shown["of"], shown["n_probes"]) == ("answers", 122)
    assert everything["recall"]["value"] == pytest.approx(55 / 60)
    assert answerable["false_accepts"]["value"] == pytest.approx(0.3)
    assert unanswerable["decided"] == 0
    assert len(shown["sweep"]) == 19
    for page in (html, markdown):
        for text in ("Precision of accept", "Rogan and Gladen", "an answer known to be wrong", "judge.llm.threshold"):
            assert text in page


def test_expected_wrong_targets_are_warned_of_with_their_number(run: Run, tmp_path: Path) -> None:
    put_verdicts(run, audit())
    found, html, _ = report(run, tmp_path / "out")
    # t = 0.9, f = 0.3, a = 0.6: half of the answers are right; 100 * 0.5 * 0.3 = 15 of the 60 accepted are not.
    (warning,) = [w for w in found["warnings"] if "teach an error" in w]
    assert warning.startswith("Of the 60 answers that the LLM accepted, only 75.0 % [")
    assert warning.endswith("about 15 teach an error.")
    assert "The judge accepts 25 % of the wrong probes: it is lenient." in found["warnings"]
    assert "teach an error" in html


def test_a_judge_that_was_not_believed_is_told_with_its_figure(run: Run, tmp_path: Path) -> None:
    missed = "precision of accept 0.786 [0.675, 0.866] on 70 accepted probes"
    put_verdicts(run, audit(min_precision=0.9, fell_short=missed))
    found, html, _ = report(run, tmp_path / "out")
    told = [w for w in found["warnings"] if "gold is trained on" in w]
    assert told == [
        f"The audit: {missed}, where 0.9 was asked for. What the LLM accepted of the answers counts as unjudged, "
        "so gold is trained on."
    ]
    assert "asks for a precision of 90.0 %" in html


def test_without_an_audit_nothing_of_it_is_shown(run: Run, tmp_path: Path) -> None:
    found, html, _ = report(run, tmp_path / "out")
    assert found["audits"] == []
    assert "Rogan" not in html


def test_the_audits_of_answers_and_rewrites_stand_side_by_side_and_share_their_warnings(
    run: Run, tmp_path: Path
) -> None:
    from tasks.report.audits import audit_warnings, audits

    put_verdicts(run, audit())
    first = run.artifacts["verdicts"]
    put_verdicts(run, audit(), name="rewrite_verdicts")
    found = audits(run.store, {"verdicts": first, "rewrite_verdicts": run.artifacts["rewrite_verdicts"]})
    assert [one.of for one in found] == ["answers", "rewrites"]
    assert [w for w in audit_warnings(found) if "lenient" in w] == [
        "The judge accepts 25 % of the wrong probes: it is lenient."
    ]


def test_what_stands_in_the_audit_is_text_whatever_it_says(run: Run, tmp_path: Path) -> None:
    found = audit(warnings=[ATTACK], fell_short=ATTACK, min_precision=0.5)
    found["kinds"][0]["kind"] = found["classes"][0]["answerable"] = ATTACK
    put_verdicts(run, found)
    _, html, _ = report(run, tmp_path / "out")
    assert "<script>" not in html
    assert "<img" not in html
