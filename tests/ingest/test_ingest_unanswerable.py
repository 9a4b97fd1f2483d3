"""Questions put beside a document that does not answer them."""

from __future__ import annotations

from tasks.measures.answers import contains

ROWS = [
    {"question": f"Where does person {i} live?", "answer": f"town{i}x", "doc": f"Person {i} lives in town{i}x.",
     "page": f"page {i // 4}"}
    for i in range(400)
]  # fmt: skip
FIELDS = {"document": "doc", "group": "page"}


def source(path: str, **more: object) -> dict[str, object]:
    return {"path": path, "task": "grounded_qa", "fields": FIELDS, "unanswerable": {"share": 0.4}} | more


def built(found) -> dict[str, str]:
    return {row["question"]: row["document"] for row in found.rows if row["answerable"] is False}


def test_about_the_share_becomes_unanswerable_beside_a_document_of_another_group(run, write):
    found = run(source(write("a.jsonl", ROWS)))
    original = {row["question"]: row for row in ROWS}
    changed = built(found)
    assert 130 <= len(changed) <= 190
    assert found.counts["unanswerable"] == found.counts["unanswerable_built"] == len(changed)
    pages = {row["doc"]: row["page"] for row in ROWS}
    for question, document in changed.items():
        assert pages[document] != original[question]["page"]
        assert not contains(document, original[question]["answer"])


def test_a_built_row_has_the_refusal_as_gold_and_the_new_document_in_its_prompt(run, write):
    found = run(source(write("a.jsonl", ROWS)), refusal="Not there.")
    row = next(row for row in found.rows if row["answerable"] is False)
    assert row["golds"] == ["Not there."]
    assert row["document"] in row["messages"][0]["content"]


def test_adding_rows_changes_few_of_the_others(run, write):
    before = built(run(source(write("few.jsonl", ROWS[:380]))))
    after = built(run(source(write("many.jsonl", ROWS))))
    same = sum(after.get(question) == document for question, document in before.items())
    assert set(before) <= set(after)
    assert same >= 0.85 * len(before)


def test_another_seed_draws_other_rows(run, write):
    path = write("a.jsonl", ROWS)
    first, second = (set(built(run(source(path, unanswerable={"share": 0.4, "seed": seed})))) for seed in (0, 1))
    assert first != second


def test_where_no_document_fits_the_row_stays_answerable_and_is_counted(run, write):
    rows = [row | {"doc": "Everybody lives in town1x.", "answer": "town1x"} for row in ROWS]
    found = run(source(write("a.jsonl", rows)))
    assert found.counts["unanswerable"] == 0
    assert found.counts["unanswerable_not_built"] > 100


def test_a_document_that_holds_a_gold_in_other_spelling_is_not_taken(run, write):
    rows = [{"question": f"{i}?", "answer": "The Alps", "doc": f"{i}: ALPS!" if i % 2 else f"{i} sea", "page": str(i)}
            for i in range(100)]  # fmt: skip
    assert all("sea" in document for document in built(run(source(write("a.jsonl", rows)))).values())


def test_unanswerable_rows_of_the_dataset_count_towards_the_share(run, write):
    rows = [row | {"ok": i % 2 == 0} for i, row in enumerate(ROWS)]
    fields = FIELDS | {"answerable": "ok"}
    found = run(source(write("a.jsonl", rows), fields=fields))
    assert found.counts["unanswerable"] == 200
    assert "unanswerable_built" not in found.counts


def test_of_two_groups_the_other_one_gives_the_document(run, write):
    rows = [row | {"page": "ab"[i % 2]} for i, row in enumerate(ROWS)]
    page_of_question = {row["question"]: row["page"] for row in rows}
    page_of_document = {row["doc"]: row["page"] for row in rows}
    changed = built(run(source(write("a.jsonl", rows))))
    assert all(page_of_document[document] != page_of_question[question] for question, document in changed.items())
