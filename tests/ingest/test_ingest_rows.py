"""Plain tables and chats through the columns named in the recipe."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.errors import DataError

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hi."}]


def test_mapped_columns_may_be_nested(run, write):
    row = {"q": {"text": "Who?"}, "labels": [{"best": "Ada"}], "doc": {"body": "Ada did."}, "meta": {"page": 7}}
    fields = {"question": "q.text", "answer": "labels.0.best", "document": "doc.body", "group": "meta.page"}
    (found,) = run({"path": write("a.jsonl", [row]), "fields": fields, "task": "grounded_qa"}).rows
    assert (found["question"], found["golds"], found["document"]) == ("Who?", ["Ada"], "Ada did.")
    assert (found["group"], found["answerable"]) == ("7", True)


def test_a_column_whose_name_has_a_dot_is_found_as_it_is(run, write):
    (found,) = run({"path": write("a.jsonl", [{"q.text": "Who?", "answer": "Ada"}]),
                    "fields": {"question": "q.text"}}).rows  # fmt: skip
    assert found["question"] == "Who?"


@pytest.mark.parametrize(
    ("answer", "golds"),
    [
        ("Ada", ["Ada"]),
        (["Ada", "Ada L.", "Ada", " "], ["Ada", "Ada L."]),
        ({"text": ["Ada"], "answer_start": [0]}, ["Ada"]),
        (7, ["7"]),
        (7.0, ["7"]),
        (7.5, ["7.5"]),
    ],
)
def test_an_answer_may_be_a_text_a_number_a_list_or_as_in_squad(run, write, answer, golds):
    (found,) = run({"path": write("a.jsonl", [{"question": "Who?", "answer": answer}])}).rows
    assert found["golds"] == golds


def test_answerable_false_brings_the_refusal_and_needs_no_answer(run, write):
    rows = [
        {"question": "Who?", "doc": "x", "ok": False},
        {"question": "What?", "doc": "x", "ok": "true", "answer": "x"},
    ]
    fields = {"document": "doc", "answerable": "ok"}
    source = {"path": write("a.jsonl", rows), "fields": fields, "task": "grounded_qa"}
    found = run(source, refusal="No idea.").by_question()
    assert (found["Who?"]["golds"], found["Who?"]["answerable"]) == (["No idea."], False)
    assert found["What?"]["answerable"] is True


def test_incorrect_answers_are_kept_without_those_that_are_golds(run, write):
    row = {"question": "Who?", "answer": "Ada", "wrong": ["Bob", "Ada"]}
    (found,) = run({"path": write("a.jsonl", [row]), "fields": {"incorrect": "wrong"}}).rows
    assert found["incorrect"] == ["Bob"]


def test_a_missing_column_is_named_with_those_found_and_the_setting_that_maps_it(run, write):
    path = write("a.jsonl", [{"question": "Who?", "a": 1, "b": 2}])
    with pytest.raises(DataError) as caught:
        run({"path": path})
    assert str(caught.value) == (
        f"{path}: no column 'answer' (found question, a, b). Map it: data.sources.0.fields.answer=<column>"
    )
    assert caught.value.exit_code == 2


def test_a_column_that_only_a_later_line_lacks_is_null_there(run, write):
    rows = [{"question": "Who?", "answer": "Ada"}, {"question": "What?"}]
    assert run({"path": write("a.jsonl", rows)}).counts["dropped.no_gold"] == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": ["x"], "answer": "y"}, r"a\.jsonl:line 2: 'question' must be a text, found list \['x'\]"),
        ({"question": "x", "answer": {"a": 1}}, r"line 2: 'answer' must be a text or a list of texts, found dict"),
        ({"question": "x", "answer": True}, r"line 2: 'answer' must be a text, found bool True"),
        ({"question": "x", "answer": "\ud800"}, r"line 2: 'answer' is not valid Unicode"),
        (["x"], r"line 2: expected an object, found list"),
    ],
)
def test_a_value_of_the_wrong_type_is_shown_with_its_line(run, write, row, message):
    with pytest.raises(DataError, match=message):
        run({"path": write("a.jsonl", [{"question": "Who?", "answer": "Ada"}, row])})


def test_a_truth_value_in_other_words_is_refused(run, write):
    row = {"question": "Who?", "answer": "Ada", "ok": "perhaps"}
    with pytest.raises(DataError, match="'ok' must be true or false, found str 'perhaps'"):
        run({"path": write("a.jsonl", [row]), "fields": {"answerable": "ok"}})


def test_a_chat_is_kept_as_it_is(run, write):
    row = {"chat": CHAT, "answer": "hi", "id": 1}
    (found,) = run({"path": write("a.jsonl", [row]), "fields": {"messages": "chat"}}).rows
    assert (found["messages"], found["question"], found["golds"]) == (CHAT, "Say hi.", ["hi"])
    assert found["dialogue"] == CHAT


def test_the_last_word_of_the_assistant_is_the_gold_where_there_is_no_answer(run, write):
    row = {"chat": [*CHAT, {"role": "assistant", "content": "hi"}]}
    (found,) = run({"path": write("a.jsonl", [row]), "fields": {"messages": "chat"}}).rows
    assert (found["messages"], found["golds"]) == (CHAT, ["hi"])


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([{"role": "tool", "content": "x"}], r"line 1: chat\.0: role 'tool' is none of system, user, assistant"),
        ([{"role": "user", "content": ["x"]}], r"'chat\.0\.content' must be a text, found list"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "the chat ends with system"),
        ("hello", "'chat' must be a list, found str"),
    ],
)
def test_a_malformed_chat_is_refused(run, write, chat, message):
    with pytest.raises(DataError, match=message):
        run({"path": write("a.jsonl", [{"chat": chat, "answer": "x"}]), "fields": {"messages": "chat"}})


def test_an_empty_chat_counts_as_no_question(run, write):
    rows = [{"chat": [], "answer": "x"}, {"chat": CHAT, "answer": "x"}]
    found = run({"path": write("a.jsonl", rows), "fields": {"messages": "chat"}})
    assert found.counts["dropped.no_question"] == 1


def test_parquet_with_nested_columns_and_missing_numbers_is_read(run, tmp_path):
    table = pa.table({"question": ["Who?", "How many?"], "answer": [None, 3.0], "m": [{"g": "x"}, {"g": None}]})
    pq.write_table(table, tmp_path / "a.parquet")
    found = run({"path": str(tmp_path / "a.parquet"), "fields": {"group": "m.g"}})
    assert [(row["golds"], row["group"]) for row in found.rows] == [(["3"], None)]
    assert found.counts["dropped.no_gold"] == 1
