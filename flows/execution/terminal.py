"""What `ssr run` shows while it works: a line per finished step, a bar per running one."""

from __future__ import annotations

import threading

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from tasks.running.step import retry_hint

# The counts of interest while a run goes on; the manifest and the report have all of them.
_COUNTS = (
    "rows_out", "rows_generated", "rows_reused", "accept", "reject", "unjudged", "target.self", "target.gold",
    "optimiser_steps",
)  # fmt: skip
_PAID = ("rows_generated", "rows_reused")  # by the run that made the artifact, not by the one that reuses it
_SILENT_AT_ZERO = ("unjudged",)
_NAMES = {"rows_out": "rows", "optimiser_steps": "optimiser steps"}


class TerminalListener:
    """Draws a bar for every running step on a terminal, and prints a line for every finished one on any console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._reused: set[str] = set()
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description:<18}"), BarColumn(bar_width=16),
            TextColumn("{task.completed:>6,.0f}/{task.total:,.0f}"), TextColumn("[dim]{task.fields[detail]}"),
            TimeElapsedColumn(), console=console, transient=True,
        )  # fmt: skip

    def __enter__(self) -> TerminalListener:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def started(self, label: str) -> None:
        """Draw an empty bar."""
        with self._lock:
            self._tasks[label] = self._progress.add_task(label, total=1, detail="")

    def progress(self, label: str, done: int, total: int, detail: str) -> None:
        """Move the bar."""
        with self._lock:
            if label in self._tasks:
                self._progress.update(self._tasks[label], completed=done, total=max(total, 1), detail=detail)

    def finished(self, label: str, counts: dict[str, int], seconds: float) -> None:
        """Replace the bar by a line with the counts."""
        with self._lock:
            if (task := self._tasks.pop(label, None)) is not None:
                self._progress.remove_task(task)
        self._console.print(f"[green]done  [/] {label:<18} {_counts(counts):<42} {seconds:6.1f} s", highlight=False)
        self._print_retry_hint(label, counts)

    def reused(self, label: str, counts: dict[str, int]) -> None:
        """Print a line with the counts, once a step."""
        if label in self._reused:  # the runner has reported it already
            return
        self._reused.add(label)
        self._console.print(f"[cyan]cached[/] {label:<18} {_counts(counts, skip=_PAID)}", highlight=False)
        self._print_retry_hint(label, counts)

    def _print_retry_hint(self, label: str, counts: dict[str, int]) -> None:
        if hint := retry_hint(label, counts):
            self._console.print(f"       {hint}", style="yellow", highlight=False, soft_wrap=True)


def _counts(counts: dict[str, int], *, skip: tuple[str, ...] = ()) -> str:
    names = [name for name in _COUNTS if name in counts and name not in skip]
    names = [name for name in names if counts[name] or name not in _SILENT_AT_ZERO]
    return ", ".join(f"{_NAMES.get(name, name.removeprefix('rows_'))} {counts[name]:,}" for name in names)
