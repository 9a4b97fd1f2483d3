"""An S3 server for tests, and a proxy that spoils its answers. In a test module: `pytest_plugins = ["s3"]`.

def test_something(s3):                  # a bucket of its own on moto's server, which runs as a process
    open_store(s3.uri)                   # the environment says where it is, also to processes that are started

def test_it_fails_in_passing(s3, s3_proxy):
    s3_proxy.fail(0.05)                  # the environment now leads through the proxy
    s3_proxy.away(20)
    ...
    s3.objects()                         # past the proxy: what is really there
"""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import s3fs
import yarl
from aiohttp import web

SECRET = "a-secret-that-must-not-leak"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
# Ends with its standard input, so also when the tests are killed.
_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()
"""
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}


@dataclass(frozen=True)
class S3:
    """A bucket on an S3 server.

    Attributes:
        endpoint: The server itself, not the proxy.
        bucket: Of this test alone, empty at its start.
    """

    endpoint: str
    bucket: str
    secret: str = SECRET

    @property
    def uri(self) -> str:
        """The address of a store in it."""
        return f"s3://{self.bucket}/team/ssr"

    @property
    def fs(self) -> s3fs.S3FileSystem:
        """Straight to the server."""
        return s3fs.S3FileSystem(endpoint_url=self.endpoint, key="tester", secret=SECRET, use_listings_cache=False)

    def objects(self) -> dict[str, bytes]:
        """Everything in the store, by its name below the store."""
        fs, root = self.fs, self.uri.removeprefix("s3://")
        return {name.removeprefix(f"{root}/"): fs.cat_file(name) for name in fs.find(root)}


@pytest.fixture(scope="session")
def moto_server() -> Iterator[str]:
    """The address of moto's server, in a process of its own, so that a busy test does not hold it up."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    yield process.stdout.readline().strip()
    process.stdin.close()
    process.wait(timeout=30)


@pytest.fixture
def s3(moto_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3]:
    """An empty bucket, credentials and endpoint in the environment, and a cache folder of this test's own."""
    found = S3(moto_server, f"test-{uuid.uuid4().hex[:12]}")
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": moto_server, "SSR_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    found.fs.mkdir(found.bucket)
    yield found
    found.fs.rm(found.bucket, recursive=True)


@pytest.fixture(scope="session")
def _proxy(moto_server: str) -> Iterator[S3Proxy]:
    """One for all tests: a client for a new address takes a second to make."""
    proxy = S3Proxy(moto_server)
    yield proxy
    proxy.close()


