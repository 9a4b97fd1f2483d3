"""Labelled answers: what is refused, and agreement by hand-worked figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from tasks.artifacts.store import Ref
from tasks.config import AbstentionConfig, EngineConfig, JudgeConfig
from tasks.errors import DataError
from tasks.judge.labelled import LabelledOutcome, agreement, agreements, judge_labelled, read_labelled
from tasks.judge.rubrics import JudgeCase
from tasks.running.step import Context

ROW = {"question": "Where?", "gold": "Oslo", "candidate": "In Oslo.", "label": "accept"}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_format_of_data_gives_the_same_rows(tmp_path):
    rows = [ROW, {**ROW, "candidate": "Rome", "label": "reject"}]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "rows.parquet")
    csv.write_csv(table, tmp_path / "rows.csv")
    found = read_labelled(write(tmp_path / "rows.jsonl", *rows))
    assert found == read_labelled(tmp_path / "rows.parquet") == read_labelled(tmp_path / "rows.csv")
    assert [(row.case.task, row.case.golds, row.accept) for row in found] == [
        ("open", ["Oslo"], True),
        ("open", ["Oslo"], False),
    ]


def test_a_document_makes_it_a_grounded_question_and_several_golds_are_kept(tmp_path):
    row = {**ROW, "document": "D", "answerable": True, "golds": ["Oslo", "the capital"], "incorrect": ["Rome"]}
    (found,) = read_labelled(write(tmp_path / "rows.jsonl", row))
    assert (found.case.task, found.case.golds, found.case.answerable) == ("grounded_qa", ["Oslo", "the capital"], True)
    assert found.incorrect == ["Rome"]


def test_a_row_may_leave_empty_what_other_rows_have(tmp_path):
    (tmp_path / "rows.csv").write_text(
        'question,gold,candidate,label,document,answerable,task\nWhere?,Oslo,"",reject,,,\n'
    )
    pq.write_table(
        pa.table({**{k: [v] for k, v in ROW.items()}, "golds": [None], "dialogue": [None]}), tmp_path / "a.parquet"
    )
    for name, said in (("rows.csv", ""), ("a.parquet", "In Oslo.")):
        (found,) = read_labelled(tmp_path / name)
        assert found.case == JudgeCase("open", "Where?", None, ["Oslo"], None, said)


def test_a_dialogue_is_part_of_the_case(tmp_path):
    turns = [{"role": "user", "content": "I moved."}, {"role": "user", "content": "Where?"}]
    (found,) = read_labelled(write(tmp_path / "rows.jsonl", {**ROW, "dialogue": turns}))
    assert found.case.dialogue == turns


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no row. It needs question, gold, candidate and label"),
        ("\n\n", "no row"),
        (
            json.dumps({k: v for k, v in ROW.items() if k != "label"}),
            "line 1: no value in column 'label' (found question, gold",
        ),
        (json.dumps({k: v for k, v in ROW.items() if k != "gold"}), "line 1: no value in column 'gold'"),
        (json.dumps(ROW | {"label": "yes"}), "line 1: label is 'yes'. Write accept or reject."),
        (json.dumps(ROW) + "\n" + json.dumps(ROW | {"label": None}), "line 2: no value in column 'label'"),
        (json.dumps(ROW | {"gold": None}), "no value in column 'gold'"),
        (json.dumps(ROW | {"candidate": ["x"]}), "'candidate' must be a text, found list"),
        (json.dumps(ROW | {"task": "essay"}), "task is 'essay'. Known: grounded_qa"),
        (json.dumps(ROW | {"answerable": "perhaps"}), "'answerable' must be true or false, found str 'perhaps'"),
        (
            json.dumps(ROW | {"dialogue": [{"role": "agent", "content": "x"}]}),
            "role 'agent' is none of system, user, assistant",
        ),
        (json.dumps(ROW | {"dialogue": [{"role": "user"}]}), "'dialogue.0.content' must be a text, found NoneType"),
        ("[1]", "a row is a JSON object, found list"),
        ("{", "line 1: not JSON"),
    ],
)
def test_bad_labels_are_refused_with_their_place(tmp_path, content, message):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(DataError) as caught:
        read_labelled(tmp_path / "rows.jsonl")
    assert message in str(caught.value)


def test_a_file_that_is_not_there_or_no_table_is_named(tmp_path):
    (tmp_path / "rows.parquet").write_text("no parquet")
    for name, problem in (("none.jsonl", "no such file"), ("rows.parquet", "not Parquet")):
        with pytest.raises(DataError, match=f"{name}: {problem}"):
            read_labelled(tmp_path / name)


def test_rules_judge_first_and_the_models_what_is_left(store, fake, tmp_path):
    judge = fake(lambda asked: 0.9 if "capital" in asked.candidate else 0.1)
    rows = read_labelled(
        write(
            tmp_path / "rows.jsonl", ROW, {**ROW, "candidate": "Norway's capital"},
            {**ROW, "candidate": "Rome", "label": "reject"}, {**ROW, "candidate": "", "label": "reject"},
        )
    )  # fmt: skip
    ref = Ref(step="audit-judge", fingerprint="0" * 64)
    config = JudgeConfig.model_validate(
        {"llm": {"judges": [{"model": {"base": "x"}}], "audit": {"min_precision": 0.9}}}
    )
    found = judge_labelled(
        Context(store, ref, tmp_path, {}), rows, config=config, engine=EngineConfig(), abstention=AbstentionConfig()
    )
    assert [(one.verdict, one.by) for one in found] == [
        ("accept", "rules"), ("accept", "llm"), ("reject", "llm"), ("reject", "rules"),
    ]  # fmt: skip
    assert len(judge.prompts) == 2
    assert [line.by for line in agreements(found)] == ["all", "rules", "llm"]


def outcomes(both: int, wrongly: int, missed: int, neither: int, unjudged: int = 0) -> list[LabelledOutcome]:
    pairs = [(True, "accept", both), (False, "accept", wrongly), (True, "reject", missed), (False, "reject", neither)]
    return [
        LabelledOutcome(label, verdict, "llm")
        for label, verdict, n in [*pairs, (True, "unjudged", unjudged)]
        for _ in range(n)
    ]


def test_agreement_and_kappa_are_those_worked_out_by_hand():
    # The textbook table 20, 5, 10, 15: observed 0.7, expected 0.5 * 0.6 + 0.5 * 0.4 = 0.5, kappa 0.4.
    found = agreement("all", outcomes(20, 5, 10, 15, unjudged=3))
    assert (found.n, found.unjudged) == (53, 3)
    assert found.agreement.value == pytest.approx(0.7)
    assert found.kappa == pytest.approx(0.4)
    assert found.precision.value == pytest.approx(20 / 25)
    assert found.recall.value == pytest.approx(20 / 30)
    assert found.precision.low < 20 / 25 < found.precision.high


@pytest.mark.parametrize(
    ("counts", "kappa"), [((5, 0, 0, 5), 1.0), ((0, 5, 5, 0), -1.0), ((5, 0, 0, 0), None), ((0, 0, 0, 0), None)]
)
def test_kappa_at_its_ends(counts, kappa):
    assert agreement("all", outcomes(*counts)).kappa == (None if kappa is None else pytest.approx(kappa))


def test_one_decider_gets_no_line_of_its_own():
    assert [line.by for line in agreements(outcomes(1, 1, 1, 1))] == ["all"]
