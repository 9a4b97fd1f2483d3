"""Every step as a flow of its own, so that it can be deployed on its own work pool: GPU steps on machines with GPUs.

The flows follow from the declarations of the steps: `flows.steps.train` is the flow of the step `train`. They are not
for people to start: a parent run gives them a planned step (`flows.run`).
"""

from __future__ import annotations

import os
from typing import Any

from prefect import Flow, flow

from flows.execution.access import use_access
from flows.execution.prefect_ui import ArtifactListener
from flows.execution.step_task import execute_here
from flows.rehearsal import STEPS
from tasks.artifacts.store import Ref, open_store
from tasks.running.progress import listening


def flow_of(name: str) -> Flow[..., Ref]:
    """The flow that runs the step of this name, or reuses its artifact."""

    @flow(
        name=name, description=f"The step `{name}` of a run, alone.", flow_run_name="{planned[label]}",
        validate_parameters=False,
    )  # fmt: skip
    def run(
        planned: dict[str, Any], store: str, force: bool = False, threads: int | None = None, store_access: str = ""
    ) -> Ref:  # Any: JSON values
        use_access(store_access)
        open_store(store).preflight()
        if threads:
            os.environ["OMP_NUM_THREADS"] = str(threads)
        with ArtifactListener() as bars, listening(bars):
            return execute_here(planned, store, force)

    return run


# As attributes of the module, because a deployment names its flow as `flows.steps.<name>`.
globals().update({name: flow_of(name) for name in STEPS})
