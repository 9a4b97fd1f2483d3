"""Steps on other machines: each is a run of its own deployment, which this run waits for, finds again, and cancels.

A child is known by an idempotency key made of its parent, its step, its fingerprint and a number. While a child of an
earlier try of the parent still runs, the parent waits for that one; after one that ended, a new try takes the next
number. So a parent that was killed pays for nothing twice, and one that is tried again does not get old failures back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import Any, TypeVar, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterIdempotencyKey,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling
from prefect.utilities.urls import url_for

from flows.execution.prefect_ui import HowFar
from tasks.errors import ConfigError, StepError

logger = logging.getLogger(__name__)
T = TypeVar("T")

DEPLOYMENT = "step"  # each step's flow is deployed under this name
POLL_SECONDS = 2.0
PATIENCE_SECONDS = 900.0  # that the server may be away while a child runs


@dataclass(frozen=True)
class Children:
    """The children of one run.

    Attributes:
        attempt_began: When this try of the parent began: what ended before then does not count.
    """

    parent: UUID
    attempt_began: datetime
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(
        self, step: str, label: str, fingerprint: str, parameters: dict[str, Any], *,
        told: Callable[[HowFar], None],
    ) -> None:  # Any: JSON values  # fmt: skip
        """Run a step on the pool it is deployed to, and wait for it; or wait for the child that is at it already.

        Args:
            told: Called every few seconds with what the child's bar says.

        Raises:
            ConfigError: The step is not deployed.
            StepError: The child did not complete, with its reason and where to look; or `stopped` was set.
        """
        with get_client(sync_client=True) as client:

            def start() -> FlowRun:
                started = run_deployment(
                    f"{step}/{DEPLOYMENT}",
                    parameters=parameters,
                    flow_run_name=label,
                    idempotency_key=self._key(client, f"{self.parent}:{step}:{fingerprint[:16]}"),
                    timeout=0,
                )
                # Its type says that it may be a coroutine, which it is only where a loop runs.
                return cast(FlowRun, started)

            try:
                child = self._patiently(label, start)  # started twice, it is one run: the key says so
            except ObjectNotFound as error:
                raise ConfigError(_not_deployed([step])) from error
            logger.info("%s: runs as %s", label, where(child))
            state = self._outcome(client, child, told)
        if not state.is_completed():
            said = (state.message or "it says nothing").strip()
            raise StepError(f"{label}: {state.name} on another worker: {said}\nIts log: {where(child)}")

    def _key(self, client: SyncPrefectClient, base: str) -> str:
        for number in count(1):
            key = f"{base}:{number}"
            found = next(_with_key(client, key), None)
            if found is None or found.end_time is None or found.end_time >= self.attempt_began:
                return key
        raise AssertionError("counting does not end")

    def _outcome(self, client: SyncPrefectClient, child: FlowRun, told: Callable[[HowFar], None]) -> State:
        def look() -> State | None:
            state = client.read_flow_run(child.id).state
            if state is not None and state.is_final():
                return state
            if how_far := _how_far(client, child):
                told(how_far)
            return None

        while (state := self._patiently(child.name, look)) is None:
            self._pause(child.name)
        return state

    def _patiently(self, label: str, call: Callable[[], T]) -> T:
        """What the server answers, though it may be away for a while: a child goes on without it; so does the wait."""
        began = time.monotonic()
        while True:
            try:
                return call()
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                if not _is_away(error):
                    raise
                if time.monotonic() - began > PATIENCE_SECONDS:
                    raise StepError(
                        f"{label}: the Prefect server is away since {PATIENCE_SECONDS:g} s: {error}. Start it, "
                        "and retry the run: it finds its steps again."
                    ) from error
            self._pause(label)

    def _pause(self, label: str) -> None:
        if self.stopped.wait(POLL_SECONDS):
            raise StepError(f"{label}: no longer waited for, because the run ends")


def _is_away(error: httpx.TransportError | httpx.HTTPStatusError) -> bool:
    """Whether the server cannot be reached, or what stands before it, or the database behind it, says so for it."""
    return isinstance(error, httpx.TransportError) or error.response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR


def require_deployed(steps: list[str]) -> None:
    """Check that every step can be run elsewhere, before the first one is.

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
    """Cancel what still runs for a parent: Prefect itself leaves children alone. Their ids."""
    cancelled = []
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent]))
        )
        for child in found:
            if child.state is not None and not child.state.is_final():
                client.set_flow_run_state(child.id, Cancelling(message="its parent was cancelled"))
                cancelled.append(child.id)
    return cancelled


def where(run: FlowRun) -> str:
    """The page of a run in the Prefect UI; its name and id where the UI's address is not known."""
    return url_for("flow-run", obj_id=run.id) or f"flow run {run.name} ({run.id})"


def _how_far(client: SyncPrefectClient, child: FlowRun) -> HowFar | None:
    """What the bar of a child says; None before it has one, or where the server does not tell."""
    wanted = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[child.id]), type=ArtifactFilterType(any_=["progress"])
    )
    try:
        bars = client.read_artifacts(artifact_filter=wanted)
    except httpx.HTTPStatusError as error:
        logger.debug("%s: its progress is not known: %s", child.name, error)  # no reason to fail a run
        return None
    return HowFar.from_words(bars[0].description or "") if bars else None


def _with_key(client: SyncPrefectClient, key: str) -> Iterator[FlowRun]:
    yield from client.read_flow_runs(
        flow_run_filter=FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key]))
    )
