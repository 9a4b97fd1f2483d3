"""The child side of `tasks.running.process`: `python -m tasks.running.worker spec.json` runs one step's body."""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import os
import select
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from tasks.artifacts.store import open_store
from tasks.errors import SsrError
from tasks.running.process import EVENT
from tasks.running.step import STEPS, Context

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run the body, and print its progress and its result or error as events for the parent."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    _end_with(int(spec["parent"]))
    logging.basicConfig(level=logging.WARNING)
    importlib.import_module(spec["module"])
    step = STEPS[spec["ref"]["step"]]
    context = Context(
        open_store(spec["store"]), spec["ref"], Path(spec["out"]), spec["inputs"], progress=_progress,
        force=spec["force"],
    )  # fmt: skip
    try:
        step.call(context, spec["sections"])
    except SsrError as error:
        _print_event({"event": "error", "type": type(error).__name__, "message": str(error)})
        sys.exit(error.exit_code)
    if _is_first_rank():
        _print_event({"event": "result", "counts": context.counts, "facts": context.facts})


def _progress(done: int, total: int, detail: str = "") -> None:
    _print_event({"event": "progress", "done": done, "total": total, "detail": detail})


def _print_event(event: dict[str, Any]) -> None:  # Any: JSON values
    if _is_first_rank() or event["event"] == "error":
        sys.stdout.write(EVENT + json.dumps(event) + "\n")
        sys.stdout.flush()


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _end_with(flow: int) -> None:
    """End this process when the flow dies: a killed flow must not leave a GPU in use."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # by the kernel, when the parent dies
    if os.getppid() == flow:
        return
    # With several processes, a launcher stands between the flow and this process, and outlives a killed flow.
    try:
        alive = os.pidfd_open(flow)
    except ProcessLookupError:
        sys.exit("the flow that started this step is gone")
    threading.Thread(target=_end_after, args=(alive,), name="flow", daemon=True).start()


def _end_after(alive: int) -> None:
    select.select([alive], [], [])  # readable once the process has ended
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
