"""The flow of one step, as a worker runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.utilities.callables import parameter_schema

from flows import steps
from flows.rehearsal import STEPS
from tasks.artifacts.store import open_store
from tasks.config import DataConfig
from tasks.ingest import ingest


@pytest.mark.slow
def test_the_flow_of_a_step_makes_the_artifact_that_its_parent_has_planned(
    prefect_server: None, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"question": f"{i}?", "answer": "yes"}) + "\n" for i in range(10)))
    planned = ingest.plan("ingest it", config=DataConfig.model_validate({"sources": [{"path": str(data)}]}))
    store = open_store(str(tmp_path / "store"))
    flow: Any = vars(steps)["ingest"]
    assert flow(planned=json.loads(json.dumps(planned.to_json())), store=store.uri) == planned.ref
    assert planned.reusable(store) is not None
    with get_client(sync_client=True) as client:
        named = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=["ingest it"])))
    assert len(named) == 1, "the run is called as the step is labelled"


def test_every_step_has_a_flow_of_its_name_that_takes_a_planned_step() -> None:
    for name in STEPS:
        flow = getattr(steps, name)
        assert flow.name == name
        assert list(parameter_schema(flow).properties) == ["planned", "store", "force", "threads", "store_access"]
