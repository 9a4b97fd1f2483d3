"""What a plan says of costs: each figure on a case small enough to be worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import toy

from flows.planning import price as pricing
from flows.planning.price import WorkEstimate, price, size_of
from tasks.config import ModelConfig, RunConfig
from tasks.engines.chat_tokenizer import ChatTokenizer
from tasks.models import load_tokenizer

N_TRAIN, N_TEST, N_PROBES = 5, 3, 4
ROWS = [
    toy.example(f"{split}{i}", split=split) for split, n in (("train", N_TRAIN), ("test", N_TEST)) for i in range(n)
]
STRICT = "{% if 'refused' in messages[0]['content'] %}{{ raise_exception('roles must take turns') }}{% endif %}"


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "examples.parquet"
    toy.write(path, "examples", ROWS)
    return path


@pytest.fixture
def raw(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe without benchmarks, judged by the base model itself, on a machine without a GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return {
        "model": {"base": str(tiny_model)},
        "generate": {"max_new_tokens": 50},
        "judge": {"llm": {"judges": [{"model": {"base": str(tiny_model)}}], "audit": {"n_probes": N_PROBES}}},
        "evaluate": {"benchmarks": [], "drift_rows": 0},
    }


def priced(raw: dict[str, Any], examples: Path, *, n_missing: int = N_TRAIN) -> dict[str, WorkEstimate]:
    """The lines by the words before a model's name."""
    lines = price(RunConfig.model_validate(raw), examples, n_missing=n_missing)
    return {line.work.removesuffix(f" {Path(raw['model']['base']).name}"): line for line in lines}


def lengths(model: str) -> tuple[float, float]:
    """Mean tokens of prompt and gold."""
    reader = ChatTokenizer(load_tokenizer(ModelConfig(base=model)))
    pairs = [reader.with_answer(r["messages"], r["golds"][0]) for r in ROWS if r["split"] == "train"]
    prompts, golds = zip(*pairs, strict=True)
    return sum(map(len, prompts)) / N_TRAIN, sum(map(len, golds)) / N_TRAIN


def test_generation_is_priced_by_missing_rows_and_the_time_by_tokens_and_size(raw, examples, tiny_model):
    prompt, gold = lengths(str(tiny_model))
    line = priced(raw, examples, n_missing=2)["generate"]
    assert (line.rows, line.prompt_tokens, line.new_tokens) == (2, round(2 * prompt), round(2 * 2 * gold))
    n_parameters = (tiny_model / "model.safetensors").stat().st_size / 4
    seconds = 2 * n_parameters * (2 * prompt / 0.40 + 2 * 2 * gold / 0.12) / 989e12
    assert line.gpu_hours == pytest.approx(seconds / 3600)
    assert line.note == ""


def test_every_answer_is_judged_though_all_are_paid(raw, examples, tiny_model):
    prompt, gold = lengths(str(tiny_model))
    lines = priced(raw, examples, n_missing=0)
    assert lines["generate"].rows == 0
    n = N_TRAIN + N_PROBES
    assert lines["judge"].rows == lines["judge"].new_tokens == n
    assert lines["judge"].prompt_tokens == round(n * (prompt + gold + 2 * gold + 250))


def test_every_sample_is_judged_by_every_judge_at_every_repeat(raw, examples):
    raw["generate"] |= {"n_samples": 3, "temperature": 1.0}
    raw["judge"]["llm"] |= {"reasoning": True, "max_reasoning_tokens": 9, "temperature": 1.0, "repeats": 2}
    raw["judge"]["llm"]["judges"].append({"model": {"base": "lab-judge"}})
    lines = priced(raw, examples, n_missing=0)
    n = (3 * N_TRAIN + N_PROBES) * 2
    assert [lines[name].rows for name in ("judge", "judge lab-judge")] == [n, n]
    assert lines["judge"].new_tokens == n * 10


@pytest.mark.parametrize("policy", ["s3ft", "rewrite_all"])
def test_rewrites_are_judged_too(raw, examples, tiny_model, policy):
    prompt, gold = lengths(str(tiny_model))
    raw |= {"arms": [{"name": "arm", "policy": policy}], "rewrite": {"max_new_tokens": 1}}
    lines = priced(raw, examples, n_missing=0)
    assert lines["rewrite"].rows == lines["judge rewrites"].rows == N_TRAIN
    assert lines["judge rewrites"].prompt_tokens == round(N_TRAIN * (prompt + gold + 1 + 250))
    assert "judge rewrites" not in priced(raw | {"judge": {}}, examples, n_missing=0)


@pytest.mark.parametrize(
    ("evaluate", "n_requests", "prompt", "new"),
    [
        ({"benchmarks": ["mmlu"]}, 14_042 * 4, 130, 1),
        ({"benchmarks": ["mmlu"], "limit": 1_000}, 14_042 * 4, 130, 1),  # of each of 57 subjects
        ({"benchmarks": ["mmlu"], "limit": 10}, 57 * 10 * 4, 130, 1),
        ({"benchmarks": ["mmlu"], "limit": 10, "num_fewshot": 5}, 57 * 10 * 4, 6 * 130, 1),
        ({"benchmarks": ["gsm8k"]}, 1_319, 60 + 5 * 190, 180),
        ({"benchmarks": ["gsm8k"], "limit": 1_000}, 1_000, 60 + 5 * 190, 180),
        ({"benchmarks": ["gsm8k"], "num_fewshot": 0}, 1_319, 60, 180),
        ({"benchmarks": ["truthfulqa_mc2"], "num_fewshot": 5}, 817 * 7, 170, 1),  # the harness leaves its shots alone
        ({"benchmarks": ["hellaswag"], "limit": 1_000}, 4_000, 110, 1),
        ({"benchmarks": ["one_of_my_own"], "limit": 20}, 20, 300, 50),
    ],
)
def test_benchmarks_are_priced_by_the_items_that_run(raw, tmp_path, evaluate, n_requests, prompt, new):
    path = tmp_path / "examples.parquet"
    toy.write(path, "examples", [row for row in ROWS if row["split"] == "train"])
    raw["evaluate"] |= evaluate
    line = priced(raw, path)["evaluate 3 models"]
    assert line.rows == 3 * n_requests
    assert (line.prompt_tokens, line.new_tokens) == (3 * n_requests * prompt, 3 * n_requests * new)


