"""Real services for tests: PostgreSQL, a Prefect server on it, and process workers, each ended with its test.

Each runs in a process group of its own on a free port of 127.0.0.1, with its files and log in a temporary folder.
Don't put an `__init__.py` here: `tests/` is on the import path, and the package would shadow Python's `platform`.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import psutil

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

ROOT = Path(__file__).parents[2]
_OFFLINE = {
    "HF_HUB_OFFLINE": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1",
    "PREFECT_LOGGING_COLORS": "false", "NO_COLOR": "1",
}  # fmt: skip
# So that a test waits for seconds where a production server is in no hurry.
_QUICK_SERVER = {
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_MIN_RUNS": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_MAX_RUNS": "3",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "2",
    "PREFECT_SERVER_SERVICES_FOREMAN_LOOP_SECONDS": "5",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_LOOP_SECONDS": "5",
    "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT2S",
}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


PATIENCE_SECONDS = 600.0  # with everything that the tests wait for: the machine may be busy with other tests


def wait_for(what: str, found: Callable[[], Any], *, every: float = 0.1) -> Any:  # Any: what is found
    """Ask until the answer is true; the error says what was waited for."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (answer := found()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {PATIENCE_SECONDS:.0f} s")
        time.sleep(every)
    return answer


@contextmanager
def postgres() -> Iterator[str]:
    """A new, empty PostgreSQL; gives the URL that Prefect's server takes."""
    folder = Path(tempfile.mkdtemp(prefix="ssr-postgres-"))
    # PostgreSQL refuses root.
    account = _unprivileged() if os.getuid() == 0 else None
    run_as: dict[str, Any] = {"cwd": folder}  # Any: keyword arguments of Popen
    if account:
        os.chown(folder, account.pw_uid, account.pw_gid)
        run_as |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    data, port, log = folder / "data", free_port(), folder / "postgres.log"
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    try:
        made = subprocess.run(
            [_postgres_binary("initdb"), "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8",
             "--locale=C"],
            capture_output=True, text=True, check=False, **run_as,
        )  # fmt: skip
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stderr}")
        settings = {
            "listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": "", "fsync": "off",
            "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200",
        }  # fmt: skip
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [_postgres_binary("postgres"), "-D", str(data), *flags]
        # SIGINT: PostgreSQL's fast shutdown, which does not wait for its clients.
        with _running(command, log, stop=signal.SIGINT, **run_as) as process:
            wait_for("PostgreSQL", lambda: _alive(process, log) and _answers(url))
            yield url.replace("postgresql://", "postgresql+asyncpg://")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _postgres_binary(name: str) -> str:
    found = shutil.which(name)
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    if not found and not debian:
        raise FileNotFoundError(f"{name}: PostgreSQL is not installed. On Debian: apt-get install postgresql")
    return found or str(debian[-1])


def _unprivileged() -> pwd.struct_passwd:
    known = {account.pw_name: account for account in pwd.getpwall()}
    return known.get("postgres") or known["nobody"]


def _answers(url: str) -> bool:
    async def connect() -> None:
        await (await asyncpg.connect(url, timeout=5)).close()

    with suppress(OSError, asyncpg.PostgresError, TimeoutError):
        asyncio.run(connect())
        return True
    return False


@dataclass(frozen=True)
class Server:
    """A running Prefect server.

    Attributes:
        env: What a process needs to talk to it, and to stay off the network and out of the user's Prefect home.
    """

    api_url: str
    ui_url: str
    home: Path
    log: Path
    env: dict[str, str] = field(repr=False)

    def client(self) -> SyncPrefectClient:
        """Prefect's own client of this server."""
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(self.api_url)

    def ask(self, path: str, body: Any = None, method: str | None = None) -> Any:  # Any: JSON values
        """One call of the REST API; POST with a body, else GET."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.api_url}{path}", data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if content else None


@contextmanager
def prefect_server(database_url: str | None = None, **settings: str) -> Iterator[Server]:
    """A Prefect server with its UI, quick in everything that it does in loops; without a database URL on SQLite."""
    home = Path(tempfile.mkdtemp(prefix="ssr-prefect-"))
    port, log = free_port(), home / "server.log"
    ui_url = f"http://127.0.0.1:{port}"
    # PREFECT_SERVER_API_PORT, because with --port the UI still calls port 4200.
    env = {
        **_clean_environment(), **_QUICK_SERVER, "PREFECT_HOME": str(home), "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port), **settings,
    }  # fmt: skip
    if database_url:
        env["PREFECT_API_DATABASE_CONNECTION_URL"] = database_url
    client_env = {**_OFFLINE, "PREFECT_HOME": str(home / "client"), "PREFECT_API_URL": f"{ui_url}/api"}
    server = Server(f"{ui_url}/api", ui_url, home, log, client_env)
    try:
        with _running([sys.executable, "-m", "prefect", "server", "start"], log, env=env, cwd=home) as process:
            wait_for("Prefect's server", lambda: _alive(process, log) and _healthy(server))
            yield server
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _healthy(server: Server) -> bool:
    with suppress(urllib.error.URLError, OSError):
        return bool(server.ask("/health"))
    return False


@dataclass(frozen=True)
class Worker:
    """A running process worker."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """End the worker and all that it has started, as a machine that loses its power does: kill -9."""
        _end(self.process)


@contextmanager
def worker(
    server: Server, pool: str, *, name: str, env: Mapping[str, str] | None = None, queue: str = "",
    log: Path | None = None,
) -> Iterator[Worker]:  # fmt: skip
    """A process worker of a pool that exists, once the server has heard from it.

    Args:
        queue: Takes runs from this one alone.
        log: Where its log stays; None: nowhere.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"ssr-worker-{name}-"))
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", name]
    command += ["--work-queue", queue] if queue else []
    own = {
        **_clean_environment(), **server.env, "PREFECT_HOME": str(folder), "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_WORKER_HEARTBEAT_SECONDS": "5", **(env or {}),
    }  # fmt: skip
    log = log or folder / "worker.log"
    try:
        with _running(command, log, env=own, cwd=folder) as process:

            def online() -> bool:
                known = server.ask(f"/work_pools/{pool}/workers/filter", {})
                return _alive(process, log) and any(w["name"] == name and w["status"] == "ONLINE" for w in known)

            wait_for(f"worker {name}", online)
            yield Worker(name, process, log)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _clean_environment() -> dict[str, str]:
    """Ours without Prefect's settings, which would reach into the service, and without access to any store."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "AWS_"))} | _OFFLINE


@contextmanager
def _running(
    command: list[str], log: Path, *, stop: signal.Signals = signal.SIGTERM, **how: Any
) -> Iterator[subprocess.Popen[bytes]]:  # Any: keyword arguments of Popen
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, **how)
    try:
        yield process
    finally:
        _end(process, stop)


def _end(process: subprocess.Popen[bytes], first: signal.Signals | None = None) -> None:
    """End the process, its group, and whatever of its descendants has left the group; `first` asks it politely."""
    descendants: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        descendants = psutil.Process(process.pid).children(recursive=True)
    if first:
        process.send_signal(first)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for descendant in descendants:
        with suppress(psutil.NoSuchProcess):
            descendant.kill()
    process.wait()


def _alive(process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"ended at once with {process.returncode}: {log.read_text(errors='replace')[-3000:]}")
    return True
