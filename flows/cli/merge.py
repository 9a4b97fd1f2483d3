"""`ssr merge`: a model with the adapter of an arm in it."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import RunId, StoreOption, console, stderr


def merge(
    run_id: RunId,
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet.")],
    arm: Annotated[
        str | None, typer.Option(help="Arm whose adapter is merged; needed if the run has several arms.")
    ] = None,
    store: StoreOption = ".ssr",
) -> None:
    """Write base model and an arm's adapter as one model, in safetensors. Needs as much memory as the model has."""
    warnings.simplefilter("ignore", FutureWarning)  # libraries address these to each other
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from flows.runs.merging import merge_arm
    from flows.runs.records import load_run
    from tasks.artifacts.store import open_store

    opened = open_store(store)
    record = load_run(opened, run_id)
    with stderr.status("merging"):
        merged = merge_arm(opened, record, arm, out)
    console.print(f"{merged.label} of {record.run_id}, merged: {out}", soft_wrap=True)