def test_without_anything_to_measure_evaluation_costs_nothing(raw, tmp_path):
    path = tmp_path / "examples.parquet"
    toy.write(path, "examples", [row for row in ROWS if row["split"] == "train"])
    assert priced(raw, path)["evaluate 3 models"][1:5] == (0, 0, 0, 0.0)


@pytest.mark.parametrize("n_refused", [2, N_TRAIN])
def test_chats_that_the_template_refuses_are_left_out_of_the_lengths_and_told(
    raw, tmp_path, tiny_model, monkeypatch, n_refused
):
    tokenizer = load_tokenizer(ModelConfig(base=str(tiny_model)))
    tokenizer.chat_template = STRICT + tokenizer.chat_template
    monkeypatch.setattr("flows.planning.price.load_tokenizer", lambda model: tokenizer)
    refused = [{"messages": [{"role": "user", "content": "refused " * 50}]}] * n_refused
    readable = [{}] * (N_TRAIN - n_refused)
    path = tmp_path / "examples.parquet"
    toy.write(path, "examples", [toy.example(f"{i}", **c) for i, c in enumerate([*refused, *readable])])
    line = priced(raw, path)["generate"]
    assert line.note == f"the chat template refuses {n_refused} of {N_TRAIN} sampled rows: lengths without them"
    assert line.rows == N_TRAIN
    assert (line.prompt_tokens > 0) == bool(readable)
    assert line.prompt_tokens < N_TRAIN * 20


def test_gpus_that_would_stand_idle_are_told_where_the_engine_is_first_used(raw, examples, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    lines = priced(raw | {"engine": "vllm"}, examples)
    assert lines["generate"].note == "4 GPUs here, the engine uses 1: engine.data_parallel=4"


# --- the size of models ---


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a Hub model that is described but not here."""
    folder = tmp_path / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    monkeypatch.setattr("tasks.models._hub_snapshot", lambda base, revision, *, weights: folder)
    pricing._parameters_on_hub.cache_clear()
    return folder


def test_a_size_is_read_from_the_index_of_the_shards(hub_folder):
    (hub_folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 14_000}}))
    assert size_of(ModelConfig(base="acme/seven")) == (7_000, "")


def test_a_mixture_works_with_a_share_of_its_parameters(hub_folder):
    config = {"dtype": "bfloat16", "num_local_experts": 8, "num_experts_per_tok": 2}
    (hub_folder / "config.json").write_text(json.dumps(config))
    (hub_folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 16_000}}))
    assert size_of(ModelConfig(base="acme/mixture")).n_parameters == 2_000


def test_the_second_copy_of_the_weights_is_not_counted(hub_folder):
    (hub_folder / "model.safetensors").write_bytes(b"x" * 600)
    (hub_folder / "consolidated.safetensors").write_bytes(b"x" * 600)
    assert size_of(ModelConfig(base="acme/twice")).n_parameters == 300


def test_without_an_index_the_hub_is_asked_for_the_headers_of_that_commit(hub_folder, monkeypatch):
    def headers(self: object, name: str, *, revision: str) -> SimpleNamespace:
        assert (name, revision) == ("acme/small", hub_folder.name)
        return SimpleNamespace(parameter_count={"BF16": 400, "F32": 100})

    monkeypatch.setattr("huggingface_hub.HfApi.get_safetensors_metadata", headers)
    assert size_of(ModelConfig(base="acme/small")).n_parameters == 500


def test_a_hub_that_cannot_be_reached_leaves_the_size_unknown(hub_folder, monkeypatch):
    from huggingface_hub.errors import HTTPError

    def unreachable(self: object, name: str, *, revision: str) -> None:
        raise HTTPError("connection refused")

    monkeypatch.setattr("huggingface_hub.HfApi.get_safetensors_metadata", unreachable)
    assert size_of(ModelConfig(base="acme/away")).n_parameters is None


def test_offline_a_size_may_be_unknown_and_then_hours_are_with_a_note(hub_folder):
    size = size_of(ModelConfig(base="acme/away"))
    assert size == (None, "acme/away: its weights are not here, so their size is unknown")


def test_a_judge_that_is_only_a_name_has_no_hours_and_says_why(raw, examples):
    raw["judge"]["llm"]["judges"] = [
        {"model": {"base": "judge-of-ours"}, "engine": {"kind": "openai", "urls": ["http://127.0.0.1:1/v1"]}}
    ]
    line = priced(raw, examples)["judge judge-of-ours"]
    assert line.gpu_hours is None
    assert line.note == "judge-of-ours: its config is not here, so its size is unknown"
