"""Rewrites and likelihoods on a real tiny model: killed, resumed, grown; each row is paid for once."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from toy_steps import planned, run_until

from tasks.artifacts.store import Manifest, open_store

N_ROWS = 40
CASES = [("rewrite", "rewrites", "outputs"), ("likelihood", "likelihoods", "likelihoods")]


def made(store: Path, model: Path, step: str, n_rows: int = N_ROWS) -> tuple[Manifest, Path]:
    opened = open_store(str(store))
    ref = planned(model, n_rows)[step].ref
    manifest = opened.manifest(**ref)
    assert manifest is not None
    return manifest, opened.fetch(ref)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "paid_table", "table"), CASES)
def test_a_killed_step_resumes_without_paying_for_a_row_twice(
    tiny_model: Path, tmp_path: Path, step: str, paid_table: str, table: str
) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert run_until(whole, tiny_model, step, n_rows=N_ROWS) == 0
    assert run_until(torn, tiny_model, step, kill_after=9, n_rows=N_ROWS) == -9
    paid = sum(pq.read_metadata(part).num_rows for part in torn.glob(f"rows/{paid_table}/*/part-*.parquet"))
    assert 0 < paid < N_ROWS
    assert not list(torn.glob(f"steps/{step}/*/manifest.json"))
    assert run_until(torn, tiny_model, step, n_rows=N_ROWS) == 0

    manifest, folder = made(torn, tiny_model, step)
    expected, reference = made(whole, tiny_model, step)
    n_paid_whole = expected.counts["rows_generated"]
    assert (manifest.counts["rows_reused"], manifest.counts["rows_generated"]) == (paid, n_paid_whole - paid)
    name = f"{table}.parquet"
    assert (folder / name).read_bytes() == (reference / name).read_bytes()
    column = "text" if step == "rewrite" else "base_nll"
    assert len(set(pq.read_table(folder / name).column(column).to_pylist())) > 10, "equal rows prove nothing"


@pytest.mark.slow
@pytest.mark.parametrize(("step", "paid_table", "table"), CASES)
def test_a_grown_dataset_pays_for_its_new_rows_only(
    tiny_model: Path, tmp_path: Path, step: str, paid_table: str, table: str
) -> None:
    assert run_until(tmp_path, tiny_model, step, n_rows=20) == 0
    assert run_until(tmp_path, tiny_model, step, n_rows=30) == 0
    before, old = made(tmp_path, tiny_model, step, 20)
    after, new = made(tmp_path, tiny_model, step, 30)
    assert after.counts["rows_reused"] == before.counts["rows_generated"]
    assert after.counts["rows_generated"] > 0
    rows = {(r["example_id"], r["kind"]): r for r in pq.read_table(new / f"{table}.parquet").to_pylist()}
    assert all(rows[r["example_id"], r["kind"]] == r for r in pq.read_table(old / f"{table}.parquet").to_pylist())
