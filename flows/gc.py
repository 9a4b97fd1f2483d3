"""Which artifacts no kept run uses, and their removal."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import NamedTuple

from flows.records import all_runs
from tasks.store import Store

_STAGING_SECONDS = 24 * 3600  # a staging folder that old was left by a kill


class Collected(NamedTuple):
    """What was, or would be, removed; names are step/fingerprint."""

    artifacts: list[str]
    n_bytes: int


def collect(store: Store, *, keep: int, remove: bool) -> Collected:
    """Find what only runs older than the newest `keep` use; runs that have not ended count as kept."""
    records = all_runs(store)
    kept = records[:keep] + [record for record in records[keep:] if record.status == "running"]
    used = {(step.ref["step"], step.ref["fingerprint"]) for record in kept for step in record.steps}
    names, n_bytes = [], 0
    for step in store.names("steps"):
        for fingerprint in store.fingerprints(step):
            if (step, fingerprint) in used:
                continue
            names.append(f"{step}/{fingerprint}")
            manifest = store.manifest(step, fingerprint)
            n_bytes += sum(entry["size"] for entry in manifest.files) if manifest else 0
            if remove:
                _remove(store, step, fingerprint)
    if remove and store.is_local:
        _remove_old_staging(Path(store.root))
    return Collected(names, n_bytes)


def _remove(store: Store, step: str, fingerprint: str) -> None:
    # The manifest first: an artifact without one does not exist, so a kill here leaves no half of one.
    folder = store.path("steps", step, fingerprint)
    if store.fs.exists(f"{folder}/manifest.json"):
        store.fs.rm_file(f"{folder}/manifest.json")
    store.fs.rm(folder, recursive=True)
    if not store.is_local:
        shutil.rmtree(store.cache / "steps" / step / fingerprint, ignore_errors=True)


def _remove_old_staging(root: Path) -> None:
    for folder in root.glob("steps/*/.staging-*"):
        if time.time() - folder.stat().st_mtime > _STAGING_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
