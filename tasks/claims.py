"""One worker at a time makes an artifact; the others wait for it, and then find it made.

    <cache>/claims/<step>/<fingerprint>.lock     locked by the one process on this machine that is at it
    <store>/claims/<step>/<fingerprint>.json     remote store: who is at it, on any machine, and until when

On a local store the cache folder is the store, and the file lock is all. The kernel lets go of it when its holder dies.
A remote claim runs out when nobody renews it, so a killed holder costs the others at most `TTL_SECONDS`, and a worker
with the same cache folder nothing. For that the clocks of the machines should agree to within a few seconds.

A claim saves work; it is not what keeps artifacts whole. A holder that slept too long, or an S3 server that has no
conditional writes, may let two work at once: both then publish, which is safe, because a manifest is written last and
says what every file must hold.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tasks.errors import StoreError
from tasks.remote_files import S3Files
from tasks.store import Ref, Store

logger = logging.getLogger(__name__)

TTL_SECONDS = 60.0
RENEW_SECONDS = 15.0
POLL_SECONDS = 2.0
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}  # of a file system


@contextmanager
def claimed(store: Store, ref: Ref) -> Iterator[None]:
    """Be the only worker that makes this artifact; waits for another that is at it.

    Raises:
        StoreError: The claim cannot be written.
    """
    name = f"{ref['step']}/{ref['fingerprint']}"
    folder = store.cache / "claims"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = "" if store.is_local else _place(folder)
        lock = _Lock.taken(folder / f"{name}.lock")
    except OSError as error:
        raise StoreError(f"{folder}: {name} cannot be claimed: {error}. Check the permissions and the disk.") from error
    try:
        if store.is_local:
            yield
        else:
            with _leased(store, name, place=place if lock else ""):
                yield
    finally:
        if lock:
            lock.release()


@dataclass(frozen=True)
class _Lock:
    """A locked file; it is removed before the lock ends."""

    path: Path
    descriptor: int

    @classmethod
    def taken(cls, path: Path) -> _Lock | None:
        """Wait for the lock of a file; None where the file system has no locks."""
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if not _lock(descriptor, path):
                    os.close(descriptor)
                    return None
                # If its last holder removed it while this one waited, the lock is of a file that nobody else sees.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                        os.ftruncate(descriptor, 0)
                        os.pwrite(descriptor, _who().encode(), 0)
                        return cls(path, descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def release(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


def _lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _tell(path.parent.name, path.stem, os.pread(descriptor, 200, 0).decode(errors="replace"))
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s: no file locks here: two workers may do the same work at once", path.parent)
        return False
    return True


@contextmanager
def _leased(store: Store, name: str, place: str) -> Iterator[None]:
    lease = _Lease(store.remote, store.path("claims", f"{name}.json"), uuid.uuid4().hex, place)
    lease.take(*name.split("/"))
    ended = threading.Event()
    renewing = threading.Thread(target=lease.renew_until, args=(ended,), name=f"claim {name}", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        lease.drop()


@dataclass(frozen=True)
class _Claim:
    """The content of a claim. `place` names the cache folder of its holder."""

    owner: str
    place: str
    who: str
    expires: float


class _Seen(NamedTuple):
    """A claim as it stands on the store; None in place of one that cannot be read."""

    claim: _Claim | None
    etag: str


@dataclass(frozen=True)
class _Lease:
    """A claim of ours on a remote store, or the wish for one.

    Attributes:
        place: Our cache folder; "" if nothing makes sure that we are alone in it.
    """

    files: S3Files
    path: str
    owner: str
    place: str

    def take(self, step: str, fingerprint: str) -> None:
        """Wait until it is ours."""
        told = False
        last: _Seen | None = None
        changed_at = time.monotonic()
        while True:
            seen = self._look()
            if seen != last:
                last, changed_at = seen, time.monotonic()
            # Not renewed for so long as it should last: over, whatever the clocks of both machines say.
            stale = time.monotonic() - changed_at > TTL_SECONDS
            if seen is None or stale or self._is_over(seen.claim):
                self._write(seen)
                if self._is_ours(self._look()):
                    return
            elif not told and seen.claim:
                told = True
                _tell(step, fingerprint, seen.claim.who)
            time.sleep(POLL_SECONDS * random.uniform(0.5, 1))

    def _is_over(self, claim: _Claim | None) -> bool:
        if claim is None or claim.expires < time.time():
            return True
        # Its holder had the lock of our cache folder, which we have now: it is dead, or this is our own claim,
        # written by a call whose answer got lost.
        return claim.owner == self.owner or (claim.place == self.place and self.place != "")

    def renew_until(self, ended: threading.Event) -> None:
        """Keep it ours, in a thread of its own."""
        # A renewal that takes longer than until the next one has failed.
        brief = replace(self, files=replace(self.files, patience=RENEW_SECONDS))
        while not ended.wait(RENEW_SECONDS):
            try:
                seen = brief._look()
                if seen is not None and not self._is_ours(seen):
                    logger.warning("%s: another worker took over the claim: this machine was away", self.path)
                    return
                brief._write(seen)
            except StoreError as error:
                logger.warning("%s: the claim could not be renewed: %s", self.path, error)

    def drop(self) -> None:
        """Let others have it. Where that fails, it runs out."""
        try:
            if self._is_ours(self._look()):
                self.files.remove(self.path)
        except StoreError as error:
            logger.warning("%s: the claim could not be removed, and runs out by itself: %s", self.path, error)

    def _look(self) -> _Seen | None:
        try:
            # In this order: if it changes in between, the ETag is too old, and a write with it is refused.
            etag = self.files.etag(self.path)
            content = self.files.read(self.path)
        except FileNotFoundError:
            return None
        try:
            return _Seen(_Claim(**json.loads(content)), etag)
        except (ValueError, TypeError):
            return _Seen(None, etag)

    def _write(self, seen: _Seen | None) -> None:
        claim = _Claim(self.owner, self.place, _who(), time.time() + TTL_SECONDS)
        self.files.swap(self.path, json.dumps(asdict(claim)).encode(), seen.etag if seen else None)

    def _is_ours(self, seen: _Seen | None) -> bool:
        return seen is not None and seen.claim is not None and seen.claim.owner == self.owner


def _place(folder: Path) -> str:
    """A name for a cache folder: the same for all who share it, and for no one else."""
    with open(folder / "place", "a+") as file:
        with suppress(OSError):  # no locks here: then the name is not used either
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        name = file.read()
        if not name:
            name = uuid.uuid4().hex
            file.write(name)
        return name


def _who() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"


def _tell(step: str, fingerprint: str, who: str) -> None:
    logger.warning("%s %s: another worker is at it (%s); waiting for it", step, fingerprint[:12], who or "unknown")
