"""Process groups of the servers that a step starts: how one is ended, and how one that a killed step left is found.

Each running server has a record in the cache folder, which is removed when the server has ended. A record whose owner
is gone is stale: the next start ends what is left of that server.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tasks.artifacts.store import cache_folder

logger = logging.getLogger(__name__)

GRACE_SECONDS = 15.0  # from the request to end, and from the kill, until the group is looked at as stuck


@dataclass(frozen=True)
class ServerRecord:
    """What a later start must know to end a server that was left behind.

    Attributes:
        pid: The server's first process, which leads its process group.
        began: When that process started, in seconds after boot: the time of day of a start moves with the clock.
        python: The interpreter that all processes of the server run.
        owner: The process that started the server.
        owner_began: When the owner started, as `began`.
    """

    pid: int
    began: float
    python: str
    owner: int
    owner_began: float


def end_group(pgid: int) -> None:
    """End a process group, first by SIGTERM, then by SIGKILL; return when it is gone, or nothing has helped."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pgid, number)
        deadline = time.monotonic() + GRACE_SECONDS
        while members(pgid):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        else:
            return
    # A process stuck in a driver gets no signal. Waiting for it would hang this process, too.
    logger.warning("process group %d does not end (left: %s)", pgid, members(pgid))


def members(pgid: int) -> list[psutil.Process]:
    """The living processes of a group, without zombies."""
    found = []
    for process in psutil.process_iter(["status", "exe"]):
        with suppress(ProcessLookupError):
            if os.getpgid(process.pid) == pgid and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def record_server(pid: int) -> None:
    """Write the record of a server that this process has started."""
    record = ServerRecord(pid, _began(pid), psutil.Process(pid).exe(), os.getpid(), _began(os.getpid()))
    _records().mkdir(parents=True, exist_ok=True)
    # Replaced in one piece: another start reads the records, and removes one that it cannot read.
    written = _records() / f"{pid}.new"
    written.write_text(json.dumps(asdict(record)))
    written.replace(_records() / f"{pid}.json")


def remove_record(pid: int) -> None:
    """Remove the record of a server that has ended."""
    (_records() / f"{pid}.json").unlink(missing_ok=True)


def end_orphans() -> list[int]:
    """End the servers whose owner was killed before it could; returns their process ids."""
    ended = []
    for path in sorted(_records().glob("*.json")):
        try:
            record = ServerRecord(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            path.unlink(missing_ok=True)
            continue
        if _owner_runs(record):
            continue
        if _server_runs(record):
            logger.warning("ending a vLLM server that a killed run left behind (process group %d)", record.pid)
            end_group(record.pid)
            ended.append(record.pid)
        path.unlink(missing_ok=True)
    return ended


def _records() -> Path:
    return cache_folder() / "servers"


def _server_runs(record: ServerRecord) -> bool:
    """Whether any process of the server runs; its leader may be gone, or a zombie, while its workers run.

    Another process may have the leader's number by now. A group whose leader is gone must at least run the same
    interpreter.
    """
    try:
        is_same = abs(_began(record.pid) - record.began) < 1
    except psutil.NoSuchProcess:
        is_same = True  # the number of a group is given to another process only when the whole group is gone
    return is_same and any(process.info["exe"] == record.python for process in members(record.pid))


def _owner_runs(record: ServerRecord) -> bool:
    try:
        is_same = abs(_began(record.owner) - record.owner_began) < 1
        return is_same and psutil.Process(record.owner).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _began(pid: int) -> float:
    return float(psutil.Process(pid).create_time() - psutil.boot_time())
