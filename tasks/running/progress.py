"""Where a step says how far it is, without knowing who listens: the terminal, or an artifact in the Prefect UI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Told by a running step how far it is."""

    def __call__(self, done: int, total: int, detail: str = "") -> None:
        """Say that `done` of `total` units are finished; `detail` is a short text such as a speed."""


def silent(done: int, total: int, detail: str = "") -> None:
    """A listener that does nothing."""


class Listener(Protocol):
    """Told by the runner what happens to each step; `label` names the step within its run."""

    def started(self, label: str) -> None: ...
    def progress(self, label: str, done: int, total: int, detail: str) -> None: ...
    def finished(self, label: str, counts: dict[str, int], seconds: float) -> None: ...
    def reused(self, label: str, counts: dict[str, int]) -> None: ...


_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """Tell this listener of every step run in this process from now on."""
    _listeners.append(listener)


def unlisten(listener: Listener) -> None:
    _listeners.remove(listener)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell this listener of every step run in this process inside the block."""
    listen(listener)
    try:
        yield
    finally:
        unlisten(listener)


def listeners() -> tuple[Listener, ...]:
    return tuple(_listeners)
