"""Every step as a flow of its own, so that it can be deployed on its own work pool: GPU steps on machines with GPUs.

Not for people to start: the parameters are those of a planned step, which the parent run gives (`flows.run`).
"""

from __future__ import annotations

import os
from typing import Any

from prefect import Flow, flow

from flows import rehearsal as _all_steps  # noqa: F401  # so that every step is known
from flows.execution.access import use_access
from flows.execution.prefect_ui import ArtifactListener
from tasks.artifacts.store import Ref, open_store
from tasks.running import progress
from tasks.running.step import STEPS, execute_here


def _alone(name: str) -> Flow[..., Ref]:
    """A flow that runs one step, or finds it made."""

    @flow(
        name=name, description=f"The step `{name}` of a run, alone.", flow_run_name="{label}", validate_parameters=False
    )
    def run(
        fingerprint: str, step: str, label: str, store: str, sections: dict[str, Any], inputs: dict[str, Any],
        identity: dict[str, Any], force: bool = False, threads: int | None = None, store_access: str = "",
    ) -> Ref:  # Any: JSON values  # fmt: skip
        use_access(store_access)
        open_store(store).preflight()
        if threads:
            os.environ["OMP_NUM_THREADS"] = str(threads)
        with ArtifactListener() as shown, progress.listening(shown):
            return execute_here(fingerprint, step, label, store, sections, inputs, identity, force)

    assert name in STEPS
    return run


ingest = _alone("ingest")
generate = _alone("generate")
judge = _alone("judge")
rewrite = _alone("rewrite")
likelihood = _alone("likelihood")
select = _alone("select")
train = _alone("train")
measure = _alone("measure")
evaluate = _alone("evaluate")
promote = _alone("promote")
report = _alone("report")
