"""The public formats, each with a few rows as its authors publish them."""

from __future__ import annotations

import pytest

from tasks.errors import ConfigError, DataError
from tasks.lab.corpus import user_message
from tasks.lab.task import task_rows

REFUSAL = "I cannot find this in the document."
SQUAD = {
    "version": "v2.0",
    "data": [
        {"title": "Normans", "paragraphs": [{"context": "Normandy is a region in France.", "qas": [
            {"question": "Where is Normandy?", "id": "1", "is_impossible": False, "answers": [
                {"text": "France", "answer_start": 24}, {"text": "in France", "answer_start": 21},
                {"text": "France", "answer_start": 24}]},
            {"question": "Who rules Normandy?", "id": "2", "is_impossible": True, "answers": [],
             "plausible_answers": [{"text": "France", "answer_start": 24}]}]}]},
        {"title": "Steam", "paragraphs": [{"context": "Steam is hot.", "qas": [
            {"question": "What is hot?", "id": "3", "is_impossible": False,
             "answers": [{"text": "Steam", "answer_start": 0}]}]}]},
    ],
}  # fmt: skip


def test_squad_articles_become_examples_with_their_distinct_golds(run, write):
    found = run({"path": write("squad.json", SQUAD), "reader": "squad2"}).by_question()
    row = found["Where is Normandy?"]
    assert row["golds"] == ["France", "in France"]
    assert (row["document"], row["group"], row["answerable"]) == ("Normandy is a region in France.", "Normans", True)
    assert row["task"] == "grounded_qa"
    assert row["document"] in row["messages"][0]["content"]
    assert found["What is hot?"]["group"] == "Steam"


def test_an_impossible_squad_question_gets_the_refusal_and_its_plausible_answers_count_as_wrong(run, write):
    found = run({"path": write("squad.json", SQUAD), "reader": "squad2"}, refusal="Not stated.")
    row = found.by_question()["Who rules Normandy?"]
    assert (row["golds"], row["incorrect"], row["answerable"]) == (["Not stated."], ["France"], False)
    assert found.counts["unanswerable"] == 1


def test_squad_rows_as_the_hub_has_them_are_read_too(run, write):
    row = {"id": "1", "title": "Normans", "context": "Normandy is in France.", "question": "Where?"}
    answers = [{"text": ["France"], "answer_start": [12]}, {"text": [], "answer_start": []}]
    path = write("squad.jsonl", [row | {"answers": a, "question": f"Where {i}?"} for i, a in enumerate(answers)])
    found = run({"path": path, "reader": "squad2"}).by_question()
    assert found["Where 0?"]["golds"] == ["France"]
    assert found["Where 1?"]["answerable"] is False


DIALOGUE = {"dial_data": {"dmv": [{"dial_id": "d1", "turns": [
    {"turn_id": 1, "role": "user", "da": "query_condition", "utterance": "I moved. What now?",
     "references": [{"label": "precondition", "id_sp": "4", "doc_id": "Moving#1_0"}]},
    {"turn_id": 2, "role": "agent", "da": "respond_solution", "utterance": "Report it within 10 days.",
     "references": [{"label": "solution", "id_sp": "6", "doc_id": "Moving#1_0"},
                    {"label": "solution", "id_sp": "7", "doc_id": "Moving#1_0"}]},
    {"turn_id": 3, "role": "user", "da": "query_solution", "utterance": "Online?",
     "references": [{"label": "solution", "id_sp": "9", "doc_id": "Gone#1_0"}]},
    {"turn_id": 4, "role": "agent", "da": "respond_solution", "utterance": "Yes, online.",
     "references": [{"label": "solution", "id_sp": "9", "doc_id": "Moving#1_0"}]},
    {"turn_id": 5, "role": "agent", "da": "respond_solution", "utterance": "See also there.",
     "references": [{"label": "solution", "id_sp": "9", "doc_id": "Gone#1_0"}]},
    {"turn_id": 6, "role": "agent", "da": "other", "utterance": "Bye.", "references": []},
]}]}}  # fmt: skip
DOCUMENTS = {"doc_data": {"dmv": {"Moving#1_0": {
    "doc_id": "Moving#1_0", "title": "Moving", "doc_text": "Report a move within 10 days. Online works.",
    "spans": {"6": {"id_sp": "6", "text_sp": "Report a move"}}}}}}  # fmt: skip


