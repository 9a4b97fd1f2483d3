"""`ssr gc`: find what no kept run uses and what unfinished work has left behind, show its size, and remove it.

| kind | what | removed when |
|---|---|---|
| artifacts | `steps/`, on the store | no kept or running run uses it, nor a recipe's last promoted adapters |
| copies | of artifacts of a remote store, in the cache folder | the artifact is gone, or is removed now |
| work | checkpoints and parts, here and on the store | its step is done; or it is old, and of no kept run |
| claims | of workers, see `tasks.artifacts.claims` | their holder is dead |
| leftovers | half-written files in a local store, or in the cache folder | they are a day old |

Nothing is removed that a worker has claimed, and no copy of an adapter (`flows.promotion.copies`) on its first day.
Unfinished work is removed under its claim, so a step that starts meanwhile waits. Generated rows, also those that are
not uploaded yet, and benchmark items (`tasks.evaluate.benchmark_items`) are never removed, because they were paid for.
Not covered: cache folders of other machines, Prefect's records, uploads that a killed worker left unfinished on S3.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.markup import escape

from flows.promotion.advance import kept_artifacts
from flows.promotion.copies import PROMOTED
from flows.runs.records import all_runs
from tasks.artifacts.claims import claimed_if_free, claims, is_claimed
from tasks.artifacts.files import StoredFile, files_at
from tasks.artifacts.store import Ref, Store

DAYS = 7  # until the unfinished work of a run that nobody resumed is removed
_LEFTOVER_SECONDS = 24 * 3600  # no process writes a file for so long: it was killed
KINDS = ("artifacts", "copies", "work", "claims", "leftovers")

Names = set[tuple[str, str]]  # step and fingerprint


class _Removable(NamedTuple):
    """Something to remove.

    Attributes:
        name: step/fingerprint, or a path below the store or the cache folder.
        remove: Removes it, or returns False if a worker has claimed it meanwhile.
    """

    kind: str
    name: str
    n_bytes: int
    remove: Callable[[], bool | None]


class Collected(NamedTuple):
    """What was, or would be, removed: names by kind, and bytes in all and by kind."""

    artifacts: list[str]
    copies: list[str]
    work: list[str]
    claims: list[str]
    leftovers: list[str]
    n_bytes: int
    n_bytes_of: dict[str, int]

    @property
    def is_nothing(self) -> bool:
        """Whether there is nothing to remove."""
        return not any(getattr(self, kind) for kind in KINDS)


def collect(store: Store, *, keep: int, remove: bool, days: float = DAYS) -> Collected:
    """Find, and with `remove` also remove, what is not used by the newest `keep` runs or by a run or worker at work.

    Args:
        days: Unfinished work that no kept run has is removed if no file in it has changed for so long.
    """
    records = all_runs(store)
    planned = {(step.ref["step"], step.ref["fingerprint"]) for record in records[:keep] for step in record.steps}
    # The record of a killed run says running for ever. Such a run keeps its artifacts, but not its checkpoints.
    running = [record for record in records[keep:] if record.status == "running"]
    used = planned | {(step.ref["step"], step.ref["fingerprint"]) for record in running for step in record.steps}
    claimed = claims(store)
    busy = {(ref["step"], ref["fingerprint"]) for ref in claimed if is_claimed(store, ref)}
    artifacts = list(_artifacts(store, used | busy | kept_artifacts(store)))
    found = [
        *artifacts,
        *_copies(store, {one.name for one in artifacts}),
        *_work(store, planned, busy, time.time() - days * 24 * 3600),
        *(
            _Removable("claims", f"{ref['step']}/{ref['fingerprint']}", 0, partial(_remove_claim, store, ref))
            for ref in claimed
            if (ref["step"], ref["fingerprint"]) not in busy
        ),
        *_leftovers(store, busy),
    ]
    return _by_kind([one for one in found if one.remove() is not False] if remove else found)


def collected_lines(found: Collected, *, removed: bool) -> Iterator[str]:
    """What was, or would be, removed, as lines for the terminal, in rich's markup."""
    whats = {
        "artifacts": "artifacts", "copies": "copies of artifacts", "work": "folders of unfinished work",
        "claims": "claims of dead workers", "leftovers": "half-written files",
    }  # fmt: skip
    for kind, what in whats.items():
        names: list[str] = getattr(found, kind)
        if not names and kind != "artifacts":
            continue
        yield f"{'removed' if removed else 'would remove'} {len(names)} {what}, {_size(found.n_bytes_of[kind])}"
        yield from (f"    {escape(name)}" for name in names)
    yield f"in all {_size(found.n_bytes)}"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"


