"""The client of OpenAI-compatible servers, against one that fails as it is told to."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tasks.config import EngineConfig, ModelConfig
from tasks.engines import Continuation, Engine, Reply, Request, Sampling, open_engine, replicas
from tasks.engines.chat_tokenizer import ChatTokenizer
from tasks.engines.remote import GROUP_ROWS, Connection, RemoteEngine
from tasks.engines.replicas import Replica
from tasks.errors import ConfigError, StepError
from tasks.lab.tokenizer import build_tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from faulty_server import (
    Fault,
    FaultyServer,
    Prompt,
    answer_to,
    chance_of_first,
    changed,
    cut,
    first_choice,
    first_position,
    http,
    logprob_of,
    long,
    said,
    slow,
)

Opened = Callable[..., AbstractContextManager[Engine]]
Asked = Callable[[Callable[[int], FaultyServer], Callable[[FaultyServer], bool]], FaultyServer]

Json = dict[str, Any]

SAMPLING = Sampling(max_new_tokens=8)
JUDGING = Sampling(max_new_tokens=8, choices=("Yes", "No"))
A_TOKEN = (0,)  # the prompt that a server in doubt is asked


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(replicas, "MAX_BACKOFF_SECONDS", 0.3)
    monkeypatch.setattr(replicas, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(replicas, "PATIENCE_SECONDS", 10.0)
    monkeypatch.setattr(replicas, "RETURN_SECONDS", 0.05)


@pytest.fixture(scope="module")
def reader() -> ChatTokenizer:
    return ChatTokenizer(build_tokenizer())


@pytest.fixture
def connection(reader: ChatTokenizer) -> Connection:
    return Connection(
        urls=[], model="base", tokenizer=reader, context=512, concurrency=64, timeout_seconds=20, is_vllm=True
    )


def request(i: int) -> Request:
    return Request(f"key-{i}", [{"role": "user", "content": f"Question {i}"}], seed=i)


def requests(n: int) -> list[Request]:
    return [request(i) for i in range(n)]


def prompt(reader: ChatTokenizer, i: int) -> Prompt:
    return tuple(reader.ids(request(i).messages))


def ask(connection: Connection, *servers: FaultyServer, n: int = 40, sampling: Sampling = SAMPLING) -> list[Reply]:
    engine = RemoteEngine(replace(connection, urls=[server.url for server in servers]))
    return list(engine.generate(requests(n), sampling))


def requests_until(is_over: Callable[[], bool]) -> Iterator[Request]:
    deadline = time.monotonic() + 30
    for i in count():
        if is_over():
            return
        assert time.monotonic() < deadline, "what the test waits for does not come"
        yield request(i)


def threads() -> set[threading.Thread]:
    return set(threading.enumerate())


def assert_all_answered(replies: list[Reply], reader: ChatTokenizer, n: int = 40) -> None:
    """Each row once, with the answer to its own prompt."""
    expected = {f"key-{i}": answer_to(prompt(reader, i)) for i in range(n)}
    assert sorted(reply.key for reply in replies) == sorted(expected)
    assert {reply.key: reply.text for reply in replies} == expected


# --- all goes well ---


def test_each_row_gets_the_answer_to_its_own_prompt(connection: Connection, reader: ChatTokenizer) -> None:
    with FaultyServer() as server:
        replies = ask(connection, server, n=1_003)
    assert_all_answered(replies, reader, 1_003)
    assert set(server.paid.values()) == {1}
    assert {(reply.problem, reply.finish_reason, reply.n_output_tokens) for reply in replies} == {(None, "stop", 3)}
    assert {reply.n_prompt_tokens for reply in replies} == {len(prompt(reader, i)) for i in range(1_003)}


def test_rows_that_are_done_are_not_asked(connection: Connection, reader: ChatTokenizer) -> None:
    with FaultyServer() as server:
        engine = RemoteEngine(replace(connection, urls=[server.url]))
        replies = list(engine.generate(requests(40), SAMPLING, done={f"key-{i}" for i in range(35)}))
    assert {reply.key for reply in replies} == {f"key-{i}" for i in range(35, 40)}
    assert set(server.seen) == {prompt(reader, i) for i in range(35, 40)}


def test_no_row_is_no_reply(connection: Connection) -> None:
    with FaultyServer() as server:
        assert ask(connection, server, n=0) == []


@pytest.mark.parametrize("concurrency", [1, 5, 64])
def test_no_more_rows_are_in_flight_than_asked_for(
    connection: Connection, reader: ChatTokenizer, concurrency: int
) -> None:
    with FaultyServer(faults=[slow(0.05)] * 10) as server:
        assert_all_answered(ask(replace(connection, concurrency=concurrency), server, n=80), reader, 80)
    assert concurrency // 2 < server.most_rows <= concurrency


def test_requests_are_read_only_as_far_as_they_are_needed(connection: Connection) -> None:
    n_read = 0

    def counted() -> Iterator[Request]:
        nonlocal n_read
        for n_read in range(1, 100_001):
            yield request(n_read)

    with FaultyServer() as server:
        replies = RemoteEngine(replace(connection, urls=[server.url])).generate(counted(), SAMPLING)
        next(replies)
        time.sleep(0.5)  # long enough to read far ahead
        assert n_read <= 64 + 6 * GROUP_ROWS
        replies.close()


def test_sampled_rows_go_alone_each_with_its_own_seed(connection: Connection) -> None:
    with FaultyServer() as server:
        ask(connection, server, n=20, sampling=Sampling(8, temperature=0.7))
    assert server.n_requests == 20
    assert server.last_body["temperature"] == 0.7
    assert server.last_body["seed"] in range(20)


def test_a_server_that_renders_chats_itself_is_asked_by_chat(connection: Connection) -> None:
    with FaultyServer() as server:
        replies = ask(replace(connection, tokenizer=None), server)
    assert {r.key: r.text for r in replies} == {f"key-{i}": answer_to(f"Question {i}") for i in range(40)}
    assert {(r.n_prompt_tokens, r.n_output_tokens) for r in replies} == {(7, 3)}


# --- verdicts and likelihoods ---


def test_choices_come_with_their_log_probabilities(connection: Connection, reader: ChatTokenizer) -> None:
    with FaultyServer() as server:
        replies = ask(connection, server, sampling=JUDGING)
    assert {reply.text for reply in replies} == {"Yes", "No"}
    for reply in replies:
        first = chance_of_first(prompt(reader, int(reply.key.removeprefix("key-"))))
        assert reply.choice_logprobs == pytest.approx({"Yes": math.log(first), "No": math.log(1 - first)})
        assert reply.text == ("Yes" if first >= 0.5 else "No")


def test_choices_of_a_chat_come_with_their_log_probabilities(connection: Connection) -> None:
    with FaultyServer() as server:
        replies = ask(replace(connection, tokenizer=None), server, sampling=JUDGING)
    for reply in replies:
        first = chance_of_first(f"Question {reply.key.removeprefix('key-')}")
        assert reply.choice_logprobs == pytest.approx({"Yes": math.log(first), "No": math.log(1 - first)})


@pytest.mark.parametrize("by_chat", [False, True])
def test_a_server_that_refuses_constraints_is_asked_for_plain_text(
    connection: Connection, reader: ChatTokenizer, by_chat: bool
) -> None:
    to = replace(connection, tokenizer=None) if by_chat else connection
    with FaultyServer(refuses=["allowed_token_ids", "structured_outputs"]) as server:
        replies = ask(to, server, sampling=JUDGING)
    expected = {f"key-{i}": answer_to(f"Question {i}" if by_chat else prompt(reader, i)) for i in range(40)}
    assert {reply.key: reply.text for reply in replies} == expected
    assert {reply.choice_logprobs for reply in replies} == {None}
    assert server.last_body["max_tokens"] == JUDGING.max_new_tokens, "one token is no verdict"
    assert set(server.paid.values()) == {1}


@pytest.mark.parametrize(
    ("by_chat", "refused"), [(False, "logprobs"), (True, "logprobs"), (True, "top_logprobs")]  # a field of chats alone
)  # fmt: skip
def test_a_server_that_refuses_log_probabilities_is_asked_without_them(
    connection: Connection, reader: ChatTokenizer, by_chat: bool, refused: str
) -> None:
    to = replace(connection, tokenizer=None) if by_chat else connection
    with FaultyServer(refuses=[refused]) as server:
        replies = ask(to, server, sampling=JUDGING)
    for reply in replies:
        asked = f"Question {reply.key[4:]}" if by_chat else prompt(reader, int(reply.key[4:]))
        assert reply.text == ("Yes" if chance_of_first(asked) >= 0.5 else "No"), (
            "the choice is constrained all the same"
        )
    assert {(reply.problem, reply.finish_reason, reply.choice_logprobs) for reply in replies} == {(None, "stop", None)}
    assert set(server.paid.values()) == {1}


def test_a_server_that_takes_neither_constraints_nor_log_probabilities_is_asked_for_plain_text(
    connection: Connection,
) -> None:
    with FaultyServer(refuses=["logprobs", "top_logprobs", "structured_outputs"]) as server:
        replies = ask(replace(connection, tokenizer=None), server, sampling=JUDGING)
    assert {r.key: r.text for r in replies} == {f"key-{i}": answer_to(f"Question {i}") for i in range(40)}


FREE = [
    # What follows decides, and the first token's tail tells nothing of it.
    ("Verdict: no", first_position("Verdict", {"Verdict": -0.05, "The": -4, "Yes": -9, "No": -12}), None),
    ("The answer is no", first_position("The", {"The": -0.05, "Yes": -9}), None),
    ("No", first_position("No", {"No": -0.1, "Yes": -3.0, "no": -4.0}), {"Yes": -3.0, "No": -0.1}),
    # One that is not shown has at most what the shown ones leave.
    ("No.", first_position("No", {"No": -0.1}), {"Yes": math.log(1 - math.exp(-0.1)), "No": -0.1}),
    ("Yes", first_position("Yes", {"Yes": -0.1, "Oh": -8.0}), {"Yes": -0.1, "No": -8.0}),
    ("No", first_position("No", {}), None),
]


@pytest.mark.parametrize(("text", "position", "expected"), FREE)
def test_a_free_chat_has_probabilities_of_choices_only_where_it_begins_with_one(
    connection: Connection, text: str, position: Json, expected: dict[str, float] | None
) -> None:
    to = replace(connection, tokenizer=None, is_vllm=False)
    fault = first_choice(message={"content": text}, logprobs={"content": [position]})
    with FaultyServer(faults=[fault]) as server:
        [reply] = ask(to, server, n=1, sampling=JUDGING)
    assert reply.text == text
    assert reply.choice_logprobs == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("begins_with_it", [False, True])
def test_a_free_completion_has_probabilities_of_choices_only_where_it_begins_with_one(
    connection: Connection, reader: ChatTokenizer, begins_with_it: bool
) -> None:
    yes, no = (f"token_id:{reader.choice_ids(choice)[0]}" for choice in JUDGING.choices)
    top = {yes: -9.0, no: -12.0, "token_id:1": -0.05}
    logprobs = {"tokens": [yes if begins_with_it else "token_id:1", "token_id:2"], "top_logprobs": [top, None]}
    with FaultyServer(
        refuses=["allowed_token_ids"], faults=[first_choice(text="as said", logprobs=logprobs)]
    ) as server:
        [reply] = ask(connection, server, n=1, sampling=JUDGING)
    assert (reply.text, reply.n_output_tokens) == ("as said", 2)
    assert reply.choice_logprobs == ({"Yes": -9.0, "No": -12.0} if begins_with_it else None)


def test_a_verdict_cut_off_by_its_token_limit_says_so(connection: Connection) -> None:
    with FaultyServer(faults=[first_choice(finish_reason="length")]) as server:
        [reply] = ask(connection, server, n=1)
    assert (reply.finish_reason, reply.problem) == ("length", None)


def test_likelihoods_are_the_mean_over_the_answer_alone(connection: Connection, reader: ChatTokenizer) -> None:
    rows = [Continuation(f"key-{i}", request(i).messages, f"words {i}") for i in range(20)]
    with FaultyServer() as server:
        engine = RemoteEngine(replace(connection, urls=[server.url]))
        found = {one.key: one.nll for one in engine.likelihoods(rows, done={"key-0"})}
    expected = {}
    for row in rows[1:]:
        _, answer = reader.with_answer(row.messages, row.text)
        expected[row.key] = -sum(logprob_of(token) for token in answer) / len(answer)
    assert found == pytest.approx(expected)


def test_a_likelihood_that_the_server_does_not_give_is_a_problem_and_not_zero(connection: Connection) -> None:
    with FaultyServer(faults=[first_choice(prompt_logprobs=None)]) as server:
        engine = RemoteEngine(replace(connection, urls=[server.url]))
        [found] = engine.likelihoods([Continuation("key", request(0).messages, "words")])
    assert (found.nll, found.retryable) == (None, False)
    assert (found.problem or "").startswith("no_prompt_logprobs")


# --- rows that fail ---


@pytest.mark.parametrize(
    ("fault", "kind", "retryable"),
    [
        (http(429), "http_429", True),
        (http(503), "http_503", True),
        (http(500), "http_500", True),
        (http(403), "http_403", True),
        (http(400), "http_400", False),
        (http(400, "maximum context length is 512 tokens"), "context_overflow", False),
        (cut(), "connection", True),
        (cut(in_body=True), "connection", True),
        (said("not JSON"), "malformed_reply", True),
        (said("[]"), "malformed_reply", True),
        (said('{"choices": 5}'), "malformed_reply", True),
        (said('{"choices": [5]}'), "malformed_reply", True),
        (first_choice(text=None), "malformed_reply", True),
        (first_choice(text=["a"]), "malformed_reply", True),
        (first_choice(token_ids=7), "malformed_reply", True),
        (first_choice(index=1), "malformed_reply", True),
        (changed(lambda good: good["choices"].clear()), "empty_choices", True),
        (first_choice(finish_reason="abort"), "unfinished", True),
        (first_choice(finish_reason=None), "unfinished", True),
        (first_choice(finish_reason="content_filter"), "unfinished", False),
    ],
)
def test_a_failed_row_is_a_reply_with_a_typed_problem(
    connection: Connection, fault: Fault, kind: str, retryable: bool
) -> None:
    with FaultyServer(faults=[fault] * 20) as server:
        [reply] = ask(connection, server, n=1)
    assert ((reply.problem or "").partition(":")[0], reply.retryable) == (kind, retryable)
    assert (reply.key, reply.text) == ("key-0", None)
    assert server.n_requests <= replicas.BUSY_TRIES, "tries are counted"


FAULTS = [
    http(429), http(500), http(502), slow(600), cut(), cut(in_body=True), said("{"), said("null"), http(200, ""),
    changed(lambda good: good["choices"].clear()), changed(lambda good: good["choices"].pop()),
    changed(lambda good: good["choices"].append({"index": 0, "text": "twice", "finish_reason": "stop"})),
    first_choice(text=5), changed(lambda good: good.update(usage=[])),
]  # fmt: skip


def test_passing_faults_lose_no_row_and_pay_for_none_twice(connection: Connection, reader: ChatTokenizer) -> None:
    with FaultyServer(faults=FAULTS) as server:
        replies = ask(replace(connection, timeout_seconds=4), server, n=400)
    assert_all_answered(replies, reader, 400)
    assert not server.faults
    assert set(server.paid.values()) == {1}


def test_passing_faults_of_a_chat_lose_no_row(connection: Connection) -> None:
    with FaultyServer(faults=[http(429), cut(), said("{"), first_choice(message="text")]) as server:
        replies = ask(replace(connection, tokenizer=None), server)
    assert {r.key: r.text for r in replies} == {f"key-{i}": answer_to(f"Question {i}") for i in range(40)}


@pytest.mark.parametrize("status", [400, 500])
def test_a_poisonous_row_fails_alone(connection: Connection, reader: ChatTokenizer, status: int) -> None:
    with FaultyServer(poison={prompt(reader, 13): status}) as server:
        replies = ask(connection, server)
    failed = {reply.key: reply for reply in replies if reply.problem}
    assert set(failed) == {"key-13"}
    assert failed["key-13"].retryable is (status == 500)
    assert len(replies) == 40
    assert set(server.paid.values()) == {1}
    assert server.seen[prompt(reader, 13)] <= 1 + replicas.ROW_TRIES


def test_a_busy_server_is_asked_again_for_the_same_group(connection: Connection, reader: ChatTokenizer) -> None:
    with FaultyServer(faults=[http(429)] * 5) as server:
        assert_all_answered(ask(connection, server), reader)
    assert server.n_requests == 5 + 5, "a group that is split asks eight times as much of a server that is busy"


def test_the_wait_that_a_server_asks_for_is_kept(connection: Connection, reader: ChatTokenizer) -> None:
    with FaultyServer(faults=[http(429, Retry_After="0.25")]) as server:
        began = time.monotonic()
        ask(connection, server, n=1)
    assert time.monotonic() - began > 0.25


@pytest.mark.parametrize("wait", ["3600", "-1", "nan", "Wed, 21 Oct 2099 07:28:00 GMT"])
def test_no_server_makes_the_job_wait_for_ever(connection: Connection, reader: ChatTokenizer, wait: str) -> None:
    with FaultyServer(faults=[http(429, Retry_After=wait)]) as server:
        began = time.monotonic()
        assert_all_answered(ask(connection, server, n=1), reader, 1)
    assert time.monotonic() - began < 60


def test_a_prompt_that_is_too_long_is_never_sent(connection: Connection, reader: ChatTokenizer) -> None:
    long = Request("long", [{"role": "user", "content": "Question " * 600}], seed=0)
    with FaultyServer() as server:
        engine = RemoteEngine(replace(connection, urls=[server.url]))
        replies = {reply.key: reply for reply in engine.generate([*requests(3), long], SAMPLING)}
    assert (replies["long"].problem or "").startswith("context_overflow: ")
    assert replies["long"].retryable is False
    assert tuple(reader.ids(long.messages)) not in server.seen
    assert sum(reply.problem is None for reply in replies.values()) == 3


# --- servers that fail ---


def test_the_rows_of_a_server_that_dies_go_to_the_other(connection: Connection, reader: ChatTokenizer) -> None:
    with FaultyServer(dies_after=40) as mortal, FaultyServer() as other:
        replies = ask(connection, mortal, other, n=400)
    assert_all_answered(replies, reader, 400)
    assert 0 < mortal.paid.total() <= 40
    assert set((mortal.paid + other.paid).values()) == {1}


def test_a_server_that_fails_every_row_does_not_draw_them(connection: Connection, reader: ChatTokenizer) -> None:
    with FaultyServer(faults=[http(500)] * 100_000) as broken, FaultyServer() as other:
        assert_all_answered(ask(connection, broken, other, n=200), reader, 200)


def test_a_job_without_a_server_ends_at_once_and_names_them(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "PATIENCE_SECONDS", 600)
    with FaultyServer(dies_after=20) as one, FaultyServer(dies_after=20) as other:
        began = time.monotonic()
        with pytest.raises(StepError, match="no server answers") as error:
            ask(connection, one, other, n=400)
    assert time.monotonic() - began < 60
    assert one.url in str(error.value)
    assert other.url in str(error.value)


def test_rows_that_were_answered_before_the_death_are_not_lost(connection: Connection) -> None:
    kept = []
    with FaultyServer(dies_after=200) as server:
        replies = RemoteEngine(replace(connection, urls=[server.url])).generate(requests(400), SAMPLING)
        with pytest.raises(StepError):
            kept.extend(replies)  # takes what comes before the error
    assert len(kept) == server.paid.total() == 200


def test_a_gateway_whose_server_is_gone_ends_the_job(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "PATIENCE_SECONDS", 0.3)
    with FaultyServer(always=http(502)) as server, pytest.raises(StepError, match="http_502"):
        ask(connection, server)


def test_a_server_that_accepts_connections_and_says_nothing_ends_the_job(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "PATIENCE_SECONDS", 0.3)
    with FaultyServer(always=slow(30)) as server, pytest.raises(StepError, match="no answer in"):
        ask(replace(connection, timeout_seconds=0.2), server)


def test_a_busy_server_that_lists_its_models_slowly_is_not_taken_for_dead(
    connection: Connection, reader: ChatTokenizer
) -> None:
    with FaultyServer(faults=[cut()] * 6, models_seconds=1.0) as server:
        assert_all_answered(ask(connection, server), reader)


def test_a_server_that_answers_rows_is_not_taken_for_dead_whatever_else_it_leaves_unanswered(
    connection: Connection, reader: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "PATIENCE_SECONDS", 2.0)
    # Fifty groups, eight at a time: in all longer than that.
    with FaultyServer(faults=[cut()] + [slow(0.5)] * 60, models_seconds=600) as server:
        assert_all_answered(ask(connection, server, n=400), reader, 400)


def test_a_slow_row_does_not_take_its_server_out(connection: Connection, reader: ChatTokenizer) -> None:
    with FaultyServer(faults=[slow(600)] * 3) as server:
        replies = ask(replace(connection, timeout_seconds=3), server, n=80)
    assert_all_answered(replies, reader, 80)


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_ends_the_job_and_marks_no_row(connection: Connection, status: int) -> None:
    with FaultyServer(always=http(status)) as server, pytest.raises(StepError, match=f"http_{status}") as error:
        ask(connection, server)
    assert server.url in str(error.value)


def test_the_last_words_of_a_server_of_our_own_end_the_job(connection: Connection) -> None:
    with FaultyServer(dies_after=20) as server:
        to = replace(connection, explain_death=lambda: "it ran out of memory" if server.paid.total() >= 16 else None)
        with pytest.raises(StepError, match="it ran out of memory"):
            ask(to, server)


# --- servers that hang ---


@pytest.mark.parametrize("by_chat", [False, True])
def test_a_server_that_lists_its_models_and_answers_no_row_ends_the_job_after_two_time_outs(
    connection: Connection, by_chat: bool
) -> None:
    to = replace(connection, timeout_seconds=2, tokenizer=None if by_chat else connection.tokenizer)
    silence = r"no server answers any more .*it hangs: no row was answered in 2 s"
    with FaultyServer(faults=[slow(600)] * 10_000) as server, pytest.raises(StepError, match=silence):
        ask(to, server, n=1_000)
    assert set(server.seen.values()) == {1}
    assert len(server.seen) == to.concurrency + 1, "the rows that were in flight, and one token"


def test_a_server_of_our_own_that_hangs_ends_the_job_with_its_last_lines(connection: Connection) -> None:
    to = replace(connection, timeout_seconds=0.3, last_lines=lambda: "    waiting for a lock")
    with FaultyServer(faults=[slow(600)] * 10_000) as server, pytest.raises(StepError, match="waiting for a lock"):
        ask(to, server, n=1_000)


def test_the_rows_of_a_server_that_hangs_go_to_the_other(
    connection: Connection, reader: ChatTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultyServer(faults=[slow(600)] * 10_000) as hung, FaultyServer() as other:
        engine = RemoteEngine(replace(connection, urls=[hung.url, other.url], timeout_seconds=2))
        replies = list(engine.generate(requests_until(lambda: "it hangs" in caplog.text), SAMPLING))
    assert_all_answered(replies, reader, len(replies))
    assert f"{hung.url} is taken out" in caplog.text


def test_rows_that_are_only_long_fail_as_rows_and_end_no_job(connection: Connection) -> None:
    with FaultyServer(faults=[long(600)] * 10_000) as server:
        replies = ask(replace(connection, timeout_seconds=2), server, n=20)
    assert {(reply.problem, reply.retryable) for reply in replies} == {("timeout: no answer in 2 s", True)}
    assert len(replies) == 20
    assert server.seen.pop(A_TOKEN) > 0
    assert set(server.seen.values()) == {1 + replicas.ROW_TRIES}


# --- servers that come back ---


def test_a_server_that_dies_and_comes_back_gets_rows_again_each_time(
    connection: Connection, reader: ChatTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultyServer() as other, ExitStack() as stack:
        lives = [stack.enter_context(FaultyServer(dies_after=40))]
        engine = RemoteEngine(replace(connection, urls=[lives[0].url, other.url]))
        replies = []
        for reply in engine.generate(requests_until(lambda: len(lives) == 3 and lives[2].paid.total() > 40), SAMPLING):
            replies.append(reply)
            if len(lives) < 3 and caplog.text.count("is taken out") == len(lives):
                dies_after = 40 if len(lives) == 1 else math.inf
                lives.append(stack.enter_context(FaultyServer(port=lives[0].port, dies_after=dies_after)))
    assert_all_answered(replies, reader, len(replies))
    assert caplog.text.count(f"{lives[0].url} is back") == 2
    assert all(life.paid.total() - life.paid[A_TOKEN] >= GROUP_ROWS for life in lives)
    paid = sum((server.paid for server in (*lives, other)), Counter[Prompt]())
    del paid[A_TOKEN]
    assert paid == Counter(prompt(reader, i) for i in range(len(replies)))


@pytest.fixture
def ask_while_one_comes_back(connection: Connection, reader: ChatTokenizer, caplog: pytest.LogCaptureFixture) -> Asked:
    """Rows for two servers, one of which is gone; once it is taken out, another starts at its port."""

    def asked(start: Callable[[int], FaultyServer], is_over: Callable[[FaultyServer], bool]) -> FaultyServer:
        with FaultyServer() as gone:
            pass
        with FaultyServer() as other, ExitStack() as stack:
            back, is_started, replies = start(gone.port), False, []
            engine = RemoteEngine(replace(connection, urls=[gone.url, other.url]))
            for reply in engine.generate(requests_until(lambda: is_over(back)), SAMPLING):
                replies.append(reply)
                if not is_started and f"{gone.url} is taken out" in caplog.text:
                    stack.enter_context(back)
                    is_started = True
        assert_all_answered(replies, reader, len(replies))
        return back

    return asked


@pytest.mark.parametrize("fault", [cut(), http(400), http(404), http(429), http(500), http(503), said("{"), slow(600)])
def test_a_server_that_comes_back_and_fails_whatever_it_is_asked_costs_no_row(
    ask_while_one_comes_back: Asked, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(replicas, "PATIENCE_SECONDS", 0.3)
    back = ask_while_one_comes_back(
        lambda port: FaultyServer(port=port, faults=[fault] * 1_000), lambda back: back.n_requests >= 3
    )
    assert set(back.seen) == {A_TOKEN}
    assert back.n_requests < 5, "it is not asked for each row"
    assert "is back" not in caplog.text


@pytest.mark.parametrize("has", [{"model": "other"}, {"context": 511}, {"always": http(503)}, {"always": http(401)}])
def test_a_server_that_comes_back_without_the_model_gets_no_row(
    ask_while_one_comes_back: Asked, has: dict[str, Any]
) -> None:
    back = ask_while_one_comes_back(lambda port: FaultyServer(port=port, **has), lambda back: back.n_listed >= 3)
    assert not back.seen


def test_a_job_does_not_wait_for_a_server_that_may_come_back(
    ask_while_one_comes_back: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []

    def is_over(back: FaultyServer) -> bool:
        if back.n_listed:
            ends.append(time.monotonic())
        return bool(ends)

    monkeypatch.setattr(replicas, "ASK_SECONDS", 600)
    before = threads()
    ask_while_one_comes_back(lambda port: FaultyServer(port=port, models_seconds=600), is_over)
    assert time.monotonic() - ends[0] < 60
    assert threads() == before


def test_a_server_that_comes_and_goes_is_asked_ever_less() -> None:
    replica = Replica("http://127.0.0.1/v1", pause_seconds=5)
    pauses = []
    for _ in range(6):
        before = time.monotonic()
        replica.postpone_return()
        pauses.append(round(replica.ask_at - before))
    assert pauses == [5, 10, 20, 40, 60, 60]


# --- between the threads ---


def test_a_reader_that_stops_early_leaves_no_thread(connection: Connection) -> None:
    with FaultyServer(faults=[slow(600)] * 3) as server:
        before = threads()
        replies = RemoteEngine(replace(connection, urls=[server.url])).generate(iter(requests(5_000)), SAMPLING)
        next(replies)
        began = time.monotonic()
        replies.close()
        assert threads() == before
    assert time.monotonic() - began < 15  # and not the 20 that a row may take


def test_what_the_callers_rows_raise_reaches_the_caller_as_it_is(connection: Connection) -> None:
    error = ZeroDivisionError("the caller's own")

    def rows(n_good: int) -> Iterator[Request]:
        yield from requests(n_good)
        raise error

    with FaultyServer() as server:
        before = threads()
        for n_good in (0, 3, 500):
            with pytest.raises(ZeroDivisionError) as caught:
                list(RemoteEngine(replace(connection, urls=[server.url])).generate(rows(n_good), SAMPLING))
            assert caught.value is error
            assert threads() == before


def test_an_interrupt_while_rows_are_read_does_not_hang_the_caller(connection: Connection) -> None:
    def rows() -> Iterator[Request]:
        yield request(0)
        raise KeyboardInterrupt

    with FaultyServer() as server, pytest.raises(KeyboardInterrupt):
        list(RemoteEngine(replace(connection, urls=[server.url])).generate(rows(), SAMPLING))


def test_an_engine_can_be_asked_again_and_twice_at_a_time(connection: Connection, reader: ChatTokenizer) -> None:
    with FaultyServer() as server:
        engine = RemoteEngine(replace(connection, urls=[server.url]))
        one, other = engine.generate(requests(40), SAMPLING), engine.generate(requests(40), SAMPLING)
        assert_all_answered([next(one), *other][1:], reader)
        assert len(list(one)) == 39
        assert_all_answered(list(engine.generate(requests(40), SAMPLING)), reader)


# --- from a recipe ---


@pytest.fixture
def opened(tiny_model: Path, tmp_path: Path) -> Opened:
    def of(*urls: str, base: str = str(tiny_model), **settings: Any) -> AbstractContextManager[Engine]:
        config = EngineConfig(kind="openai", urls=urls, **settings)
        return open_engine(ModelConfig(base=base), config, work=tmp_path)

    return of


def asked_for(opened: AbstractContextManager[Engine], server: FaultyServer) -> str:
    """The model that a server is asked for."""
    with opened as engine:
        list(engine.generate(requests(1), SAMPLING))
    return str(server.last_body["model"])


def test_a_recipe_reaches_its_servers_with_token_ids(opened: Opened, reader: ChatTokenizer) -> None:
    with FaultyServer() as one, FaultyServer() as other, opened(one.url, other.url) as engine:
        assert_all_answered(list(engine.generate(requests(80), SAMPLING)), reader, 80)
    assert one.paid
    assert other.paid


def test_the_shortest_context_of_the_servers_holds(opened: Opened) -> None:
    with FaultyServer(context=512) as one, FaultyServer(context=10) as other, opened(one.url, other.url) as engine:
        [reply] = engine.generate(requests(1), Sampling(max_new_tokens=9))
    assert (reply.problem or "").startswith("context_overflow")


def test_a_server_without_the_model_is_refused_before_a_row_is_sent(
    opened: Opened,
) -> None:
    with FaultyServer() as server, pytest.raises(ConfigError, match="served_model=other"):
        opened(server.url, served_model="other").__enter__()
    assert not server.seen


@pytest.mark.parametrize(
    ("served", "base"),
    [("other org/big", "org/big"), ("other big", "org/big"), ("big org/big", "org/big"), ("any", "org/big")],
)
def test_a_server_is_asked_for_the_recipes_model(opened: Opened, served: str, base: str) -> None:
    expected = {"other org/big": "org/big", "other big": "big", "big org/big": "org/big", "any": "any"}[served]
    with FaultyServer(model=served) as server:
        assert asked_for(opened(server.url, base=base), server) == expected


def test_a_server_of_several_other_models_is_not_asked_for_just_any(opened: Opened) -> None:
    with FaultyServer(model="one two") as server, pytest.raises(ConfigError) as refused:
        opened(server.url, base="org/big").__enter__()
    assert "served_model" in str(refused.value)
    assert "org/big (found one, two)" in str(refused.value)
    assert not server.seen


@pytest.mark.parametrize(
    "listing", [http(404), said('{"data": [{"name": "x"}]}'), said("<html>"), said('{"data": []}')]
)
def test_a_server_without_a_list_of_models_is_asked_for_the_one_that_is_named(opened: Opened, listing: Fault) -> None:
    with FaultyServer(listing=listing) as server:
        assert asked_for(opened(server.url, served_model="mine"), server) == "mine"
        with pytest.raises(ConfigError, match=rf"{server.url} gives no list of models.*engine\.served_model"):
            opened(server.url).__enter__()


def test_a_key_that_is_missing_or_wrong_is_told_as_that(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "wrong-key")
    with FaultyServer(needs_key="right-key") as server:
        with pytest.raises(ConfigError, match=r"api_key_env: .* asks for a key.*http_401"):
            opened(server.url).__enter__()
        with pytest.raises(ConfigError, match=r"api_key_env: .* refuses the key in MY_KEY.*http_401") as refused:
            opened(server.url, api_key_env="MY_KEY").__enter__()
        assert "wrong-key" not in str(refused.value)
        monkeypatch.setenv("MY_KEY", "right-key")
        assert asked_for(opened(server.url, api_key_env="MY_KEY"), server) == "base"


def test_servers_that_do_not_answer_are_named_at_the_start(
    opened: Opened,
) -> None:
    with FaultyServer() as server:
        gone = server.url
    with pytest.raises(StepError, match=f"{gone}: .*refused"):
        opened(gone).__enter__()
    with FaultyServer(listing=http(503)) as server, pytest.raises(StepError, match=f"{server.url}: http_503"):
        opened(server.url).__enter__()
