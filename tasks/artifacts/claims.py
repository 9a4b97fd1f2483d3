"""One worker at a time makes an artifact; the others wait for it, and then find it made.

    <cache>/claims/<step>/<fingerprint>.lock     locked by the one process on this machine that makes the artifact
    <store>/claims/<step>/<fingerprint>.json     S3: the lease of the process that makes it, see `tasks.artifacts.lease`

On a local store the cache folder is the store, and the file lock is all. The kernel releases it when its holder dies.

A claim saves work; it is not what keeps artifacts whole. A holder that slept too long, or an S3 server that has no
conditional writes, may let two work at once: both then publish, which is safe, because a manifest is written last and
says what every file must hold.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.artifacts.lease import process_name, tell_waiting
from tasks.artifacts.store import Ref, Store
from tasks.errors import StoreError

logger = logging.getLogger(__name__)

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}  # of a file system without locks


@contextmanager
def claimed(store: Store, ref: Ref) -> Iterator[None]:
    """Be the only worker that makes this artifact; wait while another makes it.

    Raises:
        StoreError: The claim cannot be written.
    """
    with _locked(store, ref) as lock:
        lease = store.lease(ref, alone=lock is not None)
        lease.take(ref)
        with lease.renewed():
            yield


@contextmanager
def claimed_if_free(store: Store, ref: Ref) -> Iterator[bool]:
    """Claim an artifact without waiting. Yields False if another worker has claimed it, or if nobody can tell.

    What a dead holder left of its claim is removed afterwards.
    """
    try:
        with _locked(store, ref, wait=False) as lock:
            lease = store.lease(ref, alone=lock is not None)
            if not lease.take_if_free():
                yield False
                return
            with lease.renewed():
                yield True
    except _Busy:
        yield False


def is_claimed(store: Store, ref: Ref) -> bool:
    """Whether a worker makes the artifact. True also where a file system has no locks. Changes nothing."""
    try:
        with open(_lock_file(store, ref), "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except OSError:
        return True
    return not store.lease(ref, alone=True).is_free()


def claims(store: Store) -> list[Ref]:
    """All claims, on the store and in the cache folder of this machine, whether their holders live or not."""
    found = {tuple(path.relative_to(store.cache).parts[1:]) for path in store.cache.glob("claims/*/*.lock")}
    found |= {(step, name) for step in store.names("claims") for name in store.names("claims", step)}
    refs = sorted({(step, name.rpartition(".")[0]) for step, name in found})
    return [Ref(step=step, fingerprint=fingerprint) for step, fingerprint in refs if fingerprint]


class _Busy(Exception):
    """Another process has the lock."""


def _lock_file(store: Store, ref: Ref) -> Path:
    return store.cache / "claims" / ref["step"] / f"{ref['fingerprint']}.lock"


@contextmanager
def _locked(store: Store, ref: Ref, *, wait: bool = True) -> Iterator[_Lock | None]:
    """The lock on this machine; None where the file system has none.

    Raises:
        _Busy: Another process has it, and `wait` is False.
        StoreError: The lock cannot be written.
    """
    path = _lock_file(store, ref)
    try:
        lock = _Lock.taken(path, wait=wait)
    except OSError as error:
        raise StoreError(f"{path}: cannot be claimed: {error}. Check the permissions and the disk.") from error
    try:
        yield lock
    finally:
        if lock:
            lock.release()


@dataclass(frozen=True)
class _Lock:
    """A locked file. It is removed before it is unlocked."""

    path: Path
    descriptor: int

    @classmethod
    def taken(cls, path: Path, *, wait: bool) -> _Lock | None:
        """The lock of a file; None where the file system has no locks."""
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if not _lock(descriptor, path, wait=wait):
                    os.close(descriptor)
                    return None
                # If its last holder removed the file while we waited, we hold a lock that nobody else sees: try again.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                        os.ftruncate(descriptor, 0)
                        os.pwrite(descriptor, process_name().encode(), 0)
                        return cls(path, descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def release(self) -> None:
        """Remove the file, and unlock it."""
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


def _lock(descriptor: int, path: Path, *, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        if not wait:
            raise _Busy from error
        tell_waiting(path.parent.name, path.stem, os.pread(descriptor, 200, 0).decode(errors="replace"))
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s: this file system has no locks, so two workers may do the same work at once", path.parent)
        return False
    return True
