"""One worker at a time makes an artifact; the others wait for it, and then find it made.

    <cache>/claims/<step>/<fingerprint>.lock     locked by the one process on this machine that is at it
    <store>/claims/<step>/<fingerprint>.json     remote store: who is at it, on any machine, and until when

On a local store the cache folder is the store, and the file lock is all. The kernel lets go of it when its holder dies.
A remote claim runs out when nobody renews it, so a killed holder costs the others at most `TTL_SECONDS`, and a worker
with the same cache folder nothing. For that the clocks of the machines should agree to within a few seconds. Time in
which the store was away does not count: no holder could renew its claim then.

A claim saves work; it is not what keeps artifacts whole. A holder that slept too long, or an S3 server that has no
conditional writes, may let two work at once: both then publish, which is safe, because a manifest is written last and
says what every file must hold.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
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

from tasks.artifacts.s3 import S3Files
from tasks.artifacts.store import Ref, Store
from tasks.errors import StoreError

logger = logging.getLogger(__name__)

TTL_SECONDS = 60.0
RENEW_SECONDS = 15.0
POLL_SECONDS = 2.0
AFTER_OUTAGE_SECONDS = 2 * RENEW_SECONDS  # for a holder that waits to try again, or for an answer that got lost
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}  # of a file system


@contextmanager
def claimed(store: Store, ref: Ref) -> Iterator[None]:
    """Be the only worker that makes this artifact; waits for another that is at it.

    Raises:
        StoreError: The claim cannot be written.
    """
    with _locked(store, ref) as lock:
        if store.is_local:
            yield
        else:
            lease = _lease(store, ref, alone=lock is not None)
            lease.take(ref)
            with lease.renewed():
                yield


@contextmanager
def claimed_if_free(store: Store, ref: Ref) -> Iterator[bool]:
    """The same without waiting; whether it is ours. It is not where another is at it, or where nobody can tell.

    What a dead holder left of its claim is gone after it.
    """
    try:
        with _locked(store, ref, wait=False) as lock:
            if store.is_local:
                yield lock is not None
                return
            lease = _lease(store, ref, alone=lock is not None)
            if not lease.take_if_free():
                yield False
                return
            with lease.renewed():
                yield True
    except _Busy:
        yield False


def is_claimed(store: Store, ref: Ref) -> bool:
    """Whether a worker is at it, or may be: where a file system has no locks, nobody can tell. Changes nothing."""
    try:
        with open(_lock_file(store, ref), "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except OSError:
        return True
    return not store.is_local and not _lease(store, ref, alone=True).is_free()


def claims(store: Store) -> list[Ref]:
    """What has a claim, whether its holder lives or is dead: on the store, and in the cache folder of this machine."""
    found = {tuple(path.relative_to(store.cache).parts[1:]) for path in store.cache.glob("claims/*/*.lock")}
    if not store.is_local:
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
        _Busy: Another has it, and it is not to be waited for.
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
    """A locked file; it is removed before the lock ends."""

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


def _lock(descriptor: int, path: Path, *, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        if not wait:
            raise _Busy from error
        _tell(path.parent.name, path.stem, os.pread(descriptor, 200, 0).decode(errors="replace"))
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s: no file locks here: two workers may do the same work at once", path.parent)
        return False
    return True


def _lease(store: Store, ref: Ref, *, alone: bool) -> _Lease:
    """Not yet taken. `alone`: the lock makes sure that no other process of this cache folder is at it."""
    path = store.path("claims", ref["step"], f"{ref['fingerprint']}.json")
    place = _place(store.cache / "claims") if alone else ""
    return _Lease(store.remote, path, uuid.uuid4().hex, place)


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

    def take(self, ref: Ref) -> None:
        """Wait until it is ours."""
        told = False
        last: _Seen | None = None
        changed_at, patient_until = time.monotonic(), -math.inf
        while True:
            seen, was_away = self._look_and_tell()
            now = time.monotonic()
            if was_away:
                patient_until = now + AFTER_OUTAGE_SECONDS
            if seen != last or was_away:
                last, changed_at = seen, now
            # Not renewed for so long as it should last: over, whatever the clocks of both machines say.
            stale = now - changed_at > TTL_SECONDS
            if seen is None or stale or self._is_over(seen.claim, by_clock=now >= patient_until):
                self._write(seen)
                if self._is_ours(self._look()):
                    return
            elif not told and seen.claim:
                told = True
                _tell(ref["step"], ref["fingerprint"], seen.claim.who)
            time.sleep(POLL_SECONDS * random.uniform(0.5, 1))

    def take_if_free(self) -> bool:
        """Whether it is ours now."""
        seen, was_away = self._look_and_tell()
        if seen is not None and not self._is_over(seen.claim, by_clock=not was_away):
            return False
        self._write(seen)
        return self._is_ours(self._look())

    def is_free(self) -> bool:
        seen, was_away = self._look_and_tell()
        return seen is None or self._is_over(seen.claim, by_clock=not was_away)

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Keep it, once taken; then let others have it."""
        ended = threading.Event()
        renewing = threading.Thread(target=self._renew_until, args=(ended,), name=self.path, daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            self._drop()

    def _is_over(self, claim: _Claim | None, *, by_clock: bool) -> bool:
        """Whether nobody holds it. `by_clock`: also because it has run out, which after an outage proves nothing."""
        if claim is None or (by_clock and claim.expires < time.time()):
            return True
        # Its holder had the lock of our cache folder, which we have now: it is dead, or this is our own claim,
        # written by a call whose answer got lost.
        return claim.owner == self.owner or (claim.place == self.place and self.place != "")

    def _renew_until(self, ended: threading.Event) -> None:
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

    def _drop(self) -> None:
        """Let others have it. Where that fails, it runs out."""
        try:
            if self._is_ours(self._look()):
                self.files.remove(self.path)
        except StoreError as error:
            logger.warning("%s: the claim could not be removed, and runs out by itself: %s", self.path, error)

    def _look_and_tell(self) -> tuple[_Seen | None, bool]:
        """The claim, and whether the store was away for so long that its holder may have missed a renewal."""
        asked_at = time.monotonic()
        return self._look(), time.monotonic() - asked_at > RENEW_SECONDS

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
    folder.mkdir(parents=True, exist_ok=True)
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
