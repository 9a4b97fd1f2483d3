"""The step as a whole: identity of rows, accounting, splits, filters."""

from __future__ import annotations

import random

import pytest

from tasks.artifacts.store import open_store
from tasks.config import DataConfig
from tasks.errors import DataError
from tasks.ingest import ingest
from tasks.running import progress

ROWS = [{"question": f"What is {i} squared?", "answer": str(i * i)} for i in range(300)]


def splits(found) -> dict[str, str]:
    return {row["example_id"]: row["split"] for row in found.rows}


def test_shuffling_the_rows_does_not_change_the_bytes_of_the_table(run, write):
    document = {"doc": "The square of seven is written in no book."}
    # Copies that differ only in what is not part of the id: which one is kept must not depend on their order either.
    rows = [row | document | {"page": page} for row in ROWS for page in "ab"]
    shuffled = random.Random(1).sample(rows, len(rows))
    common = {
        "task": "grounded_qa",
        "fields": {"document": "doc", "group": "page"},
        "limit": 200,
        "unanswerable": {"share": 0.3},
    }
    tables = [
        run({"path": write(f"{i}.jsonl", given)} | common, test_share=0.3) for i, given in enumerate([rows, shuffled])
    ]
    assert tables[0].content == tables[1].content
    assert tables[0].counts == tables[1].counts


def test_adding_rows_changes_neither_id_nor_split_of_the_others(run, write):
    few = splits(run({"path": write("few.jsonl", ROWS[:100])}, test_share=0.3))
    many = splits(run({"path": write("many.jsonl", ROWS)}, test_share=0.3))
    assert few.items() <= many.items()


def test_rows_are_sorted_by_example_id(run, write):
    ids = [row["example_id"] for row in run({"path": write("a.jsonl", ROWS)}).rows]
    assert ids == sorted(ids)
    assert all(len(example_id) == 32 for example_id in ids)


def test_about_the_test_share_is_held_out(run, write):
    found = run({"path": write("a.jsonl", ROWS)}, test_share=0.3)
    assert 60 <= found.counts["rows.test"] <= 120
    assert found.counts["rows.test"] + found.counts["rows.train"] == 300


def test_duplicates_are_kept_once_and_every_row_is_accounted_for(run, write):
    rows = [*ROWS[:10], *ROWS[:4], {"question": "", "answer": "x"}, {"question": "x", "answer": []}]
    counts = run({"path": write("a.jsonl", rows)}).counts
    assert counts["rows_in"] == 16
    assert counts["rows_out"] == counts["rows.train"] == 10
    dropped = {name: n for name, n in counts.items() if name.startswith("dropped.")}
    assert dropped == {"dropped.duplicate": 4, "dropped.no_question": 1, "dropped.no_gold": 1}


def test_a_duplicate_in_another_source_stays_where_it_tests(run, write):
    path = write("a.jsonl", ROWS[:10])
    found = run({"name": "a", "path": path, "split": "train"},
                {"name": "b", "path": write("b.jsonl", ROWS[:3]), "split": "test"})  # fmt: skip
    assert found.counts["rows.train.a"] == 7
    assert found.counts["rows.test.b"] == 3
    assert found.counts["dropped.duplicate"] == 3


def test_a_training_row_whose_prompt_is_tested_is_dropped(run, write):
    other_gold = [row | {"answer": "unknown"} for row in ROWS[:3]]
    found = run({"name": "a", "path": write("a.jsonl", ROWS[:10]), "split": "train"},
                {"name": "b", "path": write("b.jsonl", other_gold), "split": "test"})  # fmt: skip
    assert found.counts["dropped.prompt_in_test"] == 3
    assert found.counts["rows.train"] == 7


def test_a_prompt_with_two_golds_stands_on_one_side(run, write):
    rows = [row | {"answer": answer} for row in ROWS for answer in ("a", "b")]
    found = run({"path": write("a.jsonl", rows)}, test_share=0.5)
    sides = {(row["question"], row["split"]) for row in found.rows}
    assert len(sides) == len(ROWS)
    assert "dropped.prompt_in_test" not in found.counts


def test_a_row_out_of_domain_is_only_tested(run, write):
    found = run({"name": "a", "path": write("a.jsonl", ROWS[:5])},
                {"name": "b", "path": write("b.jsonl", ROWS[5:9]), "domain": "out"})  # fmt: skip
    assert {(row["source"], row["split"], row["domain"]) for row in found.rows} == {
        ("a", "train", "in"), ("b", "test", "out"),
    }  # fmt: skip