def test_each_agent_turn_becomes_an_example_with_the_dialogue_before_it(run, write):
    found = run({"path": write("dial.json", DIALOGUE), "documents": write("doc.json", DOCUMENTS), "reader": "md2d"})
    row = found.by_question()["Online?"]
    assert row["golds"] == ["Yes, online."]
    assert (row["document"], row["group"]) == ("Report a move within 10 days. Online works.", "Moving#1_0")
    prompt = row["messages"][0]["content"]
    assert row["document"] in prompt
    assert prompt.endswith("User: I moved. What now?\nAgent: Report it within 10 days.\nUser: Online?\nAgent:")
    turns = [("user", "I moved. What now?"), ("assistant", "Report it within 10 days."), ("user", "Online?")]
    assert [(turn["role"], turn["content"]) for turn in row["dialogue"]] == turns
    assert found.by_question()["I moved. What now?"]["dialogue"] is None  # nothing was said before


def test_agent_turns_without_their_document_are_dropped_and_counted(run, write):
    found = run({"path": write("dial.json", DIALOGUE), "documents": write("doc.json", DOCUMENTS), "reader": "md2d"})
    assert len(found.rows) == 2
    assert (found.counts["dropped.missing_document"], found.counts["dropped.no_reference"]) == (1, 1)


def test_md2d_without_the_documents_file_is_refused(run, write):
    with pytest.raises(ConfigError, match=r"data\.sources\.0\.documents: reader md2d needs") as caught:
        run({"path": write("dial.json", DIALOGUE), "reader": "md2d"})
    assert caught.value.exit_code == 2


def test_md2d_with_another_file_as_documents_is_refused(run, write):
    path = write("dial.json", DIALOGUE)
    with pytest.raises(DataError, match="no 'doc_data'"):
        run({"path": path, "documents": path, "reader": "md2d"})


PAGE = "<P> Paris is the capital of France . </P> <P> " + "Lyon lies on the Rhone river and is old . " * 4 + "</P>"
PASSAGE = {"start_token": 0, "end_token": 9, "candidate_index": 0}
NO_SPAN = {"start_token": -1, "end_token": -1, "candidate_index": -1}


def _nq(question: str, *annotations: dict[str, object]) -> dict[str, object]:
    candidates = [{"start_token": 0, "end_token": 9, "top_level": True},
                  {"start_token": 9, "end_token": 51, "top_level": True}]  # fmt: skip
    return {"example_id": 1, "document_text": PAGE, "question_text": question, "document_url": "https://w",
            "long_answer_candidates": candidates, "annotations": list(annotations)}  # fmt: skip


def _annotation(passage: dict[str, int], *shorts: tuple[int, int], yes_no: str = "NONE") -> dict[str, object]:
    spans = [{"start_token": start, "end_token": end} for start, end in shorts]
    return {"long_answer": passage, "short_answers": spans, "yes_no_answer": yes_no, "annotation_id": 1}


def test_natural_questions_take_the_annotated_passage_without_its_tags(run, write):
    rows = [
        _nq("capital of france", _annotation(PASSAGE, (1, 2))),
        _nq("is paris the capital", _annotation(PASSAGE, yes_no="YES")),
        _nq("who won", _annotation(NO_SPAN)),
        _nq("long only", _annotation(PASSAGE)),
        _nq("disputed", _annotation(PASSAGE, (1, 2)), *[_annotation(NO_SPAN)] * 4),
    ]
    found = run({"path": write("nq.jsonl", rows), "reader": "nq"})
    by_question = found.by_question()
    assert by_question["capital of france"]["golds"] == ["Paris"]
    assert by_question["capital of france"]["document"] == "Paris is the capital of France ."
    assert by_question["is paris the capital"]["golds"] == ["yes"]
    assert by_question["who won"]["answerable"] is False
    assert by_question["who won"]["document"].startswith("Lyon lies")
    assert (found.counts["dropped.no_gold"], found.counts["dropped.annotators_disagree"]) == (1, 1)


def test_flat_natural_questions_are_read_too(run, write):
    rows = [{"question": "Where?", "context": "In Rome.", "answers": ["Rome"]},
            {"question": "Who?", "context": "In Rome.", "answers": [], "answerable": False}]  # fmt: skip
    found = run({"path": write("nq.jsonl", rows), "reader": "nq"}).by_question()
    assert found["Where?"]["golds"] == ["Rome"]
    assert found["Who?"]["golds"] == [REFUSAL]


