"""What the tests of the platform share: data of their own, a small run of it, and words for runs on the server."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import s3fs
from services import Server, wait_for

PARENT = "rehearsal-pipeline/nightly"
Json = dict[str, Any]  # Any: JSON values
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def write_rows(folder: Path, *, first: int, n_rows: int) -> None:
    """A file of small questions with their answers, in the lab's words."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"question": f"What is {i} plus {i % 7}?", "answer": f"The answer is {i + i % 7}."}
        for i in range(first, first + n_rows)
    ]
    (folder / f"{first:06}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def form(data: Path, model: Path, **more: Any) -> Json:
    """A form filled in for a run of a minute: one arm, few items, a model of random weights.

    Its answers are long and its batches small, so that a test can come in between.
    """
    overrides = {
        "data": {"sources": [{"name": "own", "path": f"{data}/*.jsonl", "task": "open"}], "test_share": 0.1},
        "model.base": str(model),
        "engine": {"kind": "transformers", "batch_tokens": 256},
        "generate.max_new_tokens": 16,
        "judge.min_token_recall": 0.1,
        "arms": [{"name": "ssr", "policy": "ssr"}],
        "train": {"epochs": 1, "batch_size": 4, "max_length": 256, "lora_rank": 4, "checkpoint_steps": 2},
        "evaluate": {"benchmarks": ["lab_sums"], "limit": 4, "max_task_rows": 4, "max_new_tokens": 4},
        "report.n_bootstrap": 200,
    }
    lines = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    return {"recipe": "demo", "overrides": lines, **more}


@dataclass(frozen=True)
class Runs:
    """The parent's deployment on a server, and its runs."""

    server: Server

    @property
    def deployment(self) -> Json:
        found: Json = self.server.ask(f"/deployments/name/{PARENT}")
        return found

    def set_defaults(self, **parameters: Any) -> None:
        self.server.ask(f"/deployments/{self.deployment['id']}", {"parameters": parameters}, "PATCH")

    def start(self, **parameters: Any) -> str:
        made = self.server.ask(f"/deployments/{self.deployment['id']}/create_flow_run", {"parameters": parameters})
        return str(made["id"])

    def read(self, run: str) -> Json:
        found: Json = self.server.ask(f"/flow_runs/{run}")
        return found

    def state(self, run: str) -> str:
        return str(self.read(run)["state"]["type"])

    def wait(self, run: str, *states: str, seconds: float = 300) -> Json:
        """Until the run is in one of these states, or has ended otherwise: then the error says how."""
        wanted = set(states) or {"COMPLETED"}

        def there() -> bool:
            return self.state(run) in wanted | ENDED

        wait_for(f"run {run} {wanted}", there, seconds=seconds, every=0.5)
        found = self.read(run)
        assert found["state"]["type"] in wanted, f"{found['state']['name']}: {found['state']['message']}"
        return found

    def retry(self, run: str) -> None:
        """As the button in the UI does."""
        state = {"type": "SCHEDULED", "name": "AwaitingRetry"}
        self.server.ask(f"/flow_runs/{run}/set_state", {"state": state, "force": False})

    def children(self, run: str) -> list[Json]:
        found: list[Json] = self.server.ask(
            "/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}, "limit": 200}
        )
        return found

    def tasks(self, run: str) -> dict[str, str]:
        """The last state of each task of a run, by name."""
        found = self.server.ask("/task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [run]}}, "limit": 200})
        return {task["name"]: task["state_name"] for task in sorted(found, key=lambda task: task["created"])}

    def artifacts(self, run: str) -> list[Json]:
        found: list[Json] = self.server.ask(
            "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}, "limit": 200}
        )
        return found


@dataclass(frozen=True)
class Bucket:
    """A store in a bucket, looked at past everything that a test puts in between."""

    fs: s3fs.S3FileSystem
    uri: str

    @property
    def root(self) -> str:
        return self.uri.removeprefix("s3://")

    def names(self, under: str) -> list[str]:
        self.fs.invalidate_cache()
        return [name.removeprefix(f"{self.root}/") for name in self.fs.find(f"{self.root}/{under}")]

    def manifests(self) -> dict[str, Json]:
        """Every manifest, by step and fingerprint."""
        found = [name for name in self.names("steps") if name.endswith("manifest.json")]
        return {name: json.loads(self.fs.cat_file(f"{self.root}/{name}")) for name in found}

    def manifest(self, step: str) -> Json:
        """The newest manifest of a step."""
        found = [one for name, one in self.manifests().items() if name.startswith(f"steps/{step}/")]
        return max(found, key=lambda one: float(one["facts"]["started"]))

    def tables(self) -> dict[str, str]:
        """Digest of every Parquet file of every artifact; what no clock or host is in."""
        return {
            f"{name.rpartition('/')[0]}/{file['name']}": file["sha256"]
            for name, one in self.manifests().items()
            for file in one["files"]
            if file["name"].endswith(".parquet")
        }

    def paid(self) -> Counter[str]:
        """How often each row of the row store was paid for."""
        import pyarrow.parquet as pq

        keys: Counter[str] = Counter()
        for name in self.names("rows"):
            with self.fs.open(f"{self.root}/{name}") as file:
                keys.update(pq.read_table(file, columns=["row_key"]).column("row_key").to_pylist())
        return keys

    def wait_for_object(self, under: str, ending: str, *, seconds: float = 120) -> None:
        def there() -> bool:
            return any(name.endswith(ending) for name in self.names(under))

        wait_for(f"{under}/...{ending} in {self.uri}", there, seconds=seconds, every=0.2)


def seconds_since(began: float) -> str:
    return f"{time.monotonic() - began:.0f} s"
