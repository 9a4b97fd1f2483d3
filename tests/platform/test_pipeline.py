"""The deployed pipeline on real parts: a Prefect server on PostgreSQL, process workers, S3 over HTTP.

Workers have cache folders of their own, as machines do.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from services import Worker, wait_for
from stage import N_NEW_ROWS, N_ROWS, Stage, form, write_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def machines(stage: Stage) -> Iterator[Worker]:
    """A worker for CPU steps, which this is, and one for GPU steps."""
    with stage.workers("cpu-1") as (cpu,), stage.workers("gpu-1", pool="ssr-gpu"):
        yield cpu


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


def test_a_scheduled_run_pays_for_new_rows_alone_and_finds_its_child_again_when_killed(
    stage: Stage, undisturbed: str, machines: Worker
) -> None:
    write_rows(stage.data, first=N_ROWS, n_rows=N_NEW_ROWS)
    before = stage.bucket("main").paid()
    run = stage.runs.start_what_is_scheduled(form(stage.data, stage.model, execution="deployments"))
    _wait_for_child(stage, run, "train ssr", "RUNNING")
    _kill_flow(run)
    stage.runs.wait(run, "CRASHED")
    # Two parts of the worker report a death, one seconds after the other. A retry in between would end as a crash.
    second = "prefect.flow_runs.worker - Check whether the flow run exceeded"
    wait_for("the second report", lambda: second in machines.log.read_text())
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


def test_a_failed_child_fails_its_parent_with_its_reason_and_a_link(
    stage: Stage, machines: Worker, tmp_path: Path
) -> None:
    nothing = tmp_path / "empty"
    nothing.mkdir()
    (nothing / "broken.jsonl").write_text('{"question": "half a li')
    run = stage.runs.start(run=form(nothing, stage.model, execution="deployments"))
    failed = stage.runs.wait(run, "FAILED")
    (child,) = stage.runs.children(run)
    assert "broken.jsonl" in failed["state"]["message"]
    assert f"/runs/flow-run/{child['id']}" in failed["state"]["message"]


def test_cancelling_a_run_cancels_the_steps_it_has_sent_away(stage: Stage, machines: Worker) -> None:
    run = stage.runs.start(
        run=form(stage.data, stage.model, execution="deployments"), store=stage.bucket("cancelled").uri
    )
    child = _wait_for_child(stage, run, "generate", "RUNNING")
    stage.server.ask(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    stage.runs.wait(run, "CANCELLED")
    stage.runs.wait(child, "CANCELLED")
    wait_for("its processes to end", lambda: not _processes_of(child))


def _wait_for_child(stage: Stage, run: str, name: str, state: str) -> str:
    def there() -> str | None:
        for child in stage.runs.children(run):
            if child["name"] == name and child["state"]["type"] == state:
                return str(child["id"])
        assert stage.runs.state(run) not in {"FAILED", "CRASHED"}, stage.runs.read(run)["state"]["message"]
        return None

    return str(wait_for(f"{name} {state}", there, every=0.3))


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
