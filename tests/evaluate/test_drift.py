"""Drift: the lab's model draws, an adapter is measured on what it drew, beside the same sums done by hand."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_measure import put_adapter

from flows.rehearsal import plan_steps
from tasks.artifacts.store import Store, open_store
from tasks.config import (
    AbstentionConfig,
    DataConfig,
    EngineConfig,
    EvaluateConfig,
    ModelConfig,
    SourceConfig,
    parse_recipe,
)
from tasks.engines import Reply
from tasks.errors import StepError
from tasks.evaluate import drift, evaluate
from tasks.ingest import ingest
from tasks.measures.bootstrap import Method
from tasks.models import LAB_MODEL, load_model, load_tokenizer
from tasks.report.drift import drift_of
from tasks.running.step import Planned, as_input

LAB = ModelConfig(base="lab")
METHOD = Method(n_bootstrap=400)
SMALL = {"benchmarks": (), "max_task_rows": 2, "max_new_tokens": 20, "drift_rows": 12}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def examples(store: Store) -> Planned:
    planned = ingest.plan(config=DataConfig(sources=(SourceConfig(name="lab", reader="lab"),), lab_rows=20))
    planned.execute(store)
    return planned


def planned(examples: Planned, *, changes: dict[str, Any] | None = None, **more: Planned) -> Planned:
    return dataclasses.replace(evaluate, launcher=None).plan(
        model=LAB, engine=EngineConfig(), config=EvaluateConfig.model_validate(SMALL | (changes or {})),
        abstention=AbstentionConfig(), examples=examples, **more,
    )  # fmt: skip


def rows_of(store: Store, made: Planned, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(store.fetch(made.execute(store)) / f"{name}.parquet").to_pylist()
    return rows


@pytest.fixture(scope="module")
def base(store: Store, examples: Planned) -> Planned:
    return planned(examples)


@pytest.fixture(scope="module")
def untrained(store: Store, examples: Planned, base: Planned) -> Planned:
    """An adapter that changes nothing yet: its second matrices are 0."""
    adapter = as_input(put_adapter(store, LAB_MODEL, 1, moved=False))
    base.execute(store)
    return planned(examples, adapter=adapter, base=base)


@pytest.fixture(scope="module")
def moved(store: Store, examples: Planned, base: Planned) -> Planned:
    base.execute(store)
    return planned(examples, adapter=as_input(put_adapter(store, LAB_MODEL, 1, scale=2)), base=base)


@pytest.mark.slow
def test_the_base_draws_one_answer_to_each_of_the_first_in_domain_prompts(
    store: Store, examples: Planned, base: Planned
) -> None:
    table = pq.read_table(store.fetch(examples.ref) / "examples.parquet").to_pylist()
    expected = sorted(row["example_id"] for row in table if (row["split"], row["domain"]) == ("test", "in"))
    drawn = rows_of(store, base, "drawn")
    assert [row["example_id"] for row in drawn] == expected[:12]
    assert all(row["text"] and row["n_tokens"] > 1 and row["base_nll"] > 0 for row in drawn)
    manifest = store.manifest(**base.ref)
    assert manifest is not None
    assert (manifest.counts["drift_rows"], manifest.counts["drift_unscored"]) == (12, 0)


@pytest.mark.slow
def test_the_same_weights_have_no_drift(store: Store, untrained: Planned) -> None:
    """But for the last bit of single precision: with an adapter, even of zeros, torch may add in another order."""
    rows = rows_of(store, untrained, "drift")
    assert [row["nll"] for row in rows] == pytest.approx([row["base_nll"] for row in rows], abs=1e-5)
    found = drift_of(store.fetch(untrained.ref), METHOD)
    assert found is not None
    estimate = found.per_token
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0, 0, 0), abs=1e-5)
    assert (estimate.n, estimate.n_missing) == (12, 0)


@pytest.mark.slow
def test_an_adapter_that_moved_away_drifts_by_what_torch_says(
    store: Store, examples: Planned, base: Planned, moved: Planned
) -> None:
    import torch

    rows = rows_of(store, moved, "drift")
    texts = {row["example_id"]: row["text"] for row in rows_of(store, base, "drawn")}
    table = pq.read_table(store.fetch(examples.ref) / "examples.parquet").to_pylist()
    messages = {row["example_id"]: row["messages"] for row in table}
    tokenizer = load_tokenizer(LAB)
    models = [load_model(LAB), load_model(LAB, store.fetch(moved.inputs["adapter"]) / "adapter")]
    log_ratio, n_tokens = 0.0, 0
    for row in rows:
        key = row["example_id"]
        asked = tokenizer.apply_chat_template(messages[key], tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(asked, add_special_tokens=False)["input_ids"]
        answer = tokenizer(texts[key], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        with torch.inference_mode():
            logits = [model(input_ids=torch.tensor([prompt + answer])).logits[0].double() for model in models]
        before, after = (
            float(x.log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, torch.tensor(answer)[:, None]).sum())
            for x in logits
        )
        assert row["n_tokens"] == len(answer)
        assert row["nll"] - row["base_nll"] == pytest.approx((before - after) / len(answer), abs=1e-4)
        log_ratio, n_tokens = log_ratio + before - after, n_tokens + len(answer)
    found = drift_of(store.fetch(moved.ref), METHOD)
    assert found is not None
    assert found.per_token.value == pytest.approx(log_ratio / n_tokens, abs=1e-4)
    assert found.per_token.low is not None
    assert found.per_token.low > 0


@pytest.mark.slow
def test_the_mean_over_draws_is_the_divergence_of_the_models(store: Store, tmp_path: Path) -> None:
    """Against the sum over the whole vocabulary at every place of the drawn answers, which has the same expectation."""
    import torch

    from tasks.engines.transformers import TransformersEngine
    from tasks.tables.schema import DRAWN, TableWriter

    folder = store.fetch(put_adapter(store, LAB_MODEL, 1)) / "adapter"
    base, arm = (TransformersEngine(LAB, batch_tokens=20_000, adapter=f) for f in (None, folder))
    messages = [{"role": "user", "content": "Where does Alba live?"}]
    prompts = [{"example_id": f"{i:04}", "messages": messages, "group": None} for i in range(150)]
    drawn = list(drift.draw(base, prompts, EvaluateConfig(max_new_tokens=64)))
    with TableWriter(tmp_path / "drawn.parquet", DRAWN) as writer:
        writer.write(drawn)
    asked = base.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    start = base.tokenizer(asked, add_special_tokens=False)["input_ids"]

    @functools.cache
    def exact(text: str) -> float:
        answer = base.tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            p, q = (
                one.model(input_ids=torch.tensor([start + answer])).logits[0, len(start) - 1 :].double().log_softmax(-1)
                for one in (base, arm)
            )
        return float((p.exp() * (p - q)).sum())

    texts = {row["example_id"]: row["text"] for row in drawn}
    rows = [row for row in drift.compare(arm, prompts, tmp_path / "drawn.parquet") if row["problem"] is None]
    assert len(rows) >= 140
    found = np.array([(row["nll"] - row["base_nll"]) * row["n_tokens"] for row in rows])
    expected = np.array([exact(texts[row["example_id"]]) for row in rows])
    error = (found - expected).std() / math.sqrt(len(rows))
    assert abs((found - expected).mean()) < 4 * error
    assert expected.mean() > 4 * error, "it would not tell it from 0"


@pytest.mark.slow
def test_a_resumed_evaluation_draws_nothing_again(
    tmp_path: Path, examples: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "store"))
    examples.execute(store)
    drawn = 0
    real_draw, real_write = drift.draw, evaluate.body.__globals__["_write"]

    def draw(*given: Any) -> Iterator[drift.Row]:
        nonlocal drawn
        drawn += 1
        return real_draw(*given)

    def killed(*given: Any) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(drift, "draw", draw)
    monkeypatch.setitem(evaluate.body.__globals__, "_write", killed)
    with pytest.raises(StepError, match="killed"):
        planned(examples).execute(store)
    monkeypatch.setitem(evaluate.body.__globals__, "_write", real_write)
    assert len(rows_of(store, planned(examples), "drawn")) == 12
    assert drawn == 1


@pytest.mark.slow
def test_an_answer_that_was_cut_off_has_a_reason_and_no_score(store: Store, examples: Planned) -> None:
    short = {"max_new_tokens": 2}
    base = planned(examples, changes=short)
    assert {row["problem"] for row in rows_of(store, base, "drawn")} == {"cut_off: longer than max_new_tokens"}
    arm = planned(examples, changes=short, adapter=as_input(put_adapter(store, LAB_MODEL, 1)), base=base)
    for row in rows_of(store, arm, "drift"):
        assert (row["nll"], row["base_nll"], row["problem"]) == (None, None, "cut_off: longer than max_new_tokens")
    found = drift_of(store.fetch(arm.ref), METHOD)
    assert found is not None
    assert (found.per_token.value, found.per_token.n_missing, found.unscored) == (None, 12, {"cut_off": 12})


@pytest.mark.slow
def test_without_drift_rows_nothing_is_drawn(store: Store, examples: Planned) -> None:
    base = planned(examples, changes={"drift_rows": 0})
    folder = store.fetch(base.execute(store))
    assert not (folder / "drawn.parquet").exists()
    manifest = store.manifest(**base.ref)
    assert manifest is not None
    assert "drift_rows" not in manifest.counts


class Saying:
    """An engine that gives what it was told: an answer and its likelihood, or a problem."""

    def __init__(self, *replies: Reply, nll: float = 1.0) -> None:
        self.replies, self.nll, self.asked = replies, nll, list[Any]()

    def generate(self, requests: Any, sampling: Any, **_: Any) -> Iterator[Reply]:
        self.asked = [*requests, sampling]
        yield from reversed(self.replies)  # in any order

    def likelihoods(self, continuations: Any, **_: Any) -> Iterator[Any]:
        from tasks.engines import Likelihood

        return (Likelihood(one.key, self.nll) for one in continuations)


PROMPTS = [{"example_id": key, "messages": [{"role": "user", "content": key}], "group": None} for key in "abcd"]
REPLIES = (
    Reply("a", "yes", "stop", 3, 2),
    Reply("b", None, problem="http_500: gone", retryable=True),
    Reply("c", "", "stop", 3, 1),
    Reply("d", "yes and", "length", 3, 2),
)


def test_failed_empty_and_cut_answers_keep_their_reason() -> None:
    found = list(drift.draw(Saying(*REPLIES), PROMPTS, EvaluateConfig()))
    assert [row["example_id"] for row in found] == list("abcd")
    assert [row["base_nll"] for row in found] == [1.0, None, None, None]
    assert [(row["problem"] or "").partition(":")[0] for row in found] == ["", "http_500", "empty_answer", "cut_off"]


def test_a_likelihood_that_overflowed_is_a_problem_and_no_number() -> None:
    (row,) = drift.draw(Saying(REPLIES[0], nll=math.inf), PROMPTS[:1], EvaluateConfig())
    assert (row["base_nll"], row["problem"]) == (None, "not_finite: the likelihood is inf")


def test_answers_are_drawn_at_temperature_1_with_seeds_of_the_prompts_own() -> None:
    both, second = Saying(*REPLIES[:2]), Saying(REPLIES[1])
    list(drift.draw(both, PROMPTS[:2], EvaluateConfig()))
    list(drift.draw(second, PROMPTS[1:2], EvaluateConfig()))
    first_request, second_request, sampling = both.asked
    assert (sampling.temperature, sampling.top_p) == (1.0, 1.0)
    assert first_request.seed != second_request.seed
    assert second_request == second.asked[0]


@pytest.mark.parametrize("kind", ["transformers", "vllm"])
def test_arms_are_given_what_the_base_drew_unless_drift_is_off(kind: str) -> None:
    def given(**changes: Any) -> bool:
        recipe = {
            "name": "toy", "model": {"base": "lab"}, "engine": {"kind": kind},
            "data": {"sources": [{"name": "lab", "reader": "lab"}]}, "arms": [{"name": "sft", "policy": "gold"}],
            "evaluate": {"benchmarks": ["lab"], **changes},
        }  # fmt: skip
        steps = {step.label: step for step in plan_steps(parse_recipe(recipe, where="toy"))}
        return steps["evaluate sft"].inputs.get("base") == steps["evaluate base"].ref

    assert given()
    assert not given(drift_rows=0)
