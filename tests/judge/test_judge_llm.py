"""Language models as judges: what they are asked, what is paid for, and how opinions become verdicts."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import toy
from fake_judge import FakeJudge, plan, verdicts

from tasks.artifacts import paid_rows as rows_of_store
from tasks.config import LlmJudgeConfig
from tasks.engines import Reply
from tasks.errors import DataError, StepError
from tasks.judge.opinions import ASK_VERDICT
from tasks.judge.panel import decide
from tasks.judge.replies import Opinion
from tasks.judge.rubrics import RUBRICS, JudgeCase, Rubrics
from tasks.lab import judging
from tasks.readers.registry import TASKS

EXAMPLES = [toy.example(key) for key in "abcd"]
# The rules decide a (right) and d (nothing there); b and c are left.
OUTPUTS = [
    toy.output("a", "gold a"), toy.output("b", "good enough"), toy.output("c", "bad"), toy.output("d", None),
]  # fmt: skip


def by_words(asked: Any) -> float:
    return 0.9 if "good" in asked.candidate else 0.2


def states(rows: list[toy.Row]) -> list[tuple[Any, ...]]:
    return [(row["verdict"], row["decided_by"], row["reason"]) for row in rows]


def replies(text: str | None, **fields: Any) -> Any:
    return lambda asked: Reply("", text, **({"finish_reason": "stop"} | fields))


def test_the_models_decide_what_the_rules_leave_and_only_that(store, fake):
    judge: FakeJudge = fake(by_words)
    planned = plan(store, EXAMPLES, OUTPUTS, {})
    found = verdicts(store, planned)
    assert states(found) == [
        ("accept", "exact_match", "says what the gold says"), ("accept", "llm", "the judge accepts"),
        ("reject", "llm", "the judge rejects"), ("unjudged", None, "no output (timeout)"),
    ]  # fmt: skip
    assert [row["p_accept"] for row in found] == [None, pytest.approx(0.9), pytest.approx(0.2), None]
    assert len(judge.prompts) == 2
    counts = toy.counts_of(store, planned.ref)
    assert (counts["rows_in"], counts["rows_out"], counts["llm"], counts["llm.asked"]) == (4, 4, 2, 2)


def test_no_model_is_loaded_where_the_rules_decide_everything(store, fake):
    judge = fake(by_words)
    verdicts(store, plan(store, EXAMPLES[:1], OUTPUTS[:1], {"audit": {"n_probes": 8}}))
    assert judge.n_opened == 0


def test_a_judge_is_shown_one_user_message_with_everything_it_needs(store, fake):
    judge = fake(by_words)
    example = toy.example("a", task="grounded_qa", document="The Doc.", golds=["G1", "G2"], answerable=True)
    verdicts(store, plan(store, [example], [toy.output("a", "A candidate.")], {}))
    ((message,),) = judge.prompts
    assert message["role"] == "user"
    assert "Q a?" in message["content"]
    for tag, text in (("document", "The Doc."), ("gold", "G1"), ("gold", "G2"), ("candidate", "A candidate.")):
        assert f"<{tag}>\n{text}\n</{tag}>" in message["content"]


def test_a_judge_of_a_dialogue_sees_what_was_said_before(store, fake):
    judge = fake(by_words)
    turns = [("user", "I moved."), ("assistant", "When?"), ("user", "Q a?")]
    example = toy.example("a", dialogue=[{"role": role, "content": said} for role, said in turns])
    verdicts(store, plan(store, [example, toy.example("b")], [toy.output(i, "Yes.") for i in "ab"], {}))
    first, second = (message["content"] for (message,) in judge.prompts)
    shown = "\n".join(f'<turn by="{role}">\n{said}\n</turn>' for role, said in turns)
    assert f"<dialogue>\n{shown}\n</dialogue>\n\n<question>\nQ a?" in first
    assert "dialogue" not in second


# --- paid once ---


@pytest.mark.parametrize("change", [{"threshold": 0.95}, {"max_unjudged_share": 0.5}, {"audit": {"n_probes": 2}}])
def test_rows_are_judged_once_whatever_is_made_of_them(store, fake, change):
    judge = fake(by_words)
    verdicts(store, plan(store, EXAMPLES, OUTPUTS, {}))
    n = len(judge.prompts)
    verdicts(store, plan(store, EXAMPLES, OUTPUTS, change), force=True)
    n_probes = change.get("audit", {}).get("n_probes", 0)
    assert len(judge.prompts) == n + n_probes


def test_a_higher_threshold_rejects_more_without_asking_again(store, fake):
    judge = fake(by_words)
    verdicts(store, plan(store, EXAMPLES, OUTPUTS, {}))
    found = verdicts(store, plan(store, EXAMPLES, OUTPUTS, {"threshold": 0.95}))
    assert found[1]["verdict"] == "reject"
    assert judge.n_opened == 1


def test_another_combination_of_the_same_opinions_asks_nothing_again(store, fake):
    judge = fake(by_words)
    two = {"judges": [{"model": {"base": name}} for name in "xyz"]}
    verdicts(store, plan(store, EXAMPLES, OUTPUTS, two))
    verdicts(store, plan(store, EXAMPLES, OUTPUTS, two | {"combine": "majority"}))
    assert len(judge.prompts) == 6


def test_a_changed_rubric_asks_again_only_where_it_words_differently(store, fake, tmp_path):
    judge = fake(lambda asked: 0.9)
    rubric = tmp_path / "mine.txt"
    start = (
        "<question>\n{{ question }}\n</question><gold>\n{{ gold }}\n</gold><candidate>\n{{ candidate }}\n</candidate>"
    )
    rubric.write_text(start)
    verdicts(store, plan(store, EXAMPLES, OUTPUTS, {"rubric": str(rubric)}))
    rubric.write_text(start + "{% if 'bad' in candidate %} Is it bad?{% endif %}")
    verdicts(store, plan(store, EXAMPLES, OUTPUTS, {"rubric": str(rubric)}))
    assert len(judge.prompts) == 3
    assert judge.prompts[2][0]["content"].endswith("Is it bad?")


def test_the_fingerprint_follows_weights_and_rubric(store, fake, tmp_path, monkeypatch):
    fake(by_words)
    rubric = tmp_path / "mine.txt"
    rubric.write_text("{{ candidate }}")
    planned = [plan(store, EXAMPLES, OUTPUTS, {"rubric": str(rubric)})]
    rubric.write_text("{{ candidate }}?")
    planned.append(plan(store, EXAMPLES, OUTPUTS, {"rubric": str(rubric)}))
    monkeypatch.setattr("tasks.judge.panel.model_digest", lambda model: "other weights")
    planned.append(plan(store, EXAMPLES, OUTPUTS, {"rubric": str(rubric)}))
    assert len({one.ref["fingerprint"] for one in planned}) == 3


def test_a_failed_judgement_is_unjudged_and_tried_again_alone(store, fake):
    failing = replies(None, finish_reason=None, problem="timeout: 60 s", retryable=True)
    fake(lambda asked: failing(asked) if asked.candidate == "bad" else 0.9)
    planned = plan(store, EXAMPLES, OUTPUTS, {"max_unjudged_share": 1})
    assert states(verdicts(store, planned))[2] == ("unjudged", None, "the judge failed (timeout)")
    again = fake(by_words)
    found = verdicts(store, planned, force=True)
    assert [row["verdict"] for row in found] == ["accept", "accept", "reject", "unjudged"]
    assert len(again.prompts) == 1


def test_a_failure_that_no_other_try_can_help_is_not_tried_again(store, fake):
    judge = fake(replies(None, finish_reason=None, problem="context_overflow: 9 > 8", retryable=False))
    planned = plan(store, EXAMPLES, OUTPUTS, {"max_unjudged_share": 1})
    verdicts(store, planned)
    Path(store.path("steps", *planned.ref.values(), "manifest.json")).unlink()
    found = verdicts(store, planned)
    assert found[1]["reason"] == "the judge failed (context_overflow)"
    assert len(judge.prompts) == 2


@pytest.mark.parametrize("reasoning", [False, True])
def test_by_force_every_failed_judgement_is_asked_again_and_no_other(store, fake, reasoning):
    failing = replies(None, finish_reason=None, problem="context_overflow: 9 > 8", retryable=False)
    fake(lambda asked: failing(asked) if asked.candidate == "bad" else by_words(asked))
    planned = plan(store, EXAMPLES, OUTPUTS, {"max_unjudged_share": 1, "reasoning": reasoning})
    assert [row["verdict"] for row in verdicts(store, planned)[1:3]] == ["accept", "unjudged"]
    again = fake(by_words)
    assert [row["verdict"] for row in verdicts(store, planned, force=True)[1:3]] == ["accept", "reject"]
    assert len(again.prompts) == 1 + reasoning
    assert all("bad" in messages[0]["content"] for messages in again.prompts)


def test_judgements_that_may_succeed_are_counted_and_told(store, fake, caplog):
    passing = replies(None, finish_reason=None, problem="timeout: 60 s", retryable=True)
    lasting = replies(None, finish_reason=None, problem="context_overflow: 9 > 8", retryable=False)
    fake(lambda asked: passing(asked) if asked.candidate == "bad" else lasting(asked))
    planned = plan(store, EXAMPLES, OUTPUTS, {"max_unjudged_share": 1})
    verdicts(store, planned)
    assert toy.counts_of(store, planned.ref)["rows_retryable"] == 1
    assert "judge: 1 failed row may succeed on another try: --force judge" in caplog.text


def test_a_killed_step_keeps_what_was_judged(store, fake, monkeypatch):
    def dies(asked: Any) -> float:
        if asked.candidate == "bad":
            raise RuntimeError("killed")
        return 0.9

    fake(dies)
    planned = plan(store, EXAMPLES, OUTPUTS, {})
    monkeypatch.setattr(rows_of_store, "PART_ROWS", 1)
    with pytest.raises(StepError, match="killed"):
        planned.execute(store)
    again = fake(by_words)
    verdicts(store, planned)
    assert len(again.prompts) == 1


def test_too_many_unjudged_answers_fail_the_step(store, fake):
    fake(replies("I could not say."))
    with pytest.raises(StepError, match=r"left 2 of 2 answers undecided.*max_unjudged_share"):
        plan(store, EXAMPLES, OUTPUTS, {}).execute(store)


def test_a_better_reader_of_replies_judges_nothing_again(store, fake, monkeypatch):
    judge = fake(replies("Thumbs up"))
    planned = plan(store, EXAMPLES, OUTPUTS, {"verdict_by": "text", "max_unjudged_share": 1})
    assert verdicts(store, planned)[1]["verdict"] == "unjudged"
    monkeypatch.setattr("tasks.judge.replies.read_verdict", lambda text, *, is_cut_off: "up" in text)
    assert verdicts(store, planned, force=True)[1]["verdict"] == "accept"
    assert len(judge.prompts) == 2


def test_a_table_without_outputs_is_judged_too(store, fake):
    judge = fake(by_words)
    assert verdicts(store, plan(store, EXAMPLES, [], {"audit": {"n_probes": 4}})) == []
    assert judge.n_opened == 0


def test_a_judge_elsewhere_is_known_by_its_name_alone(store, fake, monkeypatch):
    fake(by_words)
    monkeypatch.setattr("tasks.judge.panel.model_digest", lambda model: pytest.fail("it is not here"))

    def at(*urls: str, name: str) -> str:
        judge = {"model": {"base": "big"}, "engine": {"kind": "openai", "urls": urls, "served_model": name}}
        return plan(store, EXAMPLES, OUTPUTS, {"judges": [judge]}).ref["fingerprint"]

    assert at("http://a/v1", name="big-1") == at("http://b/v1", "http://c/v1", name="big-1")
    assert at("http://a/v1", name="big-1") != at("http://a/v1", name="big-2")


# --- how it is asked ---


def test_reasoning_comes_first_and_the_verdict_continues_the_chat(store, fake):
    judge = fake(lambda asked: "Both say it is fine." if len(judge.prompts) <= 2 else 0.8)
    found = verdicts(store, plan(store, EXAMPLES, OUTPUTS, {"reasoning": True, "max_reasoning_tokens": 50}))
    assert [row["verdict"] for row in found[1:3]] == ["accept", "accept"]
    first, _, last, _ = judge.prompts
    assert "Do not give a verdict yet" in first[0]["content"]
    assert last[1:] == [
        {"role": "assistant", "content": "Both say it is fine."}, {"role": "user", "content": ASK_VERDICT},
    ]  # fmt: skip
    assert [sampling.choices for sampling in judge.samplings] == [(), (), *[("accept", "reject")] * 2]
    assert judge.samplings[0].max_new_tokens == 50


def test_a_reasoning_that_failed_leaves_the_answer_unjudged_and_is_tried_again(store, fake):
    fake(replies(None, finish_reason=None, problem="timeout: 60 s", retryable=True))
    llm = {"reasoning": True, "max_unjudged_share": 1}
    planned = plan(store, EXAMPLES, OUTPUTS, llm)
    assert states(verdicts(store, planned))[1] == ("unjudged", None, "the judge failed (timeout)")
    judge = fake(lambda asked: "Fine." if len(judge.prompts) <= 2 else 0.8)
    assert verdicts(store, planned, force=True)[1]["verdict"] == "accept"
    assert len(judge.prompts) == 4


def test_a_verdict_reader_that_changes_pays_for_no_reasoning_again(store, fake):
    judge = fake(lambda asked: "accept")
    verdicts(store, plan(store, EXAMPLES, OUTPUTS, {"reasoning": True}))
    verdicts(store, plan(store, EXAMPLES, OUTPUTS, {"reasoning": True, "verdict_by": "text"}))
    assert len(judge.prompts) == 4 + 2


def test_plain_text_verdicts_are_read_from_servers_without_constraints(store, fake):
    judge = fake(
        lambda asked: f"It is {asked.candidate}.\nVerdict: {'accept' if 'good' in asked.candidate else 'reject'}"
    )
    found = verdicts(store, plan(store, EXAMPLES, OUTPUTS, {"verdict_by": "text"}))
    assert [row["verdict"] for row in found] == ["accept", "accept", "reject", "unjudged"]
    assert found[1]["p_accept"] is None
    assert judge.samplings[0].choices == ()


def test_repeats_are_separate_questions_with_seeds_of_their_own(store, fake):
    seeds: list[int] = []
    fake(lambda asked: seeds.append(asked.seed) or ("accept" if len(seeds) % 3 else "reject"))
    llm = {"verdict_by": "text", "repeats": 3, "temperature": 1.0}
    found = verdicts(store, plan(store, EXAMPLES, OUTPUTS, llm))
    assert len(set(seeds)) == 6
    assert [row["p_accept"] for row in found[1:3]] == [pytest.approx(2 / 3)] * 2
    assert found[1]["decided_by"] == "llm"


def test_a_panel_is_named_with_its_size(store, fake):
    says = {"x": 0.9, "y": 0.8, "z": 0.1}
    judge = fake(lambda asked: says[asked.model])
    panel = {"judges": [{"model": {"base": name}} for name in says]}
    found = verdicts(store, plan(store, EXAMPLES, OUTPUTS, panel))
    assert (found[1]["verdict"], found[1]["decided_by"]) == ("accept", "llm:3 judges")
    assert found[1]["p_accept"] == pytest.approx(0.6)
    assert judge.n_opened == 3


# --- how opinions become a verdict ---

SURE, DOUBTING, AGAINST = Opinion(True, 0.9), Opinion(True, 0.6), Opinion(False, 0.1)
YES, NO, NONE = Opinion(True), Opinion(False), Opinion(None, problem="no verdict in the judge's reply")


def config(n: int, **fields: Any) -> LlmJudgeConfig:
    judges = [{"model": {"base": f"judge-{i}"}} for i in range(n)]
    return LlmJudgeConfig.model_validate({"judges": judges} | fields)


@pytest.mark.parametrize(
    ("opinions", "fields", "verdict", "p_accept"),
    [
        ([SURE], {}, "accept", 0.9),
        ([SURE], {"threshold": 0.95}, "reject", 0.9),
        ([NONE], {}, "unjudged", None),
        ([YES], {"verdict_by": "text"}, "accept", None),
        ([SURE, AGAINST], {}, "accept", 0.5),
        ([DOUBTING, AGAINST], {}, "reject", 0.35),
        ([YES, NO, NO], {"verdict_by": "text"}, "reject", 1 / 3),
        ([YES, NO], {"verdict_by": "text", "threshold": 0.6}, "reject", 0.5),
        # A mean without one of its opinions would be another panel's.
        ([SURE, SURE, NONE], {}, "unjudged", None),
        ([SURE, SURE, NONE], {"combine": "majority"}, "accept", None),
        ([SURE, AGAINST, NONE], {"combine": "majority"}, "unjudged", None),
        ([AGAINST, AGAINST, NONE], {"combine": "majority"}, "reject", None),
        ([SURE, AGAINST], {"combine": "majority"}, "unjudged", 0.5),
        ([DOUBTING, DOUBTING, SURE], {"combine": "majority", "threshold": 0.7}, "reject", 0.7),
    ],
)
def test_opinions_become_a_verdict(opinions, fields, verdict, p_accept):
    decision = decide(opinions, config(len(opinions), **fields))
    assert decision.verdict == verdict
    assert decision.p_accept == (None if p_accept is None else pytest.approx(p_accept))


def test_a_split_panel_says_so():
    assert decide([SURE, AGAINST], config(2, combine="majority")).reason == "the judges are split"
    assert decide([SURE, NONE], config(2, combine="majority")).reason == NONE.problem


@pytest.mark.parametrize("combine", ["mean", "majority"])
def test_the_score_is_the_highest_threshold_that_still_accepts(combine):
    panel = [SURE, DOUBTING, AGAINST]
    score = decide(panel, config(3, combine=combine)).score
    assert score is not None
    assert decide(panel, config(3, combine=combine, threshold=score)).verdict == "accept"
    assert decide(panel, config(3, combine=combine, threshold=score + 0.01)).verdict != "accept"


def test_a_rubric_that_is_not_there_is_named_before_anything_runs(store, fake):
    fake(by_words)
    with pytest.raises(DataError, match=r"judge\.llm\.rubric=none: no template of this name.*grounded-qa\.v1"):
        plan(store, EXAMPLES, OUTPUTS, {"rubric": "none"})


def test_a_misspelt_variable_of_a_rubric_is_refused_while_the_run_is_planned(store, fake, tmp_path):
    fake(by_words)
    (tmp_path / "mine.txt").write_text(
        "{% for gold in golds %}{{ gold }}{% endfor %}{% if false %}{{ candidat }}{% endif %}"
    )
    with pytest.raises(
        DataError, match=r"mine\.txt: there is no variable 'candidat'\. Did you mean 'candidate'\? It may use question,"
    ):
        plan(store, EXAMPLES, OUTPUTS, {"rubric": str(tmp_path / "mine.txt")})


def test_every_task_has_a_rubric():
    assert set(RUBRICS.by_task) == set(TASKS)


def test_the_lab_s_judge_is_asked_in_the_words_that_it_was_taught():
    rubrics = Rubrics("lab.v1", reasoning=False)
    for taught in islice(judging.cases(0), 300):
        case = JudgeCase("grounded_qa", taught.question, taught.document, [taught.gold], None, taught.candidate)
        assert rubrics.prompt(case) == taught.prompt
