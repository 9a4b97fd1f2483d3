"""What a run makes of the GPUs of its machine."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect import flow, task
from prefect.futures import PrefectConcurrentFuture
from prefect.states import Pending

from flows.execution.devices import gpu_remarks, steps_at_a_time
from flows.execution.runner import PrefectRunner, RunOptions
from tasks.artifacts.store import open_store
from tasks.config import RunConfig
from tasks.running import process

EIGHT = ",".join(map(str, range(8)))
JUDGE = {"model": {"base": "lab-judge"}}


@pytest.mark.parametrize(("visible", "n"), [("0", 1), (EIGHT, 1), ("", 4), ("-1", 4)])
def test_where_there_is_a_gpu_steps_go_one_after_the_other_and_that_is_said(monkeypatch, visible, n):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert steps_at_a_time(4) == n
    asked = {"engine": {"kind": "vllm", "data_parallel": 8}, "execution": {"workers": 4}}
    said = gpu_remarks(RunConfig.model_validate(asked))
    assert [remark.startswith("execution.workers=4: one step at a time here") for remark in said] == [True] * (n == 1)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its kernel knows of four GPUs; the device nodes and the mark of a container are up to the test."""
    for minor in range(4):
        gpu = tmp_path / "proc" / f"0000:0{minor}:00.0"
        gpu.mkdir(parents=True)
        (gpu / "information").write_text(f"Model: \t\t NVIDIA H100\nDevice Minor: \t {minor}\n")
    (tmp_path / "dev").mkdir()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.delenv("ECS_CONTAINER_METADATA_URI_V4", raising=False)
    monkeypatch.setattr(process, "_NVIDIA", tmp_path / "proc")
    monkeypatch.setattr(process, "_DEVICES", tmp_path / "dev")
    monkeypatch.setattr(process, "_CONTAINER_MARKS", (tmp_path / ".dockerenv",))
    return tmp_path


@pytest.mark.parametrize(
    ("nodes", "mark", "n"),
    [([0, 1, 2, 3], "", 4), ([], "", 4), ([2], ".dockerenv", 1), ([2], "KUBERNETES_SERVICE_HOST", 1),
     ([], ".dockerenv", 0), ([], "ECS_CONTAINER_METADATA_URI_V4", 0)],
    ids=["bare", "bare, no nodes yet", "container with one", "pod with one", "container without", "task without"],
)  # fmt: skip
def test_in_a_container_only_the_gpus_count_that_it_was_given(machine, monkeypatch, nodes, mark, n):
    for minor in nodes:
        (machine / "dev" / f"nvidia{minor}").touch()
    if mark.startswith("."):
        (machine / mark).touch()
    elif mark:
        monkeypatch.setenv(mark, "10.0.0.1")
    assert process.count_gpus() == n


class Gauge:
    """How many are inside at a time, at most. Who is inside waits for as many as expected, then a moment for more."""

    def __init__(self, expected: int) -> None:
        self.most, self._now, self._expected, self._change = 0, 0, expected, threading.Condition()

    def __enter__(self) -> None:
        with self._change:
            self._now += 1
            self.most = max(self.most, self._now)
            self._change.notify_all()
            self._change.wait_for(lambda: self.most >= self._expected, timeout=30)
            self._change.wait_for(lambda: self.most > self._expected, timeout=0.2)

    def __exit__(self, *error: object) -> None:
        with self._change:
            self._now -= 1


def stand_in(name: str, gauge: Gauge) -> Any:
    """A step of this name whose task does nothing but be unfinished for a while."""

    @task
    def unfinished(**parameters: Any) -> None:
        with gauge:
            pass

    ref = {"step": name, "fingerprint": name}
    planned = SimpleNamespace(
        ref=ref, inputs={}, label=name, step=SimpleNamespace(name=name), reusable=lambda _: None, task=unfinished,
        to_json=lambda: ref,
    )  # fmt: skip
    return SimpleNamespace(plan=lambda label: planned)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("visible", "body", "n"), [("0", None, 1), ("", None, 3), ("0", lambda **parameters: None, 3)],
    ids=["here, on a GPU", "here, without one", "elsewhere"],
)  # fmt: skip
def test_a_run_keeps_as_many_steps_unfinished_as_its_place_allows(
    tmp_path, monkeypatch, prefect_server, visible, body, n
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("flows.execution.runner.step_task", lambda planned, **options: planned.task)
    # A server that has heard of no end yet, as one under load has not.
    monkeypatch.setattr(PrefectConcurrentFuture, "state", property(lambda future: Pending()))
    gauge = Gauge(n)

    @flow
    def toy() -> None:
        runner = PrefectRunner(open_store(str(tmp_path)), RunOptions(frozenset(), 0.0, 3, body))
        for name in "abcdefg":
            runner(stand_in(name, gauge), name)
        runner.wait()

    toy()
    assert gauge.most == n


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
