"""The deployed pipeline on real parts: a Prefect server on PostgreSQL, process workers, S3 over HTTP.

Workers have cache folders of their own, as machines do. The tests of this file go on from each other where that saves
a run: each says what it starts from.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import s3fs
from s3 import ENVIRONMENT, S3Proxy
from services import Server, Worker, wait_for, worker
from stage import Bucket, Runs, form, write_rows

from flows.deploy import Target, deploy

pytest_plugins = ["s3"]
pytestmark = pytest.mark.slow

N_ROWS, N_NEW_ROWS = 200, 10
DEAD_AFTER_SECONDS = 90  # three heartbeats of 30 s, the shortest there is
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "s3-secret-that-must-not-leak",
    "HF_TOKEN": "hub-secret-that-must-not-leak",
    "SSR_TEST_API_KEY": "engine-secret-that-must-not-leak",
}


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

    def env(self, machine: str, endpoint: str = "") -> dict[str, str]:
        """The environment of a worker on a machine of this name."""
        return {
            **ENVIRONMENT, **SECRETS, "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "SSR_CACHE": str(self.folder / machine), "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    @contextmanager
    def workers(self, *machines: str, pool: str = "ssr-cpu", endpoint: str = "") -> Iterator[list[Worker]]:
        """A worker on each machine."""
        with ExitStack() as stack:
            yield [
                stack.enter_context(worker(self.server, pool, name=name, env=self.env(name, endpoint), limit=3))
                for name in machines
            ]


@pytest.fixture(scope="module")
def stage(
    platform: Server, moto_server: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    folder = tmp_path_factory.mktemp("stage")
    fs = s3fs.S3FileSystem(
        endpoint_url=moto_server, key="tester", secret="any", use_listings_cache=False, skip_instance_cache=True
    )
    fs.mkdir("platform")
    write_rows(folder / "data", first=0, n_rows=N_ROWS)
    target = Target(store="s3://platform/main", recipe="demo", dead_after_seconds=DEAD_AFTER_SECONDS, run_limit=4)
    with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_API_URL: platform.api_url}):
        for name, value in {**ENVIRONMENT, **SECRETS, "AWS_ENDPOINT_URL": moto_server}.items():
            patch.setenv(name, value)
        deploy(target)
        yield Stage(platform, Runs(platform), moto_server, fs, folder / "data", tiny_model, folder)
    fs.rm("platform", recursive=True)


@pytest.fixture(scope="module")
def undisturbed(stage: Stage) -> str:
    """A run in which every step ran on the pool it is deployed to: CPU steps on one machine, GPU steps on another."""
    with stage.workers("cpu-1"), stage.workers("gpu-1", pool="ssr-gpu"):
        run = stage.runs.start(run=form(stage.data, stage.model, execution="deployments"))
        stage.runs.wait(run)
    return run


def test_a_deployed_run_goes_through_with_each_step_on_its_own_pool(stage: Stage, undisturbed: str) -> None:
    children = stage.runs.children(undisturbed)
    assert {child["state"]["type"] for child in children} == {"COMPLETED"}
    pools = {child["name"]: child["work_pool_name"] for child in children}
    assert pools == {
        "ingest": "ssr-cpu", "select ssr": "ssr-cpu", "report": "ssr-cpu", "evaluate base": "ssr-gpu",
        "generate": "ssr-gpu", "judge": "ssr-gpu", "train ssr": "ssr-gpu", "evaluate ssr": "ssr-gpu",
    }  # fmt: skip
    store = stage.bucket("main")
    assert {name.split("/")[1] for name in store.names("steps")} == {
        "ingest", "generate", "judge", "select", "train", "evaluate", "report",
    }  # fmt: skip
    assert store.names("work") == []
    assert store.names("claims") == []
    assert len(store.names("prefect")) == len(children)  # Prefect's own records of the parent's tasks


def test_a_run_shows_its_report_counts_and_links_in_the_ui(stage: Stage, undisturbed: str) -> None:
    keys = {artifact["key"] for artifact in stage.runs.artifacts(undisturbed)}
    assert {"report-demo", "steps-demo", "links-demo"} <= keys
    generating = next(child for child in stage.runs.children(undisturbed) if child["name"] == "generate")
    shown = stage.runs.artifacts(generating["id"])
    assert [(one["type"], float(one["data"])) for one in shown] == [("progress", 100.0)]


def test_more_data_costs_its_new_rows_and_a_killed_parent_finds_its_child_again(stage: Stage, undisturbed: str) -> None:
    write_rows(stage.data, first=N_ROWS, n_rows=N_NEW_ROWS)
    before = stage.bucket("main").paid()
    with stage.workers("cpu-1"), stage.workers("gpu-1", pool="ssr-gpu"):
        run = stage.runs.start(run=form(stage.data, stage.model, execution="deployments"))
        _wait_for_child(stage, run, "train ssr", "RUNNING")
        _kill_flow(run)
        stage.runs.wait(run, "CRASHED", seconds=60)
        stage.runs.retry(run)
        stage.runs.wait(run)
    names = [child["name"] for child in stage.runs.children(run)]
    assert names.count("train ssr") == 1
    assert len(names) == len(set(names))
    counts = stage.bucket("main").manifest("generate")["counts"]
    new = stage.bucket("main").paid() - before
    assert 0 < counts["rows_generated"] <= N_NEW_ROWS
    assert counts["rows_reused"] + counts["rows_generated"] == counts["rows_out"]
    assert set(new.values()) == {1}


def test_a_failed_child_fails_its_parent_with_its_reason_and_a_link(stage: Stage, tmp_path: Path) -> None:
    nothing = tmp_path / "empty"
    nothing.mkdir()
    (nothing / "broken.jsonl").write_text('{"question": "half a li')
    with stage.workers("cpu-1"):
        run = stage.runs.start(run=form(nothing, stage.model, execution="deployments"))
        failed = stage.runs.wait(run, "FAILED", seconds=120)
    child = next(iter(stage.runs.children(run)), None)
    if child is None:  # found before any step was sent away
        assert "broken.jsonl" in failed["state"]["message"]
    else:
        assert f"/runs/flow-run/{child['id']}" in failed["state"]["message"]


def test_cancelling_a_run_cancels_the_steps_it_has_sent_away(stage: Stage, undisturbed: str) -> None:
    with stage.workers("cpu-1"), stage.workers("gpu-1", pool="ssr-gpu"):
        run = stage.runs.start(
            run=form(stage.data, stage.model, execution="deployments"), store=stage.bucket("cancelled").uri
        )
        child = _wait_for_child(stage, run, "generate", "RUNNING")
        stage.server.ask(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
        stage.runs.wait(run, "CANCELLED", seconds=60)
        stage.runs.wait(child, "CANCELLED", seconds=60)
        wait_for("its processes to end", lambda: not _processes_of(child), seconds=30)


def test_a_run_whose_worker_dies_while_generating_or_training_crashes_and_goes_on_when_retried(
    stage: Stage, undisturbed: str
) -> None:
    stores = [stage.bucket("killed-generating"), stage.bucket("killed-training")]
    killed = []
    for store, (under, ending) in zip(stores, [("rows/outputs", ".parquet"), ("work/train", "complete")], strict=True):
        with stage.workers("doomed") as (doomed,):
            run = stage.runs.start(run=form(stage.data, stage.model, execution="inline"), store=store.uri)
            store.wait_for_object(under, ending)
            doomed.kill()
        killed.append(run)
        assert stage.runs.state(run) == "RUNNING"  # nobody has told the server
    paid = [store.paid() for store in stores]
    for run in killed:
        stage.runs.wait(run, "CRASHED", seconds=3 * DEAD_AFTER_SECONDS)
    with stage.workers("cpu-2"):  # another machine
        for run in killed:
            stage.runs.retry(run)
            stage.runs.wait(run)
    reference = stage.bucket("main").tables()
    for store in stores:
        tables = store.tables()
        assert {name: reference[name] for name in tables} == tables
        assert set(store.paid().values()) == {1}
    assert paid[0]  # something was paid for before the kill, or there was nothing to lose
    assert stores[0].manifest("generate")["counts"]["rows_reused"] >= len(paid[0])
    assert stores[1].manifest("train")["facts"]["resumed"]


def test_two_workers_with_the_same_run_at_once_pay_for_it_once(stage: Stage, undisturbed: str) -> None:
    store = stage.bucket("twice")
    with stage.workers("cpu-1", "cpu-2"):
        runs = [
            stage.runs.start(run=form(stage.data, stage.model, execution="inline"), store=store.uri) for _ in range(2)
        ]
        for run in runs:
            stage.runs.wait(run)
    reference = stage.bucket("main").tables()
    tables = store.tables()
    assert {name: reference[name] for name in tables} == tables
    assert set(store.paid().values()) == {1}


def test_a_run_gets_through_faults_and_an_absence_of_s3(stage: Stage, undisturbed: str) -> None:
    store = stage.bucket("faulty")
    proxy = S3Proxy(stage.endpoint)
    try:
        with stage.workers("cpu-3", endpoint=proxy.url):
            proxy.fail(0.05)
            proxy.slow(0.02)
            run = stage.runs.start(run=form(stage.data, stage.model, execution="inline"), store=store.uri)
            store.wait_for_object("rows/outputs", ".parquet")
            proxy.away(20)
            stage.runs.wait(run)
    finally:
        proxy.close()
    reference = stage.bucket("main").tables()
    tables = store.tables()
    assert {name: reference[name] for name in tables} == tables
    assert {call.outcome for call in proxy.calls} >= {"passed", "500", "503", "reset"}


def test_no_secret_of_the_environment_is_anywhere(stage: Stage, undisturbed: str) -> None:
    """Runs last: searches all that the tests before it left."""
    found = {name: stage.fs.cat_file(name) for name in stage.fs.find("platform")}
    found |= {str(path): path.read_bytes() for path in stage.folder.rglob("*") if path.is_file()}
    found["server log"] = stage.server.log.read_bytes()
    for what in ("flow_runs", "task_runs", "logs", "artifacts", "deployments", "work_pools", "flows"):
        for page in range(20):
            entries = stage.server.ask(f"/{what}/filter", {"limit": 200, "offset": 200 * page})
            found[f"{what} {page}"] = repr(entries).encode()
            if len(entries) < 200:
                break
    assert len(found["logs 0"]) > 1000
    assert any(b"rows_generated" in content for content in found.values())
    leaks = [
        (name, variable) for name, content in found.items() for variable, s in SECRETS.items() if s.encode() in content
    ]
    assert leaks == []


def _wait_for_child(stage: Stage, run: str, name: str, state: str) -> str:
    def there() -> str | None:
        for child in stage.runs.children(run):
            if child["name"] == name and child["state"]["type"] == state:
                return str(child["id"])
        assert stage.runs.state(run) not in {"FAILED", "CRASHED"}, stage.runs.read(run)["state"]["message"]
        return None

    return str(wait_for(f"{name} {state}", there, seconds=240, every=0.3))


def _kill_flow(run: str) -> None:
    """kill -9 of the process that runs a flow; its worker lives."""
    for process in _processes_of(run):
        process.send_signal(signal.SIGKILL)


def _processes_of(run: str) -> list[psutil.Process]:
    """The processes that run a flow run, found by their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            is_it = process.environ().get("PREFECT__FLOW_RUN_ID") == run and process.pid != os.getpid()
        except psutil.Error:
            continue
        if is_it and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found
