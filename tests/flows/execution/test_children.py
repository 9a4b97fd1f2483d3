"""Children of a run on a real server: which one is waited for, which number comes next, and what cancelling reaches."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.states import Completed, Crashed, Failed, Running, Scheduled, State

from flows.execution.children import Children, cancel_children, require_deployed
from flows.execution.prefect_ui import StepProgress
from tasks.artifacts.store import Ref
from tasks.errors import ConfigError, StepError
from tasks.running.step import as_input

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]
PLANNED = as_input(Ref(step="generate", fingerprint="f" * 64))
# When a try of the parent began.
LONG_AGO, NOT_YET = datetime(2026, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC)


@flow(name="generate")
def generate() -> None:
    """Stands for a step that is deployed."""


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as opened:
        yield opened


@pytest.fixture
def deployment(client: SyncPrefectClient) -> UUID:
    return client.create_deployment(client.create_flow(generate), "step")


def child(client: SyncPrefectClient, deployment: UUID, key: str, state: State, parent: UUID | None = None) -> FlowRun:
    made = client.create_flow_run_from_deployment(
        deployment, idempotency_key=key, state=Scheduled(), parent_task_run_id=parent
    )
    client.set_flow_run_state(made.id, state, force=True)
    return made


@pytest.mark.parametrize("state", [Failed(), Crashed(), Completed()], ids=["failed", "crashed", "completed"])
def test_one_that_ended_before_this_try_does_not_count(
    client: SyncPrefectClient, deployment: UUID, state: State
) -> None:
    base = f"parent:generate:{uuid4()}"
    child(client, deployment, f"{base}:1", state)
    assert Children(uuid4(), NOT_YET)._key(client, base) == f"{base}:2"
    child(client, deployment, f"{base}:2", state)
    assert Children(uuid4(), NOT_YET)._key(client, base) == f"{base}:3"


@pytest.mark.parametrize("state", [Running(), Scheduled()], ids=["running", "scheduled"])
def test_one_that_has_not_ended_is_the_one_to_wait_for(
    client: SyncPrefectClient, deployment: UUID, state: State
) -> None:
    base = f"parent:generate:{uuid4()}"
    child(client, deployment, f"{base}:1", Crashed())
    child(client, deployment, f"{base}:2", state)
    assert Children(uuid4(), NOT_YET)._key(client, base) == f"{base}:2"


def test_one_that_failed_in_this_very_try_is_not_started_again(client: SyncPrefectClient, deployment: UUID) -> None:
    base = f"parent:generate:{uuid4()}"
    assert Children(uuid4(), LONG_AGO)._key(client, base) == f"{base}:1"
    child(client, deployment, f"{base}:1", Failed())
    assert Children(uuid4(), LONG_AGO)._key(client, base) == f"{base}:1"


def test_the_parent_is_told_what_the_bar_of_its_child_says(client: SyncPrefectClient, deployment: UUID) -> None:
    parent, told = uuid4(), []
    running = child(client, deployment, f"{parent}:generate:{'f' * 16}:1", Running())
    bar = {"type": "progress", "key": "generate", "flow_run_id": running.id}
    progress = StepProgress(2_500, 10_000, "310 rows/s")
    client.create_artifact(ArtifactCreate(**bar, data=25.0, metadata_=progress.to_metadata()))

    def stop_when_told(progress: StepProgress) -> None:
        told.append(progress)
        client.set_flow_run_state(running.id, Completed(), force=True)

    Children(parent, LONG_AGO).run(PLANNED, {}, on_progress=stop_when_told)
    assert told == [progress]


def test_cancelling_reaches_the_children_that_have_not_ended(client: SyncPrefectClient, deployment: UUID) -> None:
    parent = client.create_flow_run(generate)
    task = client.create_task_run(task=_task(), flow_run_id=parent.id, dynamic_key=str(uuid4()))
    waiting = child(client, deployment, str(uuid4()), Scheduled(scheduled_time=NOT_YET - timedelta(days=1)), task.id)
    running = child(client, deployment, str(uuid4()), Running(), task.id)
    done = child(client, deployment, str(uuid4()), Completed(), task.id)
    other = child(client, deployment, str(uuid4()), Running())
    assert set(cancel_children(parent.id)) == {waiting.id, running.id}
    states = [client.read_flow_run(one.id).state for one in (waiting, running, done, other)]
    assert [state.type.value for state in states if state] == ["CANCELLED", "CANCELLING", "COMPLETED", "RUNNING"]


def test_a_step_that_is_not_deployed_is_named_before_any_is_run(deployment: UUID) -> None:
    require_deployed(["generate", "generate"])
    with pytest.raises(ConfigError, match=r"judge, train not deployed .* ssr deploy"):
        require_deployed(["generate", "judge", "train", "judge"])


def _task() -> object:
    from prefect import task

    return task(lambda: None, name="generate")


# --- a server that is away ---


class Away:
    """A client of a server that fails so often before it says that a run has completed."""

    def __init__(self, *failures: Exception) -> None:
        self._failures = list(failures)

    def read_flow_run(self, run: UUID) -> SimpleNamespace:
        if self._failures:
            raise self._failures.pop(0)
        return SimpleNamespace(state=Completed())


def status(code: int) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://127.0.0.1/api")
    return httpx.HTTPStatusError(f"{code}", request=request, response=httpx.Response(code, request=request))


def outcome(*failures: Exception) -> State:
    of_one: Any = SimpleNamespace(id=uuid4(), name="train ssr")
    client: Any = Away(*failures)
    return Children(uuid4(), NOT_YET)._outcome(client, of_one, print)


def test_a_server_that_is_away_for_a_while_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.execution.children.POLL_SECONDS", 0)
    assert outcome(httpx.ConnectError("refused"), status(502), status(500), httpx.ReadTimeout("slow")).is_completed()


def test_a_step_is_started_though_the_server_is_away_for_a_while(
    client: SyncPrefectClient, deployment: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.execution.children.POLL_SECONDS", 0)
    parent, failures = uuid4(), [status(500), httpx.ConnectError("refused")]

    def away(*arguments: Any, **options: Any) -> FlowRun:
        started = run_deployment(*arguments, **options)  # the answer of the last is lost
        if failures:
            raise failures.pop()
        monkeypatch.setattr(Children, "_outcome", lambda *_: Completed())
        return started

    monkeypatch.setattr("flows.execution.children.run_deployment", away)
    Children(parent, LONG_AGO).run(PLANNED, {}, on_progress=print)
    assert failures == []
    wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[f"{parent}:generate:{'f' * 16}:1"]))
    assert len(client.read_flow_runs(flow_run_filter=wanted)) == 1
    assert not client.read_flow_runs(flow_run_filter=FlowRunFilter(
        idempotency_key=FlowRunFilterIdempotencyKey(any_=[f"{parent}:generate:{'f' * 16}:2"])
    ))  # fmt: skip


def test_a_server_that_stays_away_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.execution.children.POLL_SECONDS", 0)
    monkeypatch.setattr("flows.execution.children.PATIENCE_SECONDS", 0.0)
    with pytest.raises(StepError, match=r"train ssr: the Prefect server could not be reached .* retry the run"):
        outcome(*[status(503)] * 1000)


def test_what_the_server_refuses_is_not_asked_again() -> None:
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        outcome(status(403))
