"""The lab's world: one token a word, nothing held out is trained on, and rows that the judge's rules agree with."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tasks.config import AbstentionConfig, JudgeConfig
from tasks.judge.rules import Candidate, first_rule, undecided
from tasks.lab import corpus, task, world
from tasks.lab.tokenizer import ASSISTANT, END, USER, build_tokenizer

LAB = Path(task.__file__).parent
PHRASES = AbstentionConfig().phrases
N_CHATS = 20_000
STAGES = (0, corpus.REGISTERS_ONLY, corpus.READING_FIRST, corpus.LATER_FROM, corpus.WORKED_FROM, corpus.ALL_DIGITS_FROM)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="module")
def trained() -> set[str]:
    """Every user message of the first chats of each stage of pre-training."""
    return {
        turn.user
        for step in STAGES
        for chat in itertools.islice(corpus.chats(seed=step, step=step), N_CHATS)
        for turn in chat
    }


@pytest.fixture(scope="module")
def rows() -> list[task.LabRow]:
    return list(task.task_rows(400, seed=0))


@pytest.fixture(scope="module")
def items() -> ModuleType:
    """The benchmarks' module, loaded by its path as lm-evaluation-harness does."""
    spec = importlib.util.spec_from_file_location("items", LAB / "benchmarks" / "items.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- words ---


def words() -> Iterator[str]:
    for kind in world.KINDS.values():
        yield from kind.subjects
        yield from itertools.chain.from_iterable(relation.values for relation in kind.relations)
    for fact in (*world.COUNTRY_FACTS, *world.CREATURE_FACTS):
        yield from (fact.subject, *fact.relation.values)


def test_every_name_and_value_is_one_token(tokenizer):
    longer = {word for word in set(words()) if len(tokenizer(word)["input_ids"]) != 1}
    assert longer == set()


@pytest.mark.parametrize(
    "text",
    [
        "Home of Ada: Oslo.",
        "- Captain of Aurora: Ada.\n- Flag of Aurora: red.",
        "17 + 25 = 42",
        "Ada has 17 coins and finds 5 more. How many coins does Ada have?",
        "Größe, naïve, 東京, emoji 🙂, tab\t, quote \"'\n\nend",
        "unknownword",
    ],
)
def test_text_comes_back_from_its_tokens(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]).removeprefix(" ") == text


def test_digits_are_tokens_of_their_own(tokenizer):
    assert tokenizer.tokenize("425")[-3:] == ["4", "2", "5"]


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "Oslo."},
]


def test_the_chat_template_ends_every_message_and_opens_the_answer(tokenizer):
    prompt = tokenizer.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == f"{USER}Be brief.{END}{USER}Where?{END}{ASSISTANT}"
    whole = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert whole == f"{prompt}Oslo.{END}"


def test_an_answer_ends_with_the_token_that_ends_generation(tokenizer):
    ids = tokenizer.apply_chat_template(CHAT, return_dict=True)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_a_trainer_can_mask_all_but_the_answer(tokenizer):
    found = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    taught = [i for i, mine in zip(found["input_ids"], found["assistant_masks"], strict=True) if mine]
    assert tokenizer.decode(taught).strip() == f"Oslo.{END}"


# --- what is held out ---


def test_no_held_out_sum_is_trained_on(trained):
    people = world.PEOPLE.subjects
    held_out = {
        form.format(a=a, b=b, s=name)
        for a, b in itertools.product(range(1, corpus.MAX_TERM + 1), repeat=2)
        if corpus.held_out_sum(a, b)
        for form in corpus.SUM_FORMS
        for name in (people if "{s}" in form else people[:1])
    }
    assert trained & held_out == set()
    assert any(message.startswith("What is 1 plus ") for message in trained)


def test_no_held_out_story_is_trained_on(trained):
    stories: dict[bool, set[str]] = {True: set(), False: set()}
    for script, (place, name) in itertools.product(range(len(world.SCRIPTS)), enumerate(world.PEOPLE.subjects)):
        for n_events in (1, 2, 3):
            stories[corpus.held_out_story(script, place)].add(corpus.story_prompt(script, name, n_events))
    assert trained & stories[True] == set()
    assert len(trained & stories[False]) > 1_000