def test_musique_twins_share_a_group_and_join_their_paragraphs(run, write):
    paragraphs = [
        {"idx": 0, "title": "Ada", "paragraph_text": "Ada was born in London.", "is_supporting": True},
        {"idx": 1, "title": "London", "paragraph_text": "It is on the Thames.", "is_supporting": True},
    ]
    row = {"id": "2hop__1_2", "question": "On which river was Ada born?", "answer": "Thames",
           "answer_aliases": ["River Thames", "Thames"]}  # fmt: skip
    rows = [row | {"paragraphs": paragraphs, "answerable": True},
            row | {"paragraphs": paragraphs[:1], "answerable": False}]  # fmt: skip
    found = run({"path": write("musique.jsonl", rows), "reader": "musique"}).rows
    answered, refused = sorted(found, key=lambda r: not r["answerable"])
    assert answered["golds"] == ["Thames", "River Thames"]
    assert answered["document"] == "Ada\nAda was born in London.\n\nLondon\nIt is on the Thames."
    assert refused["golds"] == [REFUSAL]
    assert answered["group"] == refused["group"] == "2hop__1_2"


def test_gsm8k_keeps_the_worked_answer_as_target_and_the_number_as_another_gold(run, write):
    rows = [{"question": "2 + 5?", "answer": "2 + 5 = <<2+5=7>>7\n#### 7"}, {"question": "?", "answer": "no number"}]
    found = run({"path": write("gsm.jsonl", rows), "reader": "gsm8k"})
    (row,) = found.rows
    assert row["golds"] == ["2 + 5 = <<2+5=7>>7\n#### 7", "7"]
    assert (row["task"], row["answerable"], row["document"]) == ("number", None, None)
    assert found.counts["dropped.no_final_number"] == 1


def test_the_lab_keeps_its_own_splits_sources_and_wording(run):
    found = run({"name": "lab", "reader": "lab"}, lab_rows=20, seed=3)
    expected = {user_message(row.document, row.question): row for row in task_rows(20, seed=3)}
    assert found.counts["rows_in"] == 1020
    for row in found.rows:
        lab = expected[row["messages"][0]["content"]]
        assert (row["source"], row["split"], row["domain"]) == (lab.source, lab.split, lab.domain)
        assert (row["golds"], row["answerable"]) == (lab.golds, lab.answerable)


def test_the_lab_template_is_the_wording_of_the_pre_training(run):
    found = run({"reader": "lab"}, lab_rows=5)
    row = found.rows[0]
    assert [row["messages"][0]["content"]] == [user_message(row["document"], row["question"])]


@pytest.mark.parametrize(
    ("reader", "missing"),
    [("squad2", "title"), ("nq", "question_text"), ("musique", "question"), ("gsm8k", "question")],
)
def test_a_file_in_another_format_is_refused_by_name_and_line(run, write, reader, missing):
    with pytest.raises(DataError, match=rf"x\.jsonl:line 1: no '{missing}' \(found colour\)"):
        run({"path": write("x.jsonl", [{"colour": "red"}]), "reader": reader})


@pytest.mark.parametrize(
    ("setting", "source"),
    [
        ("task", {"path": "x", "reader": "gsm8k", "task": "grounded_qa"}),
        ("fields", {"path": "x", "reader": "squad2", "fields": {"answer": "a"}}),
        ("documents", {"path": "x", "documents": "y"}),
        ("prompt", {"path": "x", "fields": {"messages": "m"}, "prompt": "open.v1"}),
        ("unanswerable", {"path": "x", "unanswerable": {}}),
        ("revision", {"path": "x", "revision": "main"}),
        ("hub_config", {"path": "x", "hub_config": "main"}),
        ("hub_split", {"path": "x", "hub_split": "test"}),
        ("path", {"path": "x", "reader": "lab"}),
        ("split", {"split": "test", "reader": "lab"}),
        ("hub", {"hub": "x", "reader": "md2d", "documents": "y"}),
        ("fields.document", {"path": "x", "task": "grounded_qa"}),
    ],
)
def test_a_setting_without_effect_is_refused_not_ignored(run, setting, source):
    with pytest.raises(ConfigError, match=rf"data\.sources\.0\.{setting}: "):
        run(source)
