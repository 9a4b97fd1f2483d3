"""Training on several devices, as processes on a CPU that talk as those on GPUs do."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import toy
import toy_targets
from safetensors.numpy import load_file

from tasks import progress
from tasks.config import ModelConfig, TrainConfig
from tasks.errors import DataError
from tasks.step import Planned
from tasks.store import Store, open_store
from tasks.train import train
from tasks.train.trainer import split_batch

ROOT = Path(__file__).parents[2]
TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


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


def test_devices_that_cannot_share_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match="multiple of 3"):
        split_batch(TrainConfig(batch_size=16), n_devices=3)


def plan(store: Store, model: Path, launcher: list[str], **config: Any) -> Planned:
    small: dict[str, Any] = {
        "epochs": 2, "batch_size": 4, "micro_batch_size": 4, "max_length": 256, "lora_rank": 4, "lora_dropout": 0.0,
        "checkpoint_steps": 2,
    }  # fmt: skip
    return dataclasses.replace(train, launcher=lambda: launcher).plan(
        model=ModelConfig(base=str(model)), config=TrainConfig(**small | config),
        targets=toy_targets.put(store, "abcdefgh"),
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path, tiny_model: Path) -> None:
    adapters, counts = [], []
    for name, launcher in (("one", [sys.executable]), ("two", TWO_PROCESSES)):
        store = open_store(str(tmp_path / name))
        ref = plan(store, tiny_model, launcher).execute(store)
        adapters.append(load_file(store.fetch(ref) / "adapter" / "adapter_model.safetensors"))
        counts.append(toy.counts_of(store, ref))
    one, two = adapters
    assert counts[0] == counts[1]
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], atol=1e-6)


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

    class Tell:
        def started(self, label: str) -> None: ...
        def reused(self, label: str, counts: dict[str, int]) -> None: ...
        def finished(self, label: str, counts: dict[str, int], seconds: float) -> None: ...
        def progress(self, label: str, done: int, total: int, detail: str) -> None:
            sys.stdout.write(f"{done} of {total}\n")
            sys.stdout.flush()

    store = open_store(sys.argv[1])
    with progress.listening(Tell()):
        plan(store, Path(sys.argv[2]), TWO_PROCESSES, epochs=1_000_000).execute(store)