@pytest.mark.parametrize("facts", [world.COUNTRY_FACTS, world.CREATURE_FACTS], ids=["countries", "creatures"])
def test_no_held_out_wording_of_a_fact_is_trained_on(trained, facts):
    held_out = {question for fact in facts for question in fact.questions(trained=False)}
    known = {question for fact in facts for question in fact.questions(trained=True)}
    assert trained & held_out == set()
    assert len(trained & known) > 0.8 * len(known)


@pytest.mark.parametrize("facts", [world.COUNTRY_FACTS, world.CREATURE_FACTS], ids=["countries", "creatures"])
def test_every_wording_of_a_relation_is_trained_for_half_of_the_subjects(facts):
    n_trained: dict[tuple[str, int], int] = {}
    for fact in facts:
        for form in fact.trained_forms:
            n_trained[fact.relation.name, form] = n_trained.get((fact.relation.name, form), 0) + 1
    n_subjects = len({fact.subject for fact in facts})
    assert len(n_trained) == 4 * len({fact.relation.name for fact in facts})
    assert all(abs(n - n_subjects / 2) <= 1 for n in n_trained.values())


def test_every_word_that_is_trained_on_is_a_token(trained, tokenizer):
    spelled = {word for message in list(trained)[:3_000] for word in message.split() if word.isalpha()}
    assert {word for word in spelled if len(tokenizer(word)["input_ids"]) != 1} == set()


def test_no_answer_is_the_name_of_a_missing_value():
    answers = {
        turn.assistant
        for step in STAGES
        for chat in itertools.islice(corpus.chats(seed=step, step=step), 5_000)
        for turn in chat
    }
    assert [answer for answer in answers if "None" in answer] == []


