"""Steps report their progress here. Listeners show it, on the terminal or in the Prefect UI."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """What the body of a step calls to report its progress."""

    def __call__(self, done: int, total: int, detail: str = "") -> None:
        """Report that `done` of `total` units are finished; `detail` is a short text such as a speed."""


def silent(done: int, total: int, detail: str = "") -> None:
    """Progress that nobody sees."""


class Listener(Protocol):
    """Is called when something happens to a step; `label` names the step within its run."""

    def started(self, label: str) -> None:
        """The body of the step starts."""

    def progress(self, label: str, done: int, total: int, detail: str) -> None:
        """The step has reported progress, as in `Progress`."""

    def finished(self, label: str, counts: dict[str, int], seconds: float) -> None:
        """The artifact is published, with the counts of its manifest."""

    def reused(self, label: str, counts: dict[str, int]) -> None:
        """The step is a cache hit: the store has a reusable artifact with these counts. May be called twice."""


_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """Call this listener for every step of this process from now on."""
    _listeners.append(listener)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call this listener for every step of this process while the block runs."""
    listen(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell(call: Callable[[Listener], None]) -> None:
    """Make the same call to every listener, in the order in which they were added."""
    for listener in tuple(_listeners):
        call(listener)
