"""`ssr doctor`: what this machine has and lacks, and the command that fixes it."""

from __future__ import annotations

import os
import shutil
import sys
from importlib import metadata
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

import typer
from rich.markup import escape

from flows.cli.options import JsonOption, StoreOption, console, print_json
from tasks.engine_kinds import EngineKind, engine_kinds
from tasks.errors import SsrError

_PACKAGES = ("prefect", "torch", "transformers", "peft", "trl", "datasets", "lm_eval", "duckdb", "pyarrow", "s3fs")
_FREE_GB = 5


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        found: What is there, or what is missing.
        fix: The command, or the deed, that fixes it; empty where `found` says it.
        required: Whether no run works without it.
    """

    what: str
    ok: bool
    found: str
    fix: str = ""
    required: bool = True


def doctor(store: StoreOption = ".ssr", as_json: JsonOption = False) -> None:
    """Say what is missing on this machine, and the command that fixes it."""
    findings = examine(store)
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        for finding in findings:
            mark = (
                "[green]ok[/]     " if finding.ok else "[red]missing[/]" if finding.required else "[yellow]absent[/] "
            )
            fix = f"  ->  {finding.fix}" if finding.fix and not finding.ok else ""
            console.print(f"{mark} {finding.what:<22} {escape(finding.found + fix)}", soft_wrap=True)
    if any(finding.required and not finding.ok for finding in findings):
        raise typer.Exit(1)


def examine(store: str) -> list[Finding]:
    """What is there, and what is missing, of everything that a run on this machine may need."""
    from tasks.models import LAB_MODEL
    from tasks.running.process import count_gpus

    version, n_gpus, server = sys.version_info[:3], count_gpus(), os.environ.get("PREFECT_API_URL")
    is_built, is_online = (LAB_MODEL / "model.safetensors").exists(), os.environ.get("HF_HUB_OFFLINE") != "1"
    hub = "online" if is_online else "HF_HUB_OFFLINE=1: only what is cached"
    serving = "prefect server start, then set PREFECT_API_URL"
    return [
        Finding("python", version >= (3, 11), ".".join(map(str, version)), "install Python 3.11 or newer"),
        *(_package(name) for name in _PACKAGES),
        _pins(),
        Finding("lab model", is_built, "shipped" if is_built else "not built", "ssr lab build", required=False),
        _store(store),
        _disk(store),
        Finding("NVIDIA GPU", n_gpus > 0, f"{n_gpus} visible", "none needed for small models", required=False),
        *(_environment(kind) for kind in engine_kinds() if kind.finds_environment),
        Finding("prefect server", bool(server), server or "none set: each run starts its own", serving, required=False),
        Finding("Hugging Face Hub", is_online, hub, "unset HF_HUB_OFFLINE", required=False),
    ]


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", "make install")


def _pins() -> Finding:
    """FastAPI and SQLAlchemy must be old enough for this Prefect: newer ones break its server without an error."""
    found, wrong = [], False
    for name, limit in (("fastapi", (0, 151)), ("sqlalchemy", (2, 1))):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(f"{name} {version}")
        wrong |= tuple(int(part) for part in version.split(".")[:2]) >= limit
    return Finding("prefect's pins", not wrong, ", ".join(found), "pip install -c constraints.txt -e .")


def _store(uri: str) -> Finding:
    from tasks.artifacts.store import open_store

    try:
        open_store(uri).preflight()
    except SsrError as error:
        return Finding("store", False, str(error), "choose another with --store or SSR_STORE")
    return Finding("store", True, f"{uri} can be written")


def _disk(store: str) -> Finding:
    place = Path(store).absolute() if "://" not in store else Path.home()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    return Finding("disk", free > _FREE_GB, f"{free:.0f} GB free", "free space, or ssr gc --yes", required=False)


def _environment(kind: EngineKind) -> Finding:
    """The environment that a kind of engine needs beside the project's own."""
    assert kind.finds_environment is not None  # examine asks such kinds only
    try:
        found = resolve_name(kind.finds_environment)()
    except SsrError as error:
        return Finding(f"engine {kind.name}", False, str(error), required=False)
    return Finding(f"engine {kind.name}", True, f"its environment: {found}")
