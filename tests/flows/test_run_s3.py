"""The same run with its store on S3: a real S3 protocol over HTTP, by moto's server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import yaml

pytest_plugins = ["s3"]

ROOT = Path(__file__).parents[2]
SECRET = "a-secret-that-must-not-leak"


@pytest.fixture
def endpoint(moto_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": moto_server,
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("run-s3")
    return moto_server


def ssr(*arguments: str, machine: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as another machine would: with a cache of its own."""
    env = os.environ | {"SSR_CACHE": str(machine / "cache")}
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
def test_a_run_on_s3_is_reused_by_another_machine_and_leaks_no_secret(
    endpoint: str, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "model": {"base": str(tiny_model)},
                "data": {"sources": [{"name": "lab", "reader": "lab"}], "lab_rows": 40},
                "generate": {"max_new_tokens": 4},
                "train": {"epochs": 1, "max_length": 256, "lora_rank": 4},
                "arms": [{"name": "sft", "policy": "gold"}],
                "evaluate": {"benchmarks": ["lab_sums"], "limit": 4, "max_task_rows": 4, "max_new_tokens": 4},
                "report": {"n_bootstrap": 200},
            }
        )
    )
    arguments = ["run", str(recipe), "--store", "s3://run-s3/prefix", "--json"]
    first = ssr(*arguments, machine=tmp_path / "one")
    assert first.returncode == 0, first.stdout + first.stderr
    second = ssr(*arguments, machine=tmp_path / "two")
    assert second.returncode == 0, second.stdout + second.stderr
    assert json.loads(first.stdout)["steps"] == json.loads(second.stdout)["steps"]

    s3 = fsspec.filesystem("s3", skip_instance_cache=True)
    objects = s3.find("run-s3/prefix")
    manifests = [json.loads(s3.cat_file(name)) for name in objects if name.endswith("manifest.json")]
    assert len(manifests) == len(json.loads(first.stdout)["steps"]), "the second machine made nothing anew"
    for name in objects:
        assert SECRET.encode() not in s3.cat_file(name), name
    assert SECRET not in first.stdout + first.stderr
    for path in Path(os.environ["PREFECT_HOME"]).rglob("*.db*"):
        assert SECRET.encode() not in path.read_bytes(), path