def test_the_same_seed_draws_the_same_chats():
    draws = [list(itertools.islice(corpus.chats(seed, step=0), 200)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


# --- the task ---


def judged(row: task.LabRow, text: str) -> str:
    candidate = Candidate(text, "stop", None, "grounded_qa", row.golds, row.incorrect, row.answerable)
    return (first_rule(candidate, JudgeConfig(), PHRASES) or undecided(JudgeConfig())).verdict


def test_the_same_seed_draws_the_same_rows_and_another_seed_others(rows):
    assert list(task.task_rows(400, seed=0)) == rows
    other = list(task.task_rows(400, seed=1))
    assert other[:400] != rows[:400]
    assert other[400:] == rows[400:], "every run is measured on the same test rows"


def test_a_longer_draw_begins_with_a_shorter_one(rows):
    assert list(task.task_rows(150, seed=0))[:150] == rows[:150]


def test_splits_and_domains_are_as_large_as_promised(rows):
    sizes: dict[tuple[str, str], int] = {}
    for row in rows:
        sizes[row.split, row.domain] = sizes.get((row.split, row.domain), 0) + 1
    assert sizes == {("train", "in"): 400, ("test", "in"): task.TEST_ROWS, ("test", "out"): task.TEST_ROWS}


def test_about_the_promised_share_is_unanswerable(rows):
    share = sum(not row.answerable for row in rows) / len(rows)
    assert share == pytest.approx(task.SHARE_UNANSWERABLE, abs=0.04)


def test_no_test_row_is_trained_on():
    drawn: dict[str, set[tuple[str, str]]] = {"train": set(), "test": set()}
    for row in task.task_rows(1_600, seed=0):
        drawn[row.split].add((row.document, row.question))
    assert drawn["train"] & drawn["test"] == set()


def test_every_gold_is_accepted_by_the_judge(rows):
    assert [row for row in rows for gold in row.golds if judged(row, gold) != "accept"] == []


def test_every_known_wrong_value_is_rejected_by_the_judge(rows):
    wrong = [(row, value) for row in rows for value in row.incorrect]
    assert len(wrong) > 500
    assert [pair for pair in wrong if judged(pair[0], f"It is {pair[1]}.") != "reject"] == []


def test_the_model_s_own_refusal_is_right_exactly_where_there_is_no_answer(rows):
    for row in rows:
        assert (judged(row, world.OWN_REFUSAL) == "accept") == (not row.answerable)


def test_the_gold_value_stands_in_the_document_and_a_refusal_where_none_does(rows):
    for row in rows:
        if row.answerable:
            assert row.golds[-1] in row.document.replace(".", " ").split()
        else:
            assert row.golds == [world.GOLD_REFUSAL]


# --- the benchmarks ---

BENCHMARKS = ("facts", "sums", "stories", "misconceptions")


@pytest.fixture(scope="module", params=BENCHMARKS)
def splits(request: pytest.FixtureRequest, items: ModuleType) -> dict[str, list[dict[str, Any]]]:
    return {name: split.to_list() for name, split in getattr(items, request.param)().items()}


@pytest.mark.parametrize(("name", "n"), [("facts", 600), ("sums", 600), ("stories", 600), ("misconceptions", 520)])
def test_a_benchmark_has_enough_items(items, name, n):
    splits = getattr(items, name)()
    assert len(splits["test"]) >= n
    assert len(splits["dev"]) >= n // 5


def test_no_item_stands_twice(splits):
    for split in splits.values():
        assert len({item["question"] for item in split}) == len(split)


def test_no_item_of_dev_stands_in_test(splits):
    asked = {name: {item["question"] for item in split} for name, split in splits.items()}
    assert asked["dev"] & asked["test"] == set()


def test_no_item_of_a_benchmark_is_trained_on(splits, trained):
    assert {item["question"] for split in splits.values() for item in split} & trained == set()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_is_the_same_each_time(items, name):
    first, second = (getattr(items, name)()["test"].to_list() for _ in range(2))
    assert first == second


def test_the_right_ending_of_a_story_is_the_script_s_next_event(items):
    for item in items.stories()["test"].to_list()[:100]:
        assert len(set(item["choices"])) == 4
        right = item["choices"][item["label"]]
        name = right.split()[0]
        place = int(item["cluster"].removeprefix("script-"))
        events = [event.format(s=name) for event in world.SCRIPTS[place]]
        told = item["question"].removeprefix("What comes next? ")
        assert told == " ".join(events[: events.index(right)])


def test_the_right_answer_is_not_always_at_the_same_place(items):
    labels = [item["label"] for item in items.stories()["test"].to_list()]
    assert all(labels.count(place) > 100 for place in range(4))


@pytest.mark.parametrize(
    ("function", "answer", "output", "score"),
    [
        ("entity_match", "lion", "The animal of Zandia is the lion.", 1.0),
        ("entity_match", "lion", "lion", 1.0),
        ("entity_match", "lion", "The lions", 0.0),
        ("entity_match", "lion", "", 0.0),
        ("number_match", "42", "17 + 25 = 42", 1.0),
        ("number_match", "42", "42.", 1.0),
        ("number_match", "42", "It is 42, I think", 1.0),
        ("number_match", "42", "42 + 1 = 43", 0.0),
        ("number_match", "2", "42", 0.0),
        ("number_match", "42", "no idea", 0.0),
        ("number_match", "42", "", 0.0),
    ],
)
def test_an_answer_is_scored_by_what_it_holds(items, function, answer, output, score):
    assert getattr(items, function)({"answer": answer}, [output]) == {"exact_match": score}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_harness_finds_the_functions_that_a_task_names(items, name):
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    read = yaml.load((LAB / "benchmarks" / f"lab_{name}.yaml").read_text(), Loader)  # a SafeLoader with one tag more
    assert read["task"] == f"lab_{name}"
    named = [value for value in read.values() if isinstance(value, str) and value.startswith("items.")]
    assert named
    assert all(callable(getattr(items, value.removeprefix("items."))) for value in named)
