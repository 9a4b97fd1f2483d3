"""What a run used: one JSON document per run, `runs/<run_id>.json` in the store."""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from tasks.artifacts.store import Ref, Store
from tasks.config import RunConfig
from tasks.errors import ConfigError
from tasks.running.step import Planned


@dataclass(frozen=True)
class StepRecord:
    """One step of a run."""

    label: str
    ref: Ref
    identity: dict[str, Any]  # Any: JSON values


@dataclass(frozen=True)
class RunRecord:
    """The record of a run.

    Attributes:
        started: UTC, ISO 8601.
        recipe: The full recipe, as JSON values.
        status: running, completed or failed. The record of a killed run says running for ever.
        promotion: The decision about the adapter, where the recipe promotes one (`flows.promotion.log.Event.summary`).
    """

    run_id: str
    name: str
    started: str
    recipe: dict[str, Any]  # Any: JSON values
    status: str = "running"
    ended: str | None = None
    problem: str | None = None
    flow_run_id: str = ""
    steps: tuple[StepRecord, ...] = field(default=())
    promotion: dict[str, Any] | None = None  # Any: JSON values

    @classmethod
    def begin(cls, run_id: str, recipe: RunConfig, planned: list[Planned], *, flow_run_id: str) -> RunRecord:
        """The record of a run that starts now. It names all planned steps, so that `ssr gc` keeps their artifacts."""
        steps = tuple(StepRecord(p.label, p.ref, p.identity) for p in planned)
        raw = recipe.model_dump(mode="json")
        return cls(run_id, recipe.name, _now(), raw, flow_run_id=flow_run_id, steps=steps)

    def finished(
        self, status: str, problem: str | None = None, *, promotion: dict[str, Any] | None = None
    ) -> RunRecord:  # Any: JSON values
        """The record after the end of the run."""
        return replace(self, status=status, ended=_now(), problem=problem, promotion=promotion)

    def with_made(self, made: list[Planned]) -> RunRecord:
        """The record with the steps as made: data that changed after the plan gave them other fingerprints."""
        labels = {planned.label for planned in made}
        left = (step for step in self.steps if step.label not in labels)
        return replace(self, steps=(*(StepRecord(p.label, p.ref, p.identity) for p in made), *left))

    def save(self, store: Store) -> None:
        """Write or replace the record in the store."""
        store.write_json(asdict(self), "runs", f"{self.run_id}.json")

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """The record as JSON values."""
        return asdict(self)

    def step(self, label: str) -> StepRecord | None:
        """The step with this label, or the last one with this step name."""
        named = [s for s in self.steps if label in (s.label, s.ref["step"])]
        return named[-1] if named else None


def run_id_of(name: str, began: datetime, flow_run_id: str) -> str:
    """An id that sorts by time. Its end tells runs of the same second apart, and is the same for a retry of the run."""
    # The end of the flow run's id: its beginning is a time, which scheduled runs may share.
    end = flow_run_id.replace("-", "")[-6:] or secrets.token_hex(3)
    return f"{name}-{began.astimezone(UTC):%Y%m%d-%H%M%S}-{end}"


def load_run(store: Store, run_id: str) -> RunRecord:
    """A run by its id, by the beginning of it, or `latest`.

    Raises:
        ConfigError: There is no such run, or several.
    """
    if run_id == "latest":
        if not (records := all_runs(store)):
            raise ConfigError(f"{store.uri}: no run yet. Start one: ssr run demo")
        return records[0]
    names = _run_ids(store)
    matching = [name for name in names if name == run_id] or [n for n in names if n.startswith(run_id)]
    if len(matching) != 1:
        what = "no such run" if not matching else f"{len(matching)} runs begin so"
        raise ConfigError(f"{run_id}: {what} in {store.uri}. List them: ssr runs")
    return _read(store, matching[0])


def all_runs(store: Store) -> list[RunRecord]:
    """Every run, newest first."""
    return sorted((_read(store, name) for name in _run_ids(store)), key=lambda r: r.started)[::-1]


def _run_ids(store: Store) -> list[str]:
    return [name.removesuffix(".json") for name in store.names("runs") if name.endswith(".json")]


def _read(store: Store, run_id: str) -> RunRecord:
    raw = store.read_json("runs", f"{run_id}.json")
    steps = tuple(StepRecord(**step) for step in raw.pop("steps"))
    return RunRecord(**raw, steps=steps)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
