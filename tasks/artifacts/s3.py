"""Files on S3, with retries while the server fails, and an error that says what to do where a retry cannot help.

Retried with growing random pauses: by botocore a request (5xx, 429, a cut connection), by s3fs a body that broke off,
and by `_patiently` the whole operation while the server does not answer. An error that a retry cannot help (no such
bucket, no permission) is raised at once. After `PATIENCE_SECONDS` the operation is a StoreError.

Not covered: what the files mean (`tasks.artifacts.store`), and other remote file systems.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import fsspec
import tenacity

from tasks.artifacts.digest import file_digest
from tasks.artifacts.files import StoredFile
from tasks.errors import SsrError, StoreError

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 120.0  # while a step runs: a server restarts in less
FIRST_PATIENCE_SECONDS = 8.0  # in the preflight: a mistyped address must be reported soon
_REQUEST_TRIES = 4  # by botocore, within each of our own tries
_CHUNK = 16 << 20  # bytes of a piece of a file; four pieces at once take 64 MiB of memory
_CHUNKS_AT_ONCE = 4
_FILES_AT_ONCE = 4
# Codes of 400 and 409 that mean: the request arrived damaged, or at a bad moment. A retry may help.
_TRANSIENT = {
    "BadDigest", "ConditionalRequestConflict", "IncompleteBody", "InternalError", "OperationAborted", "RequestTimeout",
    "SlowDown", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch",
}  # fmt: skip
_BAD_CREDENTIALS = {
    "AuthorizationHeaderMalformed", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "NoCredentialsError",
    "PartialCredentialsError", "SignatureDoesNotMatch", "TokenRefreshRequired",
}  # fmt: skip

T = TypeVar("T")


def open_s3(uri: str, *, in_a_hurry: bool = False) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of an `s3://bucket/prefix` and the path within it. Does not connect yet.

    Args:
        in_a_hurry: For a preflight: gives up on a silent server in seconds.
    """
    fs, root = fsspec.core.url_to_fs(
        uri,
        use_listings_cache=False,  # other machines write here, too
        # fsspec caches instances by their arguments, so the endpoint must be one of them.
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        default_block_size=_CHUNK,
        max_concurrency=_CHUNKS_AT_ONCE,
        config_kwargs={
            "connect_timeout": 3 if in_a_hurry else 5,
            "read_timeout": 5 if in_a_hurry else 20,
            "retries": {"mode": "standard", "total_max_attempts": 2 if in_a_hurry else _REQUEST_TRIES},
            "max_pool_connections": 32,
        },
    )
    fs.retries = 1 if in_a_hurry else 2  # they multiply with the retries of botocore
    return fs, root.rstrip("/")


