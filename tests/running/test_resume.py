"""A step that is killed half-way goes on, pays for no row twice, and ends with the bytes of an undisturbed one."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.artifacts.store import Manifest, open_store

sys.path.insert(0, str(Path(__file__).parent))
from toy_steps import planned, run_until


def made(store: Path, model: Path, step: str, n_rows: int = 60) -> tuple[Manifest, Path]:
    opened = open_store(str(store))
    ref = planned(model, n_rows)[step].ref
    manifest = opened.manifest(**ref)
    assert manifest is not None
    return manifest, opened.fetch(ref)


@pytest.mark.slow
def test_a_killed_generation_resumes_without_regenerating_a_row(tiny_model: Path, tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert run_until(whole, tiny_model, "generate") == 0
    assert run_until(torn, tiny_model, "generate", kill_after=3) == -9
    paid = sum(pq.read_metadata(part).num_rows for part in torn.glob("rows/outputs/*/part-*.parquet"))
    assert 0 < paid < 60
    assert not list(torn.glob("steps/generate/*/manifest.json"))
    assert run_until(torn, tiny_model, "generate") == 0

    manifest, folder = made(torn, tiny_model, "generate")
    assert manifest.counts["rows_reused"] == paid
    assert manifest.counts["rows_generated"] == 60 - paid
    expected = made(whole, tiny_model, "generate")[1] / "outputs.parquet"
    assert (folder / "outputs.parquet").read_bytes() == expected.read_bytes()
    assert len(set(pq.read_table(expected).column("text").to_pylist())) > 20, "equal answers prove nothing"


@pytest.mark.slow
def test_a_grown_dataset_pays_for_its_new_rows_only(tiny_model: Path, tmp_path: Path) -> None:
    assert run_until(tmp_path, tiny_model, "generate", n_rows=60) == 0
    before = made(tmp_path, tiny_model, "generate", 60)[1] / "outputs.parquet"
    assert run_until(tmp_path, tiny_model, "judge", n_rows=110) == 0
    manifest, folder = made(tmp_path, tiny_model, "generate", 110)
    assert (manifest.counts["rows_generated"], manifest.counts["rows_reused"]) == (50, 60)
    old = {row["example_id"]: row["text"] for row in pq.read_table(before).to_pylist()}
    new = {row["example_id"]: row["text"] for row in pq.read_table(folder / "outputs.parquet").to_pylist()}
    assert {example_id: new[example_id] for example_id in old} == old


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_checkpoint_to_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert run_until(whole, tiny_model, "train") == 0
    assert run_until(torn, tiny_model, "train", kill_after=8) == -9
    assert list(torn.glob("work/train/*/checkpoints/*/complete"))
    assert run_until(torn, tiny_model, "train") == 0

    manifest, folder = made(torn, tiny_model, "train")
    assert manifest.facts["resumed"]
    expected, reference = made(whole, tiny_model, "train")
    assert not expected.facts["resumed"]
    for name in ("metrics.parquet", "adapter/adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name
    assert not list(torn.glob("work/train/*")), "checkpoints of a finished step are removed"
