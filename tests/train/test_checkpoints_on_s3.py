"""Training goes on, on another machine, from a checkpoint that a killed one has left on S3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from toy_steps import planned, run_until

from tasks.artifacts.store import open_store
from tasks.train.trainer import COMPLETE

if TYPE_CHECKING:  # pytest loads it itself
    from s3 import S3

pytest_plugins = ["s3"]


@pytest.mark.slow
def test_another_machine_goes_on_from_the_checkpoint_of_a_killed_one(
    tiny_model: Path, tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    assert run_until(whole, tiny_model, "train") == 0
    monkeypatch.setenv("SSR_CACHE", str(tmp_path / "one"))
    assert run_until(s3.uri, tiny_model, "train", kill_after=8) == -9
    kept = [name for name in s3.objects() if name.startswith("work/train/") and name.endswith(".complete")]
    assert [name.rpartition("/")[2] for name in kept] == ["checkpoint-6.complete"]
    listed = {Path(entry["name"]).name for entry in json.loads(s3.objects()[kept[0]])}
    assert {"trainer_state.json", "optimizer.pt", COMPLETE} <= listed
    assert "training_args.bin" not in listed, "a pickle"

    for name in s3.objects():
        if name.startswith("claims/"):  # as when its time is over
            s3.fs.rm_file(f"{s3.uri.removeprefix('s3://')}/{name}")
    monkeypatch.setenv("SSR_CACHE", str(tmp_path / "two"))
    assert run_until(s3.uri, tiny_model, "train") == 0
    store, ref = open_store(s3.uri), planned(tiny_model, 60)["train"].ref
    manifest = store.manifest(**ref)
    assert manifest is not None
    assert manifest.facts["resumed"]
    folder, expected = store.fetch(ref), open_store(str(whole)).fetch(ref)
    for name in ("metrics.parquet", "adapter/adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    assert not any(name.startswith(("work/", "claims/")) for name in s3.objects())
