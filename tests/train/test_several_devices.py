"""Training on several devices, as processes on a CPU that talk as those on GPUs do."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import toy_targets
from safetensors.numpy import load_file

from tasks.artifacts.store import Store, open_store
from tasks.config import ModelConfig, TrainConfig
from tasks.errors import DataError
from tasks.running import progress
from tasks.running.process import one_process
from tasks.running.step import Planned
from tasks.train import train
from tasks.train.trainer import split_batch

ROOT = Path(__file__).parents[2]
ON_CPU = str(Path(__file__).with_name("cpu_as_gpu.py"))


class ProgressListener:
    """A listener that hears of progress and of nothing else."""

    def __init__(self, progress: Callable[[str, int, int, str], None]) -> None:
        self.progress = progress

    def started(self, label: str) -> None: ...
    def reused(self, label: str, counts: dict[str, int]) -> None: ...
    def finished(self, label: str, counts: dict[str, int], seconds: float) -> None: ...


def two_processes(**sections: Any) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def two_gpus(**sections: Any) -> list[str]:
    """The command that starts training on two GPUs, and a CPU that is taken for both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        assert train.launcher is not None
        return [*train.launcher(**sections), ON_CPU]


@pytest.mark.parametrize(
    ("batch_size", "micro_batch_size", "n_devices", "expected"),
    [
        (16, 16, 1, (16, 1)), (16, 4, 1, (4, 4)), (16, 16, 4, (4, 1)), (16, 2, 4, (2, 2)), (12, 8, 1, (6, 2)),
        (4, 16, 1, (4, 1)),
    ],
)  # fmt: skip
def test_all_devices_together_take_a_batch_a_step(
    batch_size: int, micro_batch_size: int, n_devices: int, expected: tuple[int, int]
) -> None:
    config = TrainConfig(batch_size=batch_size, micro_batch_size=micro_batch_size)
    assert split_batch(config, n_devices=n_devices) == expected


def test_packed_sequences_are_passed_one_by_one() -> None:
    assert split_batch(TrainConfig(batch_size=16, micro_batch_size=8, packing=True), n_devices=2) == (1, 8)


def test_devices_that_cannot_share_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match="multiple of 3"):
        split_batch(TrainConfig(batch_size=16), n_devices=3)


def plan(store: Store, model: Path, launcher: Callable[..., list[str]], **config: Any) -> Planned:
    small: dict[str, Any] = {
        "epochs": 2, "batch_size": 4, "micro_batch_size": 4, "max_length": 256, "lora_rank": 4, "lora_dropout": 0.0,
        "checkpoint_steps": 2, "gradient_checkpointing": False,
    }  # fmt: skip
    return dataclasses.replace(train, launcher=launcher).plan(
        model=ModelConfig(base=str(model)), config=TrainConfig(**small | config),
        targets=toy_targets.put(store, "abcdefgh"),
    )  # fmt: skip


class Trained(NamedTuple):
    adapter: dict[str, np.ndarray]
    counts: dict[str, int]
    files: set[str]
    resumed: bool


def trained(folder: Path, model: Path, launcher: Callable[..., list[str]], **config: Any) -> Trained:
    store = open_store(str(folder))
    ref = plan(store, model, launcher, **config).execute(store)
    adapter = store.fetch(ref) / "adapter"
    names = {path.name for path in adapter.iterdir()}
    manifest = store.manifest(**ref)
    assert manifest is not None
    weights = load_file(adapter / "adapter_model.safetensors")
    return Trained(weights, manifest.counts, names, manifest.facts["resumed"])


@pytest.fixture(scope="module")
def on_one(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Trained:
    return trained(tmp_path_factory.mktemp("one"), tiny_model, one_process)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "config"),
    [(two_processes, {}), (two_gpus, {"sharding": "fsdp", "gradient_checkpointing": True})],
    ids=["data-parallel", "fsdp with gradient checkpointing"],
)  # fmt: skip
def test_two_processes_train_as_one_does(
    tmp_path: Path, tiny_model: Path, on_one: Trained, launcher: Callable[..., list[str]], config: dict[str, Any]
) -> None:
    assert_same(trained(tmp_path, tiny_model, launcher, **config), on_one)


def assert_same(two: Trained, one: Trained) -> None:
    """Up to the order of sums."""
    assert two.counts == one.counts
    assert two.files == one.files
    assert two.adapter.keys() == one.adapter.keys()
    for name, weights in one.adapter.items():
        np.testing.assert_allclose(two.adapter[name], weights, atol=1e-6)


class Stop(Exception):
    """Of a test, in the middle of a training."""


@pytest.mark.slow
def test_a_sharded_training_that_ended_half_way_goes_on_to_the_same_adapter(
    tmp_path: Path, tiny_model: Path, on_one: Trained
) -> None:
    def stop(label: str, done: int, total: int, detail: str) -> None:
        if done == 3:  # of 4, and the checkpoint is of step 2
            raise Stop

    with progress.listening(ProgressListener(stop)), pytest.raises(Stop):
        trained(tmp_path, tiny_model, two_gpus, sharding="fsdp")
    two = trained(tmp_path, tiny_model, two_gpus, sharding="fsdp")
    assert two.resumed
    assert_same(two, on_one)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a process learns of the flow's death from the kernel")
def test_no_process_outlives_a_killed_flow(tmp_path: Path, tiny_model: Path) -> None:
    flow = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path), str(tiny_model)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )  # fmt: skip
    assert flow.stdout is not None
    assert "1 of" in flow.stdout.readline()  # it trains, and says so next when 1 in 50 of its steps are done
    started = psutil.Process(flow.pid).children(recursive=True)
    assert len(started) >= 3  # the launcher, and two that train
    flow.send_signal(signal.SIGKILL)
    flow.wait()
    _, alive = psutil.wait_procs(started, timeout=30)
    for process in alive:
        process.kill()
    assert alive == []


if __name__ == "__main__":  # a flow that trains for long, and says when it does

    def tell(label: str, done: int, total: int, detail: str) -> None:
        sys.stdout.write(f"{done} of {total}\n")
        sys.stdout.flush()

    store = open_store(sys.argv[1])
    with progress.listening(ProgressListener(tell)):
        plan(store, Path(sys.argv[2]), two_processes, epochs=1_000_000).execute(store)
