"""The claim of an artifact on a remote store: an object that says who makes the artifact, on any machine, until when.

A claim runs out when nobody renews it, so a killed holder costs the others at most `TTL_SECONDS`, and a worker with the
same cache folder nothing. For that the clocks of the machines should agree to within a few seconds. Time in which the
store did not answer does not count: no holder could renew its claim then.
"""

from __future__ import annotations

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
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tasks.artifacts.manifest import Ref
from tasks.artifacts.s3 import S3Files
from tasks.errors import StoreError

logger = logging.getLogger(__name__)

TTL_SECONDS = 60.0
RENEW_SECONDS = 15.0
POLL_SECONDS = 2.0
AFTER_OUTAGE_SECONDS = 2 * RENEW_SECONDS  # by then a live holder has renewed, even if it paused between retries


@dataclass(frozen=True)
class NoLease:
    """In place of a lease on a local store, where the lock of a file is enough.

    Attributes:
        alone: The lock is held. It is not where the file system has no locks.
    """

    alone: bool

    def take(self, ref: Ref) -> None:
        """Do nothing: the lock was waited for."""

    def take_if_free(self) -> bool:
        """Whether the lock is held."""
        return self.alone

    def is_free(self) -> bool:
        """True: only the lock says whether somebody works."""
        return True

    def renewed(self) -> AbstractContextManager[None]:
        """Do nothing: a lock does not run out."""
        return nullcontext()


@dataclass(frozen=True)
class _Claim:
    """The content of a claim.

    Attributes:
        place: The name of its holder's cache folder; "" if the holder may not be alone in it.
        who: The holder, for people.
        expires: In seconds since 1970, by the holder's clock.
    """

    owner: str
    place: str
    who: str
    expires: float


class _StoredClaim(NamedTuple):
    """The claim that is on the store; None in place of one that cannot be read."""

    claim: _Claim | None
    etag: str


@dataclass(frozen=True)
class Lease:
    """This process's claim on a remote store, taken or not yet.

    Attributes:
        owner: A random name of this claim.
        place: The name of our cache folder; "" if no lock makes sure that we are alone in it.
    """

    files: S3Files
    path: str
    owner: str
    place: str

    def take(self, ref: Ref) -> None:
        """Wait until the claim is ours."""
        said = False
        last: _StoredClaim | None = None
        changed_at, patient_until = time.monotonic(), -math.inf
        while True:
            found, after_outage = self._read_timed()
            now = time.monotonic()
            if after_outage:
                patient_until = now + AFTER_OUTAGE_SECONDS
            if found != last or after_outage:
                last, changed_at = found, now
            # A claim that was not renewed for its whole lifetime is stale, whatever the clocks of both machines say.
            stale = now - changed_at > TTL_SECONDS
            if found is None or stale or self._is_over(found.claim, by_clock=now >= patient_until):
                self._write(found)
                if self._is_ours(self._read()):
                    return
            elif not said and found.claim:
                said = True
                tell_waiting(ref["step"], ref["fingerprint"], found.claim.who)
            time.sleep(POLL_SECONDS * random.uniform(0.5, 1))

    def take_if_free(self) -> bool:
        """Take the claim if nobody holds it; whether it is ours now."""
        found, after_outage = self._read_timed()
        if found is not None and not self._is_over(found.claim, by_clock=not after_outage):
            return False
        self._write(found)
        return self._is_ours(self._read())

    def is_free(self) -> bool:
        """Whether nobody holds the claim."""
        found, after_outage = self._read_timed()
        return found is None or self._is_over(found.claim, by_clock=not after_outage)

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew the claim, once taken, until the end of the block; then remove it."""
        ended = threading.Event()
        renewing = threading.Thread(target=self._renew_until, args=(ended,), name=self.path, daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            self._remove()

    def _is_over(self, claim: _Claim | None, *, by_clock: bool) -> bool:
        """Whether nobody holds a claim. `by_clock`: an expired one is over, which is wrong right after an outage."""
        if claim is None or (by_clock and claim.expires < time.time()):
            return True
        # Its holder had the lock of our cache folder, which we have now: it is dead, or this is our own claim,
        # written by a call whose answer got lost.
        return claim.owner == self.owner or (claim.place == self.place and self.place != "")

    def _renew_until(self, ended: threading.Event) -> None:
        # A renewal that has not succeeded when the next one is due has failed.
        brief = replace(self, files=replace(self.files, patience=RENEW_SECONDS))
        while not ended.wait(RENEW_SECONDS):
            try:
                found = brief._read()
                if found is not None and not self._is_ours(found):
                    logger.warning("%s: another worker has taken over the claim: it was not renewed in time", self.path)
                    return
                brief._write(found)
            except StoreError as error:
                logger.warning("%s: the claim could not be renewed: %s", self.path, error)

    def _remove(self) -> None:
        try:
            if self._is_ours(self._read()):
                self.files.remove(self.path)
        except StoreError as error:
            logger.warning("%s: the claim could not be removed, and expires by itself: %s", self.path, error)

    def _read_timed(self) -> tuple[_StoredClaim | None, bool]:
        """The claim, and whether the store was silent for so long that its holder may have missed a renewal."""
        asked_at = time.monotonic()
        return self._read(), time.monotonic() - asked_at > RENEW_SECONDS

    def _read(self) -> _StoredClaim | None:
        try:
            # In this order: if the claim changes in between, the ETag is too old, and a write with it is refused.
            etag = self.files.etag(self.path)
            content = self.files.read(self.path)
        except FileNotFoundError:
            return None
        try:
            return _StoredClaim(_Claim(**json.loads(content)), etag)
        except (ValueError, TypeError):
            return _StoredClaim(None, etag)

    def _write(self, found: _StoredClaim | None) -> None:
        claim = _Claim(self.owner, self.place, process_name(), time.time() + TTL_SECONDS)
        self.files.swap(self.path, json.dumps(asdict(claim)).encode(), found.etag if found else None)

    def _is_ours(self, found: _StoredClaim | None) -> bool:
        return found is not None and found.claim is not None and found.claim.owner == self.owner


def cache_name(folder: Path) -> str:
    """A random name for a cache folder, kept in it: the same for all processes that use the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "place", "a+") as file:
        with suppress(OSError):  # the name is used only where there are locks
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        name = file.read()
        if not name:
            name = uuid.uuid4().hex
            file.write(name)
        return name


def process_name() -> str:
    """This process, for people: its host and its id."""
    return f"{socket.gethostname()}, process {os.getpid()}"


def tell_waiting(step: str, fingerprint: str, who: str) -> None:
    """Log that this process waits for another one that makes the same artifact."""
    logger.warning("%s %s: waiting for another worker that makes it (%s)", step, fingerprint[:12], who or "unknown")
