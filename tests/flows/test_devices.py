"""What a run makes of the GPUs of its machine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flows.devices import at_a_time, gpu_remarks
from flows.runner import PrefectRunner, Wanted
from tasks.config import RunConfig
from tasks.store import open_store

EIGHT = ",".join(map(str, range(8)))
JUDGE = {"model": {"base": "lab-judge"}}


@pytest.mark.parametrize(("visible", "n"), [("0", 1), (EIGHT, 1), ("", 4), ("-1", 4)])
def test_where_there_is_a_gpu_steps_go_one_after_the_other_and_that_is_said(monkeypatch, visible, n):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert at_a_time(4) == n
    asked = {"engine": {"kind": "vllm", "data_parallel": 8}, "execution": {"workers": 4}}
    said = gpu_remarks(RunConfig.model_validate(asked))
    assert [remark.startswith("execution.workers=4: one step at a time here") for remark in said] == [True] * (n == 1)


class Future:
    """Of a step that is done as soon as somebody waits for it."""

    def __init__(self) -> None:
        self.state = SimpleNamespace(is_final=lambda: self.waited_for)
        self.waited_for = False

    def wait(self) -> Future:
        self.waited_for = True
        return self


def unfinished_at_the_end(runner: PrefectRunner, monkeypatch: pytest.MonkeyPatch, n_steps: int) -> int:
    futures = [Future() for _ in range(n_steps)]
    monkeypatch.setattr("flows.runner.as_completed", lambda running: iter([running[0].wait()]))
    monkeypatch.setattr("flows.runner.task_parameters", lambda planned, store, *, force: {})
    for name, future in zip(map(str, range(n_steps)), futures, strict=True):
        planned = SimpleNamespace(
            ref={"fingerprint": name},
            inputs={},
            label=name,
            step=SimpleNamespace(name=name),
            reusable=lambda store: None,
        )
        task = SimpleNamespace(submit=lambda future=future, **options: future)
        step: Any = SimpleNamespace(plan=lambda label, p=planned: p, task=lambda p, task=task, **options: task)
        runner(step, name)
    return sum(not future.waited_for for future in futures)


@pytest.mark.parametrize(
    ("visible", "body", "n"), [("0", None, 1), ("", None, 3), ("0", lambda **parameters: None, 3)],
    ids=["here, on a GPU", "here, without one", "elsewhere"],
)  # fmt: skip
def test_a_run_keeps_as_many_steps_unfinished_as_its_place_allows(tmp_path, monkeypatch, visible, body, n):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    runner = PrefectRunner(open_store(str(tmp_path)), Wanted(frozenset(), 0.0, 3, body))
    assert unfinished_at_the_end(runner, monkeypatch, n_steps=5) == n


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"engine": "vllm"}, ["8 GPUs here, the engine uses 1: engine.data_parallel=8"]),
        ({"engine": {"kind": "vllm", "tensor_parallel": 4}},
         ["8 GPUs here, the engine uses 4: engine.data_parallel=2"]),
        ({"engine": {"kind": "vllm", "data_parallel": 8}}, []),
        ({"engine": {"kind": "vllm", "tensor_parallel": 3, "data_parallel": 2}}, []),  # no third copy fits
        ({}, ["8 GPUs here, the engine uses 1: engine.kind=vllm, engine.data_parallel=8"]),
        ({"engine": "vllm", "execution": "deployments"}, []),  # other machines do the steps
        ({"engine": {"kind": "openai", "urls": ["http://127.0.0.1:1/v1"]}}, []),
        ({"engine": {"kind": "vllm", "data_parallel": 8},
          "judge": {"llm": {"judges": [JUDGE, JUDGE | {"engine": {"kind": "vllm", "tensor_parallel": 2}}]}}},
         ["8 GPUs here, the engine uses 2: judge.llm.judges.1.engine.data_parallel=4"]),
    ],
)  # fmt: skip
def test_gpus_that_an_engine_leaves_idle_are_named_with_the_setting_that_uses_them(monkeypatch, recipe, said):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", EIGHT)
    assert gpu_remarks(RunConfig.model_validate(recipe)) == said


@pytest.mark.parametrize("visible", ["", "3"])
def test_a_machine_with_one_gpu_or_none_has_none_idle(monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_remarks(RunConfig.model_validate({"engine": "vllm"})) == []
    assert gpu_remarks(RunConfig()) == []
