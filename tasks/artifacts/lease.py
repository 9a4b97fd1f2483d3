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
AFTER_OUTAGE_SECONDS = 2 * RENEW_SECONDS  # for a holder that waits to try again, or for an answer that got lost


@dataclass(frozen=True)
class NoLease:
    """In place of a lease on a local store, where the lock of a file is all.

    Attributes:
        alone: The lock is held. It is not where the file system has no locks.
    """

    alone: bool

    def take(self, ref: Ref) -> None:
        """Do nothing: whoever waited for the lock has waited for all."""

    def take_if_free(self) -> bool:
        """Whether the lock is held."""
        return self.alone

    def is_free(self) -> bool:
        """Always: only the lock says who works."""
        return True

    def renewed(self) -> AbstractContextManager[None]:
        """Do nothing: a lock does not run out."""
        return nullcontext()


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
class Lease:
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
            seen, was_away = self._look_andtell_waiting()
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
                tell_waiting(ref["step"], ref["fingerprint"], seen.claim.who)
            time.sleep(POLL_SECONDS * random.uniform(0.5, 1))

    def take_if_free(self) -> bool:
        """Whether it is ours now."""
        seen, was_away = self._look_andtell_waiting()
        if seen is not None and not self._is_over(seen.claim, by_clock=not was_away):
            return False
        self._write(seen)
        return self._is_ours(self._look())

    def is_free(self) -> bool:
        seen, was_away = self._look_andtell_waiting()
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

    def _look_andtell_waiting(self) -> tuple[_Seen | None, bool]:
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
        claim = _Claim(self.owner, self.place, process_name(), time.time() + TTL_SECONDS)
        self.files.swap(self.path, json.dumps(asdict(claim)).encode(), seen.etag if seen else None)

    def _is_ours(self, seen: _Seen | None) -> bool:
        return seen is not None and seen.claim is not None and seen.claim.owner == self.owner


def cache_name(folder: Path) -> str:
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


def process_name() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"


def tell_waiting(step: str, fingerprint: str, who: str) -> None:
    logger.warning("%s %s: another worker is at it (%s); waiting for it", step, fingerprint[:12], who or "unknown")
