"""Two workers at the same step: one works, the other waits and reuses; for a dead one nobody waits long."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from tasks.artifacts import claims, lease
from tasks.artifacts.claims import claimed, claimed_if_free, is_claimed
from tasks.artifacts.local_store import LocalStore
from tasks.artifacts.s3 import S3Files
from tasks.artifacts.store import Ref, Store, open_store
from tasks.errors import StoreError
from tasks.running import progress
from tasks.running.step import Context, Planned, step

if TYPE_CHECKING:  # pytest loads it itself
    from s3 import S3, S3Proxy

pytest_plugins = ["s3"]

ROOT = Path(__file__).parents[2]
REF = Ref(step="train", fingerprint="f" * 64)
CLAIM = f"claims/train/{'f' * 64}.json"
SECONDS = 60  # more than anything here takes

Machine = Callable[[str], Store]

body: list[Callable[[], None]] = []
runs: list[str] = []


@step(version=1, pool="cpu", table=None)
def toy_claimed(ctx: Context) -> None:
    runs.append("begins")
    body[0]()
    (ctx.out / "made.txt").write_text("made")
    runs.append("ends")


class Reused:
    """A listener that counts what was found made."""

    n = 0

    def reused(self, label: str, counts: dict[str, int]) -> None:
        self.n += 1

    def started(self, label: str) -> None: ...
    def progress(self, label: str, done: int, total: int, detail: str) -> None: ...
    def finished(self, label: str, counts: dict[str, int], seconds: float) -> None: ...


class Waiting(logging.Handler):
    """Knows when somebody waits for a claim, and how often that was said."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = threading.Event()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "waiting for another worker" in record.getMessage():
            self.messages.append(record.getMessage())
            self.seen.set()


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    handler = Waiting()
    logging.getLogger("tasks.artifacts").addHandler(handler)
    yield handler
    logging.getLogger("tasks.artifacts").removeHandler(handler)


@pytest.fixture
def reused() -> Iterator[Reused]:
    listener = Reused()
    with progress.listening(listener):
        yield listener


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    runs.clear()
    body[:] = [lambda: None]
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)


