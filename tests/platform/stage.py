"""What the tests of the platform share: data of their own, a small run of it, workers, words for runs and stores."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import s3fs
from s3 import ENVIRONMENT
from services import Server, Worker, wait_for, worker

PARENT = "rehearsal-pipeline/nightly"
Json = dict[str, Any]  # Any: JSON values
N_ROWS, N_NEW_ROWS = 200, 10
DEAD_AFTER_SECONDS = 90  # three heartbeats of 30 s, the shortest there is
SECRETS = {"AWS_SECRET_ACCESS_KEY": "s3-secret-that-must-not-leak", "HF_TOKEN": "hub-secret-that-must-not-leak"}
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def write_rows(folder: Path, *, first: int, n_rows: int) -> None:
    """A file of small questions with their answers, in the lab's words."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"question": f"What is {i} plus {i % 7}?", "answer": f"The answer is {i + i % 7}."}
        for i in range(first, first + n_rows)
    ]
    (folder / f"{first:06}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def form(data: Path, model: Path, *, promotes: bool = False, **more: Any) -> Json:
    """A form filled in for a run of a minute: one arm, few items, a model of random weights.

    Its answers are long and its batches small, so that a test can come in between.

    Args:
        promotes: The adapter is promoted: a model that is right nowhere loses nothing, with wide margins.
    """
    overrides = {
        "data": {"sources": [{"name": "own", "path": f"{data}/*.jsonl", "task": "open"}], "test_share": 0.1},
        "model.base": str(model),
        "engine": {"kind": "transformers", "batch_tokens": 64},
        "generate.max_new_tokens": 16,
        "judge.min_token_recall": 0.1,
        "arms": [{"name": "ssr", "policy": "ssr"}],
        "train.batch_size": 8,
        "train.max_length": 256,
        "train.lora_rank": 4,
        "train.checkpoint_steps": 5,
        "evaluate": {"benchmarks": ["lab_sums"], "limit": 4, "max_task_rows": 4, "max_new_tokens": 4},
        "report.n_bootstrap": 200,
    }
    if promotes:
        overrides["promotion"] = {"arm": "ssr", "benchmark_margin": 0.9, "task_margin": 0.9}
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

    def start(self, *, queue: str = "", **parameters: Any) -> str:
        """A run now; with a queue of its own, which is made if need be, only a worker of that queue takes it."""
        body = {"parameters": parameters, **({"work_queue_name": queue} if queue else {})}
        made = self.server.ask(f"/deployments/{self.deployment['id']}/create_flow_run", body)
        return str(made["id"])

    def all(self) -> set[str]:
        """Every run of the parent that no schedule made."""
        one = {"deployments": {"id": {"any_": [self.deployment["id"]]}}, "limit": 200}
        return {run["id"] for run in self.server.ask("/flow_runs/filter", one) if not run["auto_scheduled"]}

    def wait_for_another(self, known: set[str]) -> str:
        """The run that somebody has started since."""
        return str(next(iter(wait_for("another run", lambda: self.all() - known))))

    def start_what_is_scheduled(self, form: Json) -> str:
        """Bring the next run of the nightly schedule forward to now; it runs with this form. On a server once."""
        self.set_defaults(**self.deployment["parameters"] | {"run": form})
        ours = {
            "deployments": {"id": {"any_": [self.deployment["id"]]}},
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        }

        def next_run() -> str | None:
            found = self.server.ask("/flow_runs/filter", {**ours, "sort": "EXPECTED_START_TIME_ASC"})
            made = [run for run in found if run["auto_scheduled"] and run["parameters"]["run"] == form]
            return made[0]["id"] if made else None

        run = str(wait_for("a scheduled run", next_run))
        now = {"scheduled_time": datetime.now(UTC).isoformat()}
        state = {"type": "SCHEDULED", "name": "Scheduled", "state_details": now}
        self.server.ask(f"/flow_runs/{run}/set_state", {"state": state, "force": True})
        return run

    def read(self, run: str) -> Json:
        found: Json = self.server.ask(f"/flow_runs/{run}")
        return found

    def state(self, run: str) -> str:
        return str(self.read(run)["state"]["type"])

    def wait(self, run: str, *states: str) -> Json:
        """Until the run is in one of these states, or has ended otherwise: then the error says how."""
        wanted = set(states) or {"COMPLETED"}

        def there() -> bool:
            return self.state(run) in wanted | ENDED

        wait_for(f"run {run} {wanted}", there, every=0.5)
        found = self.read(run)
        assert found["state"]["type"] in wanted, f"{found['state']['name']}: {found['state']['message']}"
        return found

    def retry(self, run: str) -> None:
        """As the button in the UI does."""
        state = {"type": "SCHEDULED", "name": "AwaitingRetry"}
        self.server.ask(f"/flow_runs/{run}/set_state", {"state": state, "force": False})
        self.wait(run, "SCHEDULED", "PENDING", "RUNNING")

    def children(self, run: str) -> list[Json]:
        found: list[Json] = self.server.ask(
            "/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}, "limit": 200}
        )
        return found

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

    def wait_for_object(self, under: str, ending: str) -> None:
        def there() -> bool:
            return any(name.endswith(ending) for name in self.names(under))

        wait_for(f"{under}/...{ending} in {self.uri}", there, every=0.2)


@dataclass(frozen=True)
class Stage:
    """Everything that runs.

    Attributes:
        data: A folder of JSONL files that grows.
    """

    server: Server
    runs: Runs
    endpoint: str
    fs: s3fs.S3FileSystem
    data: Path
    model: Path
    folder: Path

    def bucket(self, name: str) -> Bucket:
        return Bucket(self.fs, f"s3://platform/{name}")

    def access(self, endpoint: str = "") -> dict[str, str]:
        """The variables that reach the store, and the other secrets."""
        return {**ENVIRONMENT, **SECRETS, "AWS_ENDPOINT_URL": endpoint or self.endpoint}

    def env(self, machine: str) -> dict[str, str]:
        """The environment of a worker on a machine of this name, without access to the store."""
        return {"SSR_CACHE": str(self.folder / machine), "OMP_NUM_THREADS": "1", "AWS_EC2_METADATA_DISABLED": "true"}

    @contextmanager
    def workers(
        self, *machines: str, pool: str = "ssr-cpu", endpoint: str = "", queue: str = "", access: bool = True
    ) -> Iterator[list[Worker]]:
        """A worker on each machine; their logs stay in the folder. Without access, a run needs a block."""
        shared = self.access(endpoint) if access else {}
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        n_before = len(list(logs.iterdir()))
        with ExitStack() as stack:
            yield [
                # Without a limit: a worker that has one dies when a run comes back right after it was killed.
                stack.enter_context(
                    worker(
                        self.server, pool, name=name, env={**shared, **self.env(name)}, queue=queue,
                        log=logs / f"{n_before + i}-{name}.log",
                    )
                )
                for i, name in enumerate(machines)
            ]  # fmt: skip