@pytest.fixture
def s3_proxy(s3: S3, _proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    """A proxy before the server of `s3`, without faults so far; the environment leads to it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", _proxy.url)
    _proxy.calls.clear()
    yield _proxy
    _proxy.heal()
    _proxy.back()


class Call(NamedTuple):
    """A request at the proxy. `outcome`: passed, the status it made up, reset, lost, cut upload or cut download."""

    method: str
    path: str
    outcome: str


class S3Proxy:
    """An HTTP proxy that fails on request; it runs in a thread and forwards everything else unchanged, Host included.

    Faults add up; `heal` ends all of them. `only` limits a fault to requests whose "METHOD path" contains it, e.g.
    "PUT /" or "manifest.json".

    Attributes:
        url: Where it listens.
        calls: What came, in order.
    """

    def __init__(self, target: str) -> None:
        self.calls: list[Call] = []
        self._target = target
        self.heal()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="S3 proxy", daemon=True)
        self._thread.start()
        self._port = 0
        self._do(self._start())
        self.url = f"http://127.0.0.1:{self._port}"

    # --- faults ---

    def fail(self, share: float, *, seed: int = 0, only: str = "") -> None:
        """Answer this share of the calls with a 500, a 503, a reset connection, or do them and lose the answer."""
        self._share, self._random, self._fail_only = share, random.Random(seed), only

    def slow(self, seconds: float) -> None:
        """Keep each call waiting."""
        self._delay = seconds

    def cut(self, *, uploads: int = 0, downloads: int = 0, only: str = "") -> None:
        """Break off the next so many uploads or downloads half way; half of an upload reaches the server."""
        self._cuts, self._cut_only = {"PUT": uploads, "GET": downloads}, only

    def stand_still_after(self, upload: str) -> None:
        """Once an upload has passed in whose path this expression is found, keep every later upload waiting."""
        self._last_upload = upload

    def refuse(self, code: str, *, status: int = 403, only: str = "", header: str = "") -> None:
        """Answer with this error of S3, e.g. AccessDenied; with `header`, only requests that have it."""
        self._refusals.append((code, status, only, header))

    def heal(self) -> None:
        """End every fault but an absence."""
        self._share, self._random, self._fail_only = 0.0, random.Random(0), ""
        self._delay = 0.0
        self._cuts, self._cut_only = {"PUT": 0, "GET": 0}, ""
        self._refusals: list[tuple[str, int, str, str]] = []
        self._last_upload, self._stands_still = "", False

    def away(self, seconds: float | None = None) -> None:
        """Drop all connections and refuse new ones, for some seconds or until `back`."""
        self._do(self._leave())
        if seconds is not None:
            self._loop.call_soon_threadsafe(
                self._loop.call_later, seconds, lambda: self._loop.create_task(self._listen())
            )

    def back(self) -> None:
        """Listen again, if it does not."""
        self._do(self._listen())

    def close(self) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # --- in the loop's thread ---

    def _do(self, deed: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(deed, self._loop).result(timeout=60)

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        self._client = aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=0))
        await self._listen()

    async def _listen(self) -> None:
        if self._runner.sites:
            return
        await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()
        self._port = self._runner.addresses[-1][1]

    async def _leave(self) -> None:
        for site in list(self._runner.sites):
            await site.stop()
        assert self._runner.server is not None
        for connection in self._runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    async def _stop(self) -> None:
        await self._leave()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:  # calls that are kept waiting
            task.cancel()
        await self._runner.cleanup()
        await self._client.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(self._delay)
        what = f"{request.method} {request.raw_path}"
        if request.method in {"PUT", "POST"}:
            while self._stands_still:
                await asyncio.sleep(0.1)
            self._stands_still = bool(self._last_upload and re.search(self._last_upload, request.path))
        for code, status, only, header in self._refusals:
            if only in what and (not header or header in request.headers):
                await request.read()
                return self._error(request, status, code)
        if self._fail_only in what and self._random.random() < self._share:
            fault = self._random.choice(("500", "503", "reset", "lost"))
            if fault == "reset":
                return self._drop(request, "reset")
            if fault == "lost":
                await self._forward(request, cut=False)
                return self._drop(request, "lost")
            await request.read()
            return self._error(request, int(fault), "InternalError" if fault == "500" else "SlowDown")
        cut = self._cut_only in what and self._cuts.get(request.method, 0) > 0
        if cut:
            self._cuts[request.method] -= 1
        if cut and request.method == "PUT":
            await self._forward_half(request)
            return self._drop(request, "cut upload")
        self._note(request, "cut download" if cut else "passed")
        return await self._forward(request, cut=cut)

    async def _forward(self, request: web.Request, *, cut: bool) -> web.StreamResponse:
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP]
        async with self._client.request(
            request.method, yarl.URL(self._target + request.raw_path, encoded=True), headers=headers,
            data=await request.read(), allow_redirects=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        ) as answer:  # fmt: skip
            body = await answer.read()
        kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP]
        if not cut:
            if request.method == "HEAD":  # its Content-Length is that of the object
                return web.Response(status=answer.status, headers=kept)
            kept = [(name, value) for name, value in kept if name.lower() != "content-length"]
            return web.Response(status=answer.status, headers=kept, body=body)
        half = web.StreamResponse(status=answer.status, headers=kept)
        with suppress(ConnectionError):  # the other side closed first
            await half.prepare(request)
            await half.write(body[: len(body) // 2])
        if request.transport is not None:
            request.transport.close()
        return half

    async def _forward_half(self, request: web.Request) -> None:
        body = await request.read()
        url = yarl.URL(self._target)
        _, writer = await asyncio.open_connection(url.host, url.port)
        lines = [f"{request.method} {request.raw_path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body[: len(body) // 2])
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    def _drop(self, request: web.Request, outcome: str) -> web.StreamResponse:
        self._note(request, outcome)
        if request.transport is not None:
            request.transport.abort()
        return web.Response()  # to nobody

    def _error(self, request: web.Request, status: int, code: str) -> web.Response:
        self._note(request, str(status))
        body = "" if request.method == "HEAD" else f"<Error><Code>{code}</Code><Message>as asked</Message></Error>"
        return web.Response(status=status, text=body, content_type="application/xml")

    def _note(self, request: web.Request, outcome: str) -> None:
        self.calls.append(Call(request.method, request.raw_path, outcome))