def test_the_limit_keeps_the_smallest_hashes(run, write):
    path = write("a.jsonl", ROWS[:50])
    all_ids = [row["example_id"] for row in run({"path": path}).rows]
    limited = run({"path": path, "limit": 8})
    assert [row["example_id"] for row in limited.rows] == all_ids[:8]
    assert limited.counts["dropped.over_limit"] == 42


def test_too_long_prompts_are_dropped_and_counted(run, write):
    rows = [*ROWS[:5], {"question": "x" * 200, "answer": "y"}]
    found = run({"path": write("a.jsonl", rows)}, max_prompt_chars=199)
    assert (found.counts["dropped.prompt_too_long"], len(found.rows)) == (1, 5)


def test_the_task_decides_template_and_answerability(run, write):
    found = run({"path": write("a.jsonl", ROWS[:2]), "task": "number"}).rows[0]
    assert found["messages"][0]["content"].endswith("#### <number>")
    assert (found["task"], found["answerable"]) == ("number", None)


def test_when_nothing_is_left_the_biggest_reason_comes_first(run, write):
    rows = [{"question": "", "answer": "x"}] * 3 + [{"question": "q", "answer": None}]
    with pytest.raises(DataError, match="no row is left, dropped for: no_question 3, no_gold 1") as caught:
        run({"path": write("a.jsonl", rows)})
    assert caught.value.exit_code == 2


UNMATCHED = [
    (
        "multiple_choice",
        "gold_without_letter",
        ["C", "(B)", "A. Rome", "d"],
        ["2", "Rome", "Vitamin D"],
        "answers as A, B, C",
    ),
    ("number", "gold_without_number", ["12", "-.5", "so it is\n#### 7"], ["twelve", "1.000.000"], "answers in digits"),
]


@pytest.mark.parametrize(("task", "reason", "good", "bad", "next_action"), UNMATCHED)
def test_golds_that_no_answer_could_match_are_dropped_and_named(run, write, task, reason, good, bad, next_action):
    rows = [{"question": f"What is {i}?", "answer": gold} for i, gold in enumerate([*good, *bad])]
    rows.append({"question": "What of two?", "answer": [bad[0], good[0]]})
    found = run({"path": write("a.jsonl", rows), "task": task})
    assert found.counts[f"dropped.{reason}"] == len(bad)
    assert len(found.rows) == len(good) + 1
    assert f"dropped.{reason}" not in run({"path": write("open.jsonl", rows), "task": "open"}).counts
    with pytest.raises(DataError, match=f"no row is left, dropped for: {reason} {len(bad)}.*{next_action}"):
        run({"path": write("bad.jsonl", rows[len(good) : -1]), "task": task})


def test_without_a_training_row_the_step_fails(run, write):
    with pytest.raises(DataError, match="no training row: all 5 rows are in the test split"):
        run({"path": write("a.jsonl", ROWS[:5]), "split": "test"})


def test_progress_is_told_on_the_way(run, write):
    told: list[tuple[int, int, str]] = []

    class Listener:
        def started(self, label): ...
        def finished(self, label, counts, seconds): ...
        def reused(self, label, counts): ...
        def progress(self, label, done, total, detail):
            told.append((done, total, detail))

    with progress.listening(Listener()):
        run({"name": "squares", "path": write("a.jsonl", ROWS * 10)})
    assert told == [(2000, 0, "rows read, now squares")]


def test_the_plan_carries_digests_of_bytes_and_template(write):
    source = {"path": write("a.jsonl", ROWS[:2])}
    outside = ingest.plan(config=DataConfig.model_validate({"sources": [source]})).identity["outside"]
    ending, digest = outside["data.sources.0"]["files"][0]
    assert (ending, len(digest)) == (".jsonl", 64)
    assert "{{ question }}" in outside["data.sources.0"]["prompt"]


def test_data_that_changes_after_the_plan_is_not_stored_under_the_old_fingerprint(write, tmp_path):
    config = DataConfig.model_validate({"sources": [{"path": write("a.jsonl", ROWS[:20])}]})
    planned = ingest.plan(config=config)
    write("a.jsonl", ROWS[:30])
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(DataError, match="changed after the run was planned"):
        planned.execute(store)
    assert store.manifest(**planned.ref) is None


def test_a_failed_step_leaves_no_temporary_file(run, write, tmp_path):
    with pytest.raises(DataError):
        run({"path": write("a.jsonl", ROWS[:5]), "split": "test"})
    assert not [path for path in (tmp_path / "store" / "steps").rglob("*") if path.is_file()]
