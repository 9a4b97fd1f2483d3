"""Templates: shipped or of the user's own, always sandboxed, with data as values."""

from __future__ import annotations

import pytest

from tasks.config import DataConfig
from tasks.errors import DataError
from tasks.ingest import ingest
from tasks.ingest.example_prompts import PROMPTS
from tasks.readers.registry import TASKS, reader_names, reader_of

ROW = {"question": "Who?", "answer": "Ada"}


def prompt_of(found) -> str:
    (row,) = found.rows
    (message,) = row["messages"]
    assert message["role"] == "user"
    return message["content"]


def test_every_default_template_is_shipped_and_every_task_has_one():
    of_readers = {reader_of(name).prompt for name in reader_names()} - {None}
    assert {*PROMPTS.by_task.values(), *of_readers} == set(PROMPTS.shipped())
    assert set(PROMPTS.by_task) == set(TASKS)


def test_a_template_of_the_users_own_is_used(run, write):
    template = write("mine.txt", b"Q: {{ question }} Else say: {{ refusal }}\n")
    found = run({"path": write("a.jsonl", [ROW]), "prompt": template}, refusal="No.")
    assert prompt_of(found) == "Q: Who? Else say: No."


def test_a_shipped_template_can_be_named(run, write):
    row = ROW | {"doc": "Ada did."}
    found = run({"path": write("a.jsonl", [row]), "prompt": "lab.v1", "fields": {"document": "doc"}})
    assert prompt_of(found) == "Ada did.\nQuestion: Who?"


def test_an_edited_template_is_another_step(write):
    source = {"path": write("a.jsonl", [ROW])}
    prints = set()
    for text in (b"{{ question }}", b"{{ question }}!"):
        given = {"sources": [source | {"prompt": write("mine.txt", text)}]}
        prints.add(ingest.plan(config=DataConfig.model_validate(given)).ref["fingerprint"])
    assert len(prints) == 2


def test_an_unknown_template_is_refused_while_planning_with_the_known_ones(write):
    given = {"sources": [{"path": write("a.jsonl", [ROW]), "prompt": "grounded.v9"}]}
    with pytest.raises(DataError, match=r"data\.sources.*prompt=grounded\.v9: no template .* lab\.v1") as caught:
        ingest.plan(config=DataConfig.model_validate(given))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (b"{{ question", "line 1: not a Jinja template"),
        (b"{{ context }}", "there is no variable 'context'. It may use question, document, history and refusal."),
        (b"{{ documents }}", "there is no variable 'documents'. Did you mean 'document'?"),
        (b"{% for turn in history %}{{ turn.content }}{% endfor %}{{ question.text }}", "no attribute 'text'"),
        (b"{{ question.__class__.__mro__ }}", "unsafe"),
        (b"\xff", "no template of this name, nor a text file"),
    ],
)
def test_a_template_that_cannot_be_rendered_is_refused(run, write, template, message):
    with pytest.raises(DataError, match=message):
        run({"path": write("a.jsonl", [ROW]), "prompt": write("mine.txt", template)})


def test_template_code_in_the_data_stays_text(run, write):
    row = {"question": "{{ 7 * 7 }} {% raw %}", "answer": "x"}
    assert prompt_of(run({"path": write("a.jsonl", [row])})) == "{{ 7 * 7 }} {% raw %}"