def _by_kind(found: list[_Removable]) -> Collected:
    names = {kind: [one.name for one in found if one.kind == kind] for kind in KINDS}
    n_bytes_of = {kind: sum(one.n_bytes for one in found if one.kind == kind) for kind in KINDS}
    return Collected(**names, n_bytes=sum(n_bytes_of.values()), n_bytes_of=n_bytes_of)


def _artifacts(store: Store, used: Names) -> Iterator[_Removable]:
    for step in store.names("steps"):
        for fingerprint in store.fingerprints(step):
            if (step, fingerprint) in used or (step == PROMOTED and _is_young(store, "steps", step, fingerprint)):
                continue
            ref = Ref(step=step, fingerprint=fingerprint)
            manifest = store.manifest(**ref)
            sizes = [entry["size"] for entry in manifest.files] if manifest else []
            n_bytes = sum(sizes or (file.size for file in store.files_below("steps", step, fingerprint)))
            yield _Removable("artifacts", f"{step}/{fingerprint}", n_bytes, partial(store.remove, ref))


def _is_young(store: Store, *parts: str) -> bool:
    """Whether the copy of an adapter may be one whose promotion is not written yet: no record of a run names it."""
    return time.time() - _changed(store.files_below(*parts)) < _LEFTOVER_SECONDS


def _copies(store: Store, removed: set[str]) -> Iterator[_Removable]:
    """Copies of artifacts that are not on the store.

    The cache folder is listed before the store, so that an artifact that is published meanwhile is not among them.
    """
    folders = store.copies()
    there = {step: set(store.names("steps", step)) for step in {folder.parent.name for folder in folders}}
    for folder in folders:
        step, name = folder.parent.name, f"{folder.parent.name}/{folder.name}"
        if name in removed or folder.name not in there[step]:
            yield _Removable("copies", name, _n_bytes(files_at(folder)), partial(_remove_path, folder))


def _work(store: Store, planned: Names, busy: Names, old: float) -> Iterator[_Removable]:
    """Unfinished work of steps that are done, and of steps of no kept run that has not changed since `old`."""
    names = {(path.parent.name, path.name) for path in store.cache.glob("work/*/*/")}
    names |= {(step, name) for step in store.names("work") for name in store.names("work", step)}
    for step, fingerprint in sorted(names):
        ref = Ref(step=step, fingerprint=fingerprint)
        done = store.manifest(**ref) is not None
        if (step, fingerprint) in busy or (not done and (step, fingerprint) in planned):
            continue
        files = store.work_files(**ref)
        if done or _changed(files) < old:
            yield _Removable("work", f"{step}/{fingerprint}", _n_bytes(files), partial(_remove_work, store, ref))


def _leftovers(store: Store, busy: Names) -> Iterator[_Removable]:
    # A step at work may not have changed its staging folder for days: many write their files at the end.
    staged = {(step, f".staging-{fingerprint[:16]}") for step, fingerprint in busy}
    for pattern in store.leftovers:
        for path in sorted(store.cache.glob(pattern)):
            files = files_at(path)
            if time.time() - _changed(files) < _LEFTOVER_SECONDS or (path.parent.name, path.name[:25]) in staged:
                continue
            name = path.relative_to(store.cache).as_posix()
            yield _Removable("leftovers", name, _n_bytes(files), partial(_remove_path, path))


def _remove_work(store: Store, ref: Ref) -> bool:
    with claimed_if_free(store, ref) as free:
        if free:
            store.done_with_work(**ref)
    return free


def _remove_claim(store: Store, ref: Ref) -> bool:
    with claimed_if_free(store, ref) as free:  # which removes what a dead holder left
        return free


def _remove_path(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _changed(files: list[StoredFile]) -> float:
    return max((file.changed for file in files), default=time.time())


def _n_bytes(files: list[StoredFile]) -> int:
    return sum(file.size for file in files)
