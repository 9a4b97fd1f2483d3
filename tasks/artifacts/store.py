"""Artifacts by what made them: a folder per (step, fingerprint), on a local disk or on S3.

    <store>/steps/<step>/<fingerprint>/manifest.json    written last: without it, the artifact does not exist
    <store>/steps/promoted/<digest>/                    copies of promoted adapters, see `flows.promotion.copies`
    <store>/rows/...                                    see `tasks.artifacts.paid_rows`
    <store>/items/...                                   see `tasks.evaluate.benchmark_items`
    <store>/work/<step>/<fingerprint>/                  checkpoints of an unfinished step: `tasks.artifacts.unfinished`
    <store>/claims/<step>/<fingerprint>...              who is making it right now, see `tasks.artifacts.claims`
    <store>/runs/<run_id>.json                          which artifacts a run used
    <store>/current/<recipe>...                         which adapter is promoted, see `flows.promotion.advance`
    <store>/prefect/                                    Prefect's records of cached tasks, see `flows.execution.runner`

Publishing is atomic: a local artifact is renamed into place whole, a remote one gets its manifest object last. Two
workers that publish the same step write the same names, and the last manifest wins. No pickle is ever read.
"""

from __future__ import annotations

import os
from pathlib import Path

from tasks.artifacts.base_store import Store
from tasks.artifacts.digest import digest_of
from tasks.artifacts.files import LocalFiles
from tasks.artifacts.local_store import LocalStore
from tasks.artifacts.manifest import FileEntry, Manifest, Ref, describe_files
from tasks.artifacts.s3 import S3Files, open_s3
from tasks.artifacts.s3_store import S3Store
from tasks.errors import StoreError

__all__ = ["FileEntry", "Manifest", "Ref", "Store", "cache_folder", "describe_files", "open_store"]


def open_store(uri: str) -> Store:
    """Open a store at a folder or an `s3://bucket/prefix`.

    Credentials and endpoint of S3 come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so on).

    Raises:
        StoreError: The address cannot be understood. Whether it can be written, `preflight` tells.
    """
    protocol, _, place = uri.rpartition("://")
    uri = uri.rstrip("/") or "/"
    if protocol in ("", "file"):
        folder = Path(place).expanduser().absolute()
        return LocalStore(uri, str(folder), folder, LocalFiles())
    if protocol != "s3" or not place.strip("/"):
        raise StoreError(f"{uri}: not an address of a store. It is a folder or s3://bucket/prefix.")
    fs, root = open_s3(uri)
    return S3Store(uri, root, cache_folder() / digest_of(uri)[:16], S3Files(uri, fs))


def cache_folder() -> Path:
    """Where this machine keeps copies of remote artifacts: SSR_CACHE, else the user's cache folder."""
    base = os.environ.get("SSR_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "ssr")
    return Path(base).expanduser().absolute()