@dataclass(frozen=True)
class S3Files:
    """The operations of a store on S3, by path as the file system knows it.

    Each raises FileNotFoundError only if the server said that there is no such object, and StoreError for everything
    else.

    Attributes:
        uri: Of the store, for messages.
        patience: Seconds; None for `PATIENCE_SECONDS`.
    """

    uri: str
    fs: fsspec.AbstractFileSystem
    patience: float | None = None

    @property
    def is_aws(self) -> bool:
        """Whether the objects are on Amazon's servers."""
        return not self.fs.endpoint_url

    def in_a_hurry(self) -> S3Files:
        """The same files for a preflight: with them, a silent server is given up within seconds."""
        fs, _ = open_s3(self.uri, in_a_hurry=True)
        return S3Files(self.uri, fs, FIRST_PATIENCE_SECONDS)

    def read(self, path: str) -> bytes:
        """The content of an object; FileNotFoundError if it is not there."""
        # Without concurrency s3fs does not ask for the size first.
        return bytes(self._do("read", path, lambda: self.fs.cat_file(path, max_concurrency=1)))

    def write(self, path: str, content: bytes) -> None:
        """Write or replace an object."""
        self._do("write", path, lambda: self.fs.pipe_file(path, content))

    def swap(self, path: str, content: bytes, etag: str | None) -> bool:
        """Write if the object still has this ETag or, with None, still does not exist; whether it was written.

        Read the object afterwards to be sure. A server without conditional writes always writes, so True proves
        nothing. Neither does False: if an answer got lost, the retry finds what the first try wrote.
        """
        condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}

        def write() -> bool:
            try:
                self.fs.pipe_file(path, content, **condition)
            except Exception as error:
                status, code = _answer(error)
                if code == "NotImplemented":
                    self.fs.pipe_file(path, content)
                elif status == 412 or (etag and code == "NoSuchKey"):
                    return False
                else:
                    raise
            return True

        return self._do("write", path, write)

    def upload(self, source: Path, path: str) -> None:
        """Copy a local file to an object, and compare their sizes. S3 itself compares the checksum sent along."""

        def put() -> None:
            self.fs.put_file(str(source), path, chunksize=_CHUNK)
            if (size := self.fs.info(path)["size"]) != source.stat().st_size:
                raise ConnectionError(f"{size} of {source.stat().st_size} bytes arrived")

        self._do("write", path, put)

    def download(self, path: str, target: Path, *, sha256: str | None = None) -> None:
        """Copy an object to a local file, which appears whole or not at all.

        Raises:
            ValueError: The content does not have the digest `sha256`.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            self._do("read", path, lambda: self.fs.get_file(path, str(part)))
            if sha256 and file_digest(part) != sha256:
                raise ValueError(f"{path}: not the content that was written")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def etag(self, path: str) -> str:
        """The ETag of an object, which changes with its content; FileNotFoundError if it is not there."""
        return str(self._do("read", path, lambda: self.fs.info(path))["ETag"])

    def names(self, path: str) -> list[str]:
        """The names directly below a folder; none if there is no such folder."""
        try:
            found = self._do("list", path, lambda: self.fs.ls(path, detail=True, refresh=True))
        except FileNotFoundError:
            return []
        names = [entry["name"].rstrip("/") for entry in found]
        # Some tools create an empty object for a folder.
        return [name.rsplit("/", 1)[-1] for name in names if name != path]

    def files(self, path: str) -> list[StoredFile]:
        """Every file below a folder, by its name relative to it; none if there is no such folder."""
        found = self._do("list", path, lambda: self.fs.find(path, detail=True))
        return [
            StoredFile(name.removeprefix(f"{path}/"), entry["size"], entry["LastModified"].timestamp())
            for name, entry in found.items()
        ]

    def remove(self, path: str) -> None:
        """Remove an object; it need not be there."""
        self._do("remove", path, lambda: self.fs.rm_file(path))

    def remove_folder(self, path: str) -> None:
        """Remove all objects below a folder; it need not be there."""
        try:
            self._do("remove", path, lambda: self.fs.rm(path, recursive=True))
        except FileNotFoundError:
            return

    def _do(self, verb: str, path: str, call: Callable[[], T]) -> T:
        patience = PATIENCE_SECONDS if self.patience is None else self.patience
        try:
            return _patiently(call, patience)
        except Exception as error:
            if isinstance(error, FileNotFoundError) and _answer(error)[1] != "NoSuchBucket":
                raise
            raise StoreError(_error_message(self.uri, f"{verb} {path}", error, patience)) from error


def at_once(do: Callable[[T], object], things: Iterable[T]) -> None:
    """Call `do` for several things at once, e.g. to transfer files; when all have ended, raise the first error."""
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        for _ in pool.map(do, things):
            pass


def _patiently(call: Callable[[], T], seconds: float) -> T:
    """Retry a call while its error is transient and time is left; then raise its last error."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_transient), stop=tenacity.stop_before_delay(seconds),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=10), reraise=True,
        before_sleep=tenacity.before_sleep_log(logger, logging.INFO),
    )  # fmt: skip
    return retrying(call)


def _is_transient(error: BaseException) -> bool:
    """Whether a retry may help."""
    import aiohttp
    from botocore import exceptions, parsers  # type: ignore[import-untyped]  # has no types

    status, code = _answer(error)
    if status:
        return (status >= 500 and status != 501) or status in (408, 429) or code in _TRANSIENT
    if isinstance(error, exceptions.SSLError):
        return False
    return isinstance(
        error,
        exceptions.HTTPClientError | exceptions.ConnectionError | exceptions.IncompleteReadError
        | exceptions.ChecksumError | parsers.ResponseParserError | aiohttp.ClientError | ConnectionError | TimeoutError,
    )  # fmt: skip


def _answer(error: BaseException) -> tuple[int, str]:
    """HTTP status and S3's code of the server's answer; 0 and "" if there was none. s3fs keeps it as the cause."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status), str(response.get("Error", {}).get("Code", ""))
    return 0, ""


def _error_message(uri: str, action: str, error: BaseException, seconds: float) -> str:
    """What went wrong on S3 while `action` was tried for `seconds`, and what to do about it."""
    if isinstance(error, SsrError):
        return str(error)
    status, code = _answer(error)
    code = code or type(error).__name__
    reason = f"{code}: {error}".strip().rstrip(":")
    if code == "NoSuchBucket":
        return f"{uri}: there is no such bucket. Create it, or choose another place with --store or SSR_STORE."
    if code in _BAD_CREDENTIALS:
        return (
            f"{uri}: no valid credentials ({reason}). Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and "
            "AWS_SESSION_TOKEN where they are temporary; or choose another place with --store or SSR_STORE."
        )
    if status == 403:
        return (
            f"{uri}: no permission to {action} ({reason}). The credentials must allow to read, write, list and remove "
            "objects below it: s3:GetObject, s3:PutObject, s3:ListBucket, s3:DeleteObject."
        )
    if _is_transient(error):
        return (
            f"{uri}: could not {action}, tried for {seconds:.0f} s ({reason}). Check that the server of "
            "AWS_ENDPOINT_URL is up and can be reached; then the same command goes on from here."
        )
    return f"{uri}: could not {action}: {reason}. Check the address and the credentials."
