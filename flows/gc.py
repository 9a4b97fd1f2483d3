"""Which artifacts no kept run uses, and their removal."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import NamedTuple

from flows.current import kept_artifacts
from flows.records import all_runs
from tasks.store import Store

_STAGING_SECONDS = 24 * 3600  # a staging folder that old was left by a kill


class Collected(NamedTuple):
    """What was, or would be, removed; names are step/fingerprint."""

    artifacts: list[str]
    n_bytes: int


def collect(store: Store, *, keep: int, remove: bool) -> Collected:
    """Find what only runs older than the newest `keep` use; runs that have not ended count as kept.

    What `current` points to, and what it pointed to before, is kept however old its run is.
    """
    records = all_runs(store)
    kept = records[:keep] + [record for record in records[keep:] if record.status == "running"]
    used = {(step.ref["step"], step.ref["fingerprint"]) for record in kept for step in record.steps}
    used |= kept_artifacts(store)
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
    if store.is_local:
        Path(f"{folder}/manifest.json").unlink(missing_ok=True)
        shutil.rmtree(folder)
        return
    store.remote.remove(f"{folder}/manifest.json")
    store.remote.remove_folder(folder)
    shutil.rmtree(store.cache / "steps" / step / fingerprint, ignore_errors=True)


def _remove_old_staging(root: Path) -> None:
    for folder in root.glob("steps/*/.staging-*"):
        if time.time() - folder.stat().st_mtime > _STAGING_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
