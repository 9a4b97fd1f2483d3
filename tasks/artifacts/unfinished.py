"""Checkpoints of an unfinished step on a remote store, so that another machine can go on from them.

    <store>/work/<step>/<fingerprint>/<name>             a file, or a folder of files
    <store>/work/<step>/<fingerprint>/<name>.complete    its files; written last: without it, the rest does not count
    <store>/work/<step>/<fingerprint>/made_from          what the step's inputs held, and whether it was forced

On a local store the work folder is in the store already, and nothing is uploaded. Checkpoints hold optimiser state in
PyTorch's format; the trainer reads it with `weights_only`, which runs no code.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from dataclasses import replace

from tasks.artifacts.digest import file_digest
from tasks.artifacts.manifest import checked_files, checked_name, file_entry
from tasks.artifacts.s3 import at_once
from tasks.artifacts.s3_store import S3Store
from tasks.artifacts.store import FileEntry, Ref, Store
from tasks.errors import StoreError

logger = logging.getLogger(__name__)

_COMPLETE = ".complete"
_MADE_FROM = "made_from"
_PATIENCE_SECONDS = 30.0  # the step waits meanwhile


def keep_only_if(store: Store, ref: Ref, made_from: str) -> None:
    """Remove what an earlier try of a step has left, here and on the store, unless it was made from the same inputs.

    The fingerprint does not tell: an input that was forced may hold other bytes under the same fingerprint.

    Args:
        made_from: A digest of what the inputs hold now, and whether the step is forced.

    Raises:
        StoreError: The store did not answer, so its files may be of other inputs.
    """
    here = store.work_folder(**ref) / _MADE_FROM
    if not here.exists() or here.read_text() != made_from:
        shutil.rmtree(here.parent)
        (store.work_folder(**ref) / _MADE_FROM).write_text(made_from)
    try:
        kept = store.read("work", ref["step"], ref["fingerprint"], _MADE_FROM).decode(errors="replace")
    except FileNotFoundError:
        kept = ""
    if kept != made_from:
        store.files.remove_folder(store.path("work", ref["step"], ref["fingerprint"]))
        store.files.write(_path(store, ref, _MADE_FROM), made_from.encode())


def push(store: Store, ref: Ref, name: str, *, only_newest: bool = False) -> bool:
    """Upload a file or folder of the work folder to a remote store. A failure is logged, and the step goes on.

    Args:
        only_newest: Remove what is beside it on the store once this one is complete.

    Returns:
        Whether it is on a remote store now.
    """
    if not isinstance(store, S3Store):
        return False
    folder = store.work_folder(**ref)
    paths = [path for path in sorted((folder / name).rglob("*")) if path.is_file()] or [folder / name]
    files = replace(store.files, patience=_PATIENCE_SECONDS)
    try:
        entries = [file_entry(folder, path) for path in paths]
        # While it is uploaded, an older one of this name must not count either.
        files.remove(_path(store, ref, f"{name}{_COMPLETE}"))
        at_once(lambda entry: files.upload(folder / entry["name"], _path(store, ref, entry["name"])), entries)
        files.write(_path(store, ref, f"{name}{_COMPLETE}"), json.dumps(entries).encode())
        if only_newest:
            _remove_others(store, ref, name)
    except (StoreError, OSError) as error:
        logger.warning("%s: %s is only on this machine: %s", ref["step"], name, error)
        return False
    return True


def pushed(store: Store, ref: Ref, folder: str) -> list[str]:
    """The names, relative to the work folder, of what is complete in one of its folders on a remote store."""
    names = store.names("work", ref["step"], ref["fingerprint"], folder)
    complete = [name.removesuffix(_COMPLETE) for name in names if name.endswith(_COMPLETE)]
    return [f"{folder}/{checked_name(name, where=_where(store, ref, folder))}" for name in complete]


def pull(store: Store, ref: Ref, name: str) -> bool:
    """Download a file or folder that some machine has pushed; False if there is none, or if it is not whole.

    Raises:
        StoreError: The store did not answer. To go on without the file might pay twice.
    """
    try:
        entries = _listed(store, ref, name)
    except FileNotFoundError:
        return False
    if entries is None:
        return False
    target = store.work_folder(**ref) / name
    part = store.work_folder(**ref) / f".pulled-{uuid.uuid4().hex}"

    def get(entry: FileEntry) -> None:
        store.files.download(_path(store, ref, entry["name"]), part / entry["name"])
        if file_digest(part / entry["name"]) != entry["sha256"]:
            raise ValueError(f"{entry['name']} is not what was pushed")

    try:
        at_once(get, entries)
        if target.is_dir():
            shutil.rmtree(target)
        target.parent.mkdir(exist_ok=True)
        (part / name).replace(target)
    except FileNotFoundError:
        return False
    except ValueError as error:
        _log_damaged(ref, name, error)
        return False
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return True


def _listed(store: Store, ref: Ref, name: str) -> list[FileEntry] | None:
    """The files of what is complete under a name; None if their list is damaged or names a file outside: it is logged.

    Raises:
        FileNotFoundError: Nothing is complete under this name.
        StoreError: The store did not answer.
    """
    content = store.read("work", ref["step"], ref["fingerprint"], f"{name}{_COMPLETE}")
    try:
        return checked_files(json.loads(content), where=_where(store, ref, f"{name}{_COMPLETE}"))
    except (ValueError, TypeError, KeyError, StoreError) as error:
        _log_damaged(ref, name, error)
        return None


def _log_damaged(ref: Ref, name: str, error: Exception) -> None:
    logger.warning("%s: %s on the store is damaged and not used: %s", ref["step"], name, error)


def _remove_others(store: Store, ref: Ref, name: str) -> None:
    folder, slash, own = name.rpartition("/")
    names = store.names("work", ref["step"], ref["fingerprint"], *([folder] if folder else []))
    for other in {name.removesuffix(_COMPLETE) for name in names} - {own}:
        store.files.remove(_path(store, ref, f"{folder}{slash}{other}{_COMPLETE}"))
        store.files.remove_folder(_path(store, ref, f"{folder}{slash}{other}"))


def _path(store: Store, ref: Ref, name: str) -> str:
    return store.path("work", ref["step"], ref["fingerprint"], name)


def _where(store: Store, ref: Ref, name: str) -> str:
    """A path of unfinished work, for messages."""
    return f"{store.uri}/work/{ref['step']}/{ref['fingerprint']}/{name}"