@pytest.fixture
def machine(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The store on S3 as a machine of that name sees it."""

    def opened(name: str) -> Store:
        monkeypatch.setenv("SSR_CACHE", str(tmp_path / name))
        return open_store(s3.uri)

    return opened


@pytest.fixture(params=["one folder", "one machine", "two machines"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Store, Store]:
    """The same store as two workers see it."""
    if request.param == "one folder":
        return open_store(str(tmp_path / "store")), open_store(str(tmp_path / "store"))
    opened: Machine = request.getfixturevalue("machine")
    return opened("one"), opened("one" if request.param == "one machine" else "two")


def together(*deeds: Callable[[], object]) -> list[threading.Thread]:
    threads = [threading.Thread(target=deed, daemon=True) for deed in deeds]
    for thread in threads:
        thread.start()
    return threads


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive(), "it waits for ever"


def planned() -> Planned:
    return toy_claimed.plan()


@pytest.mark.parametrize("fails", [False, True])
def test_two_workers_at_one_step_do_the_work_once(
    stores: tuple[Store, Store], waiting: Waiting, reused: Reused, fails: bool
) -> None:
    begun = threading.Event()

    def wait_for_the_other() -> None:
        begun.set()
        assert waiting.seen.wait(SECONDS), "nobody waits"
        if fails and runs == ["begins"]:
            raise StoreError("as a first try may")

    def execute(store: Store) -> None:
        try:
            planned().execute(store)
        except StoreError as error:
            runs.append(str(error))

    body[0] = wait_for_the_other
    first = together(lambda: execute(stores[0]))
    assert begun.wait(SECONDS)
    join(first + together(lambda: execute(stores[1])))
    if fails:
        assert sorted(runs) == ["as a first try may", "begins", "begins", "ends"]
    else:
        assert (runs, reused.n) == (["begins", "ends"], 1)
    assert len(waiting.messages) == 1
    assert f"process {os.getpid()}" in waiting.messages[0]
    assert all(store.verified(**planned().ref) for store in stores)


def test_a_forced_step_is_made_again_but_never_twice_at_once(stores: tuple[Store, Store], waiting: Waiting) -> None:
    body[0] = lambda: None if len(runs) > 1 else assert_waits(waiting)
    join(together(*[lambda store=store: planned().execute(store, force=True) for store in stores]))
    assert runs == ["begins", "ends", "begins", "ends"]


def assert_waits(waiting: Waiting) -> None:
    assert waiting.seen.wait(SECONDS)


def test_what_is_there_is_reused_without_a_write(s3: S3, s3_proxy: S3Proxy) -> None:
    store = open_store(s3.uri)
    planned().execute(store)
    before = len(s3_proxy.calls)
    planned().execute(store)
    assert {call.method for call in s3_proxy.calls[before:]} <= {"GET", "HEAD"}


def test_a_claim_leaves_nothing_behind(stores: tuple[Store, Store]) -> None:
    store = stores[0]
    with claimed(store, REF):
        assert list(store.cache.rglob("*.lock"))
    assert not list(store.cache.rglob("*.lock"))
    assert store.names("claims", "train") == []


def test_a_step_may_claim_another_while_it_is_made(stores: tuple[Store, Store]) -> None:
    with claimed(stores[0], REF), claimed(stores[1], Ref(step="evaluate", fingerprint="f" * 64)):
        pass


def test_many_workers_take_over_from_a_dead_one_one_at_a_time(s3: S3, machine: Machine) -> None:
    stores = [machine(f"machine {i}") for i in range(5)]
    stores[0].files.write(stores[0].path(CLAIM), b'{"owner": "x", "place": "y", "who": "gone", "expires": 1}')
    inside: list[int] = []
    most: list[int] = []

    def work(store: Store) -> None:
        with claimed(store, REF):
            inside.append(1)
            most.append(len(inside))
            store.names("steps")  # a moment in which another might come in
            inside.pop()

    join(together(*[lambda store=store: work(store) for store in stores]))
    assert most == [1] * 5


@pytest.mark.parametrize("before", [None, b'{"owner": "x", "place": "y", "who": "gone", "expires": 1}'])
def test_a_claim_that_another_took_a_moment_before_is_left_to_it(
    s3: S3, waiting: Waiting, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    store = open_store(s3.uri)
    theirs = b'{"owner": "z", "place": "z", "who": "quicker", "expires": 99999999999}'
    real, taken = S3Files.swap, []

    def swap(self: S3Files, path: str, content: bytes, etag: str | None) -> bool:
        if not taken:
            taken.append(path)
            store.files.write(path, theirs)
        return real(self, path, content, etag)

    def claim() -> None:
        with claimed(store, REF):
            runs.append("mine")

    if before:
        store.files.write(store.path(CLAIM), before)
    monkeypatch.setattr(S3Files, "swap", swap)
    threads = together(claim)
    assert waiting.seen.wait(SECONDS)
    assert (s3.objects()[CLAIM], runs) == (theirs, [])
    store.files.remove(store.path(CLAIM))
    join(threads)
    assert (taken, runs) == ([store.path(CLAIM)], ["mine"])


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b'{"foreign": 1}'])
def test_a_torn_or_foreign_claim_holds_nobody_up(s3: S3, torn: bytes) -> None:
    store = open_store(s3.uri)
    store.files.write(store.path(CLAIM), torn)
    with claimed(store, REF):
        assert b"expires" in s3.objects()[CLAIM]


HOLDER = """
import sys, threading
from tasks.artifacts import claims, lease
from tasks.artifacts.store import open_store
lease.TTL_SECONDS = float(sys.argv[2])
with claims.claimed(open_store(sys.argv[1]), {"step": "train", "fingerprint": "f" * 64}):
    print("mine", flush=True)
    threading.Event().wait()
"""


@pytest.mark.parametrize(
    ("stores", "ttl"), [("one folder", 3600.0), ("one machine", 3600.0), ("two machines", 1.0)], indirect=["stores"]
)
def test_a_killed_holder_is_followed_by_another(stores: tuple[Store, Store], ttl: float) -> None:
    env = os.environ | {"SSR_CACHE": str(stores[0].cache.parent)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, stores[0].uri, str(ttl)], env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
    finally:
        holder.kill()
        holder.wait()
    started = time.monotonic()
    with claimed(stores[1], REF):
        assert time.monotonic() - started < 60


def test_a_claim_is_renewed_while_its_holder_works(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, waiting: Waiting
) -> None:
    monkeypatch.setattr(lease, "TTL_SECONDS", 4.0)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    one, two = machine("one"), machine("two")

    def outlast_it() -> None:
        ends = time.monotonic() + 6
        assert waiting.seen.wait(SECONDS)
        while time.monotonic() < ends:
            assert runs == ["begins"]
            one.names("steps")

    body[0] = outlast_it
    first = together(lambda: planned().execute(one))
    while not one.names("claims", "toy_claimed"):
        pass
    join(first + together(lambda: planned().execute(two)))
    assert runs == ["begins", "ends"]


def test_a_holder_that_was_taken_for_dead_publishes_and_leaves_the_claim_to_the_other(
    s3: S3, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    store = open_store(s3.uri)
    path = store.path("claims", "toy_claimed", f"{planned().ref['fingerprint']}.json")
    theirs = b'{"owner": "x", "place": "y", "who": "other", "expires": 99999999999}'

    def sleep_too_long() -> None:
        while "has taken over the claim" not in caplog.text:
            store.files.write(path, theirs)

    body[0] = sleep_too_long
    planned().execute(store)
    assert store.verified(**planned().ref) is not None
    assert store.files.read(path) == theirs


def test_a_server_without_conditional_writes_is_good_enough(s3: S3, s3_proxy: S3Proxy, machine: Machine) -> None:
    for header in ("If-None-Match", "If-Match"):
        s3_proxy.refuse("NotImplemented", status=501, header=header)
    one, two = machine("one"), machine("two")
    with claimed(one, REF):
        held = s3.objects()[CLAIM]
        others = together(lambda: planned().execute(two))
        join(others)
        assert s3.objects()[CLAIM] == held
    assert CLAIM not in s3.objects()


def test_claims_work_while_one_call_in_five_fails(s3: S3, s3_proxy: S3Proxy, machine: Machine) -> None:
    stores = [machine(f"machine {i}") for i in range(3)]
    s3_proxy.fail(0.2, seed=3)
    join(together(*[lambda store=store: planned().execute(store) for store in stores]))
    assert runs == ["begins", "ends"]
    assert [name for name in s3.objects() if name.startswith("claims")] == []


def test_a_claim_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StoreError, match=r"cannot be claimed: .*Check the permissions"),
        claimed(open_store(str(tmp_path / "file" / "store")), REF),
    ):
        pytest.fail("there is no folder for it")


def test_where_a_file_system_has_no_locks_the_step_is_made_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    store = open_store(str(tmp_path / "store"))
    planned().execute(store)
    assert runs == ["begins", "ends"]
    assert "has no locks" in caplog.text


# --- while the store is away ---


@dataclass
class Clock:
    """Time for `tasks.artifacts.claims`, which passes only where a call says so."""

    now: float = 1_000.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Outage:
    """The claim of another worker on a store that is away for a while, when a call hangs until it is back.

    Attributes:
        renewals: When its holder renews it.
        dropped: When it lets go.
    """

    clock: Clock
    away: tuple[float, float]
    renewals: list[float]
    dropped: float = math.inf
    taken: float | None = None
    mine: bytes | None = None

    def etag(self, path: str) -> str:
        if self.away[0] <= self.clock.now < self.away[1]:
            self.clock.now = self.away[1]
        if self.mine is None and self.clock.now >= self.dropped:
            raise FileNotFoundError
        return str(self.taken or max(at for at in self.renewals if at <= self.clock.now))

    def read(self, path: str) -> bytes:
        expires = float(self.etag(path)) + lease.TTL_SECONDS
        return self.mine or json.dumps({"owner": "x", "place": "y", "who": "them", "expires": expires}).encode()

    def swap(self, path: str, content: bytes, etag: str | None) -> bool:
        self.taken, self.mine = self.clock.now, content
        return True


def a_lease(outage: Outage) -> lease.Lease:
    return lease.Lease(cast("S3Files", outage), CLAIM, "me", "here")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(lease, "time", found)
    monkeypatch.setattr(lease, "POLL_SECONDS", 2.0)
    return found


@pytest.mark.parametrize("minutes", [1.1, 1.5, 2])
def test_an_outage_does_not_take_the_claim_from_a_holder_that_lives(clock: Clock, minutes: float) -> None:
    back = 1_100 + 60 * minutes
    # Its last try before the store was back failed a moment ago: so it waits for as long as it may.
    renewals = [*range(1_000, 1_100, 15), *(back + lease.RENEW_SECONDS * n + 1 for n in range(1, 10))]
    outage = Outage(clock, (1_100, back), [float(at) for at in renewals], dropped=back + 130)
    a_lease(outage).take(REF)
    assert outage.taken == pytest.approx(back + 130, abs=3)


def test_after_an_outage_a_dead_holder_is_followed_soon(clock: Clock) -> None:
    outage = Outage(clock, (1_010, 1_100), [1_000.0])
    a_lease(outage).take(REF)
    assert outage.taken == pytest.approx(1_100 + lease.AFTER_OUTAGE_SECONDS, abs=3)


def test_without_an_outage_a_dead_holder_is_followed_when_its_claim_runs_out(clock: Clock) -> None:
    outage = Outage(clock, (0, 0), [1_000.0])
    a_lease(outage).take(REF)
    assert outage.taken == pytest.approx(1_000 + lease.TTL_SECONDS, abs=3)


def test_right_after_an_outage_nothing_is_free_that_seems_to_have_run_out(clock: Clock) -> None:
    outage = Outage(clock, (1_010, 1_100), [1_000.0])
    clock.now = 1_020
    assert not a_lease(outage).is_free()
    clock.now = 1_020
    assert not a_lease(outage).take_if_free()
    assert outage.taken is None
    assert a_lease(outage).is_free(), "the store answers at once now"


# --- without waiting ---


def test_what_another_is_at_is_not_taken_and_not_waited_for(stores: tuple[Store, Store]) -> None:
    assert not is_claimed(stores[1], REF)
    with claimed(stores[0], REF):
        assert is_claimed(stores[1], REF)
        with claimed_if_free(stores[1], REF) as free:
            assert not free
        assert is_claimed(stores[1], REF), "it took away the claim of the other"
    with claimed_if_free(stores[1], REF) as free:
        assert free
        assert is_claimed(stores[0], REF)
    assert not is_claimed(stores[0], REF)
    assert claims.claims(stores[0]) == []


def test_who_wants_it_meanwhile_waits_for_one_who_did_not(stores: tuple[Store, Store], waiting: Waiting) -> None:
    with claimed_if_free(stores[0], planned().ref) as free:
        assert free
        threads = together(lambda: planned().execute(stores[1]))
        assert waiting.seen.wait(SECONDS)
        assert runs == []
    join(threads)
    assert runs == ["begins", "ends"]


def test_the_claim_of_a_dead_holder_is_no_claim_and_is_gone_after_the_next(s3: S3, tmp_path: Path) -> None:
    for store in (open_store(s3.uri), open_store(str(tmp_path / "store"))):
        lock = store.cache / "claims" / "train" / f"{'f' * 64}.lock"
        lock.parent.mkdir(parents=True)
        lock.write_text("gone")
        if not isinstance(store, LocalStore):
            dead = b'{"owner": "x", "place": "y", "who": "gone", "expires": 1}'
            store.files.write(store.path(CLAIM), dead)
        assert claims.claims(store) == [REF]
        assert not is_claimed(store, REF)
        assert lock.exists()
        with claimed_if_free(store, REF) as free:
            assert free
        assert claims.claims(store) == []
    assert s3.objects() == {}


def test_where_a_file_system_has_no_locks_nobody_can_tell_whether_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    store = open_store(str(tmp_path / "store"))
    with claimed_if_free(store, REF) as free:
        assert not free
    assert is_claimed(store, REF)
