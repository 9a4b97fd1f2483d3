"""Steps on other machines: each is a run of the step's deployment, a child of this run.

A child has an idempotency key made of its parent, its step, its fingerprint and a number. A retry of the parent waits
for a child of an earlier try that still runs; where that child has ended, the retry uses the next number. So the retry
of a killed parent pays for no step twice, and it does not get the failures of earlier tries back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import Any, TypeVar, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling
from prefect.utilities.urls import url_for

from flows.execution.prefect_ui import StepProgress
from tasks.errors import ConfigError, StepError
from tasks.running.step import Planned

logger = logging.getLogger(__name__)
T = TypeVar("T")

DEPLOYMENT = "step"  # each step's flow is deployed under this name
POLL_SECONDS = 2.0
PATIENCE_SECONDS = 900.0  # how long the server may be unreachable while a child runs


@dataclass(frozen=True)
class Children:
    """The children of one run.

    Attributes:
        parent: The flow run id of the parent.
        attempt_began: When this try of the parent began. Children that ended earlier do not count.
        stopped: Set when the parent ends, so that nobody waits for a child any more.
    """

    parent: UUID
    attempt_began: datetime
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(
        self, planned: Planned, parameters: dict[str, Any], *, on_progress: Callable[[StepProgress], None]
    ) -> None:  # Any: JSON values
        """Run a step by its deployment and wait for it. A child that still runs the step is waited for instead.

        Args:
            parameters: Of the step's flow (`flows.steps`).
            on_progress: Called every few seconds with the child's progress.

        Raises:
            ConfigError: The step is not deployed.
            StepError: The child did not complete, with its reason and where to look; or `stopped` was set.
        """
        step, label = planned.step.name, planned.label
        with get_client(sync_client=True) as client:

            def start() -> FlowRun:
                started = run_deployment(
                    f"{step}/{DEPLOYMENT}", parameters=parameters, flow_run_name=label, timeout=0,
                    idempotency_key=self._key(client, f"{self.parent}:{step}:{planned.ref['fingerprint'][:16]}"),
                )  # fmt: skip
                # Its type says that it may be a coroutine, which it is only where a loop runs.
                return cast(FlowRun, started)

            try:
                child = self._patiently(label, start)  # two starts with one idempotency key are one run
            except ObjectNotFound as error:
                raise ConfigError(_not_deployed([step])) from error
            logger.info("%s: runs as %s", label, page_of(child))
            state = self._outcome(client, child, on_progress)
        if not state.is_completed():
            reason = (state.message or "it gives no reason").strip()
            raise StepError(f"{label}: {state.name} on another worker: {reason}\nIts log: {page_of(child)}")

    def _key(self, client: SyncPrefectClient, base: str) -> str:
        for number in count(1):
            key = f"{base}:{number}"
            found = client.read_flow_runs(
                flow_run_filter=filters.FlowRunFilter(idempotency_key=filters.FlowRunFilterIdempotencyKey(any_=[key]))
            )
            if not found or found[0].end_time is None or found[0].end_time >= self.attempt_began:
                return key
        raise AssertionError("counting does not end")

    def _outcome(self, client: SyncPrefectClient, child: FlowRun, on_progress: Callable[[StepProgress], None]) -> State:
        def final_state() -> State | None:
            state = client.read_flow_run(child.id).state
            if state is not None and state.is_final():
                return state
            if progress := _progress_of(client, child):
                on_progress(progress)
            return None

        while (state := self._patiently(child.name, final_state)) is None:
            self._pause(child.name)
        return state

    def _patiently(self, label: str, call: Callable[[], T]) -> T:
        """Call the server, and try again while it is unreachable: a child runs on without it."""
        began = time.monotonic()
        while True:
            try:
                return call()
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                if not _is_unreachable(error):
                    raise
                if time.monotonic() - began > PATIENCE_SECONDS:
                    raise StepError(
                        f"{label}: the Prefect server could not be reached for {PATIENCE_SECONDS:g} s: {error}. "
                        "Start it and retry the run, which then finds its steps again."
                    ) from error
            self._pause(label)

    def _pause(self, label: str) -> None:
        if self.stopped.wait(POLL_SECONDS):
            raise StepError(f"{label}: the run ended while this step ran on another worker")


def _is_unreachable(error: httpx.TransportError | httpx.HTTPStatusError) -> bool:
    """Whether there is no connection to the server, or its proxy or its database answers with a 5xx."""
    return isinstance(error, httpx.TransportError) or error.response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR


def require_deployed(steps: list[str]) -> None:
    """Check that every step has a deployment, before the first one runs.

    Raises:
        ConfigError: Some step is not deployed.
    """
    with get_client(sync_client=True) as client:
        if missing := [step for step in dict.fromkeys(steps) if not _is_deployed(client, step)]:
            raise ConfigError(_not_deployed(missing))


def _is_deployed(client: SyncPrefectClient, step: str) -> bool:
    try:
        client.read_deployment_by_name(f"{step}/{DEPLOYMENT}")
    except ObjectNotFound:
        return False
    return True


def _not_deployed(steps: list[str]) -> str:
    return (
        f"execution.steps=deployments: {', '.join(steps)} not deployed on the Prefect server in use. "
        "Deploy: ssr deploy (PREFECT_API_URL says which server), or run with --set execution=inline."
    )


def cancel_children(parent: UUID) -> list[UUID]:
    """Cancel the children of a parent that have not ended, which Prefect itself does not do. Returns their ids."""
    cancelled = []
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(
            flow_run_filter=filters.FlowRunFilter(
                parent_flow_run_id=filters.FlowRunFilterParentFlowRunId(any_=[parent])
            )
        )
        for child in found:
            if child.state is not None and not child.state.is_final():
                client.set_flow_run_state(child.id, Cancelling(message="its parent was cancelled"))
                cancelled.append(child.id)
    return cancelled


def page_of(run: FlowRun) -> str:
    """The address of a run's page in the Prefect UI; the run's name and id where the UI's address is unknown."""
    return url_for("flow-run", obj_id=run.id) or f"flow run {run.name} ({run.id})"


def _progress_of(client: SyncPrefectClient, child: FlowRun) -> StepProgress | None:
    """The progress that a child has reported; None where it has reported none, or the server refuses to say."""
    bars_of_child = filters.ArtifactFilter(
        flow_run_id=filters.ArtifactFilterFlowRunId(any_=[child.id]), type=filters.ArtifactFilterType(any_=["progress"])
    )
    try:
        bars = client.read_artifacts(artifact_filter=bars_of_child)
    except httpx.HTTPStatusError as error:
        logger.debug("%s: its progress is not known: %s", child.name, error)  # no reason to fail a run
        return None
    return StepProgress.from_metadata(bars[0].metadata_ or {}) if bars else None
