"""Runs a step's body in a process of its own, and reports its progress, result and errors.

The end of the process always frees the GPU, a crash inside CUDA does not end the flow, and two steps on one CPU do not
share an interpreter. The child ends by itself when the flow is killed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tasks import errors
from tasks.errors import SsrError, StepError
from tasks.running.progress import Progress

EVENT = "SSR-EVENT "  # begins each line that the child prints for the parent
_LOG_LINES = 30
_GRACE_SECONDS = 20
_NVIDIA, _DEVICES = Path("/proc/driver/nvidia/gpus"), Path("/dev")
_CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))


class Result(NamedTuple):
    """What a body recorded on its context."""

    counts: dict[str, int]
    facts: dict[str, Any]  # Any: JSON values


def run_in_process(spec: Mapping[str, Any], spec_path: Path, *, launcher: list[str], progress: Progress) -> Result:
    """Run `tasks.running.worker` on a spec.

    Args:
        spec: The step and its inputs, as `tasks.running.worker` reads them.
        spec_path: Where the spec is written for the child.
        launcher: The command that starts a Python module: the interpreter, or accelerate for several GPUs.

    Raises:
        SsrError: As the body raised it.
        StepError: The process died; the message has the last lines of its output.
    """
    spec_path.write_text(json.dumps({**spec, "parent": os.getpid()}))
    root = str(Path(__file__).parents[2])
    # Progress bars of libraries would push the lines that explain a failure out of the last lines.
    quiet = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | quiet | {"PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(
        [*launcher, "-m", "tasks.running.worker", str(spec_path)], env=env,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    try:
        return _follow(process, progress)
    finally:
        # A cancelled flow must free the GPU, too.
        _end(process)


def _follow(process: subprocess.Popen[str], progress: Progress) -> Result:
    last_lines: deque[str] = deque(maxlen=_LOG_LINES)
    result: Result | None = None
    assert process.stdout is not None  # PIPE was asked for
    for line in process.stdout:
        if not line.startswith(EVENT):
            last_lines.append(line.rstrip())
            continue
        event = json.loads(line.removeprefix(EVENT))
        if event["event"] == "progress":
            progress(event["done"], event["total"], event["detail"])
        elif event["event"] == "error":
            raise _error(event["type"], event["message"])
        else:
            result = Result(event["counts"], event["facts"])
    if process.wait() != 0 or result is None:
        output = "\n".join(f"    {line}" for line in last_lines if line)
        raise StepError(
            f"the process of this step ended with code {process.returncode}; its last lines:\n{output}\n"
            "What was finished is kept. Run the same command again to continue from there."
        )
    return result


def _error(name: str, message: str) -> SsrError:
    kind = getattr(errors, name, StepError)
    return kind(message) if isinstance(kind, type) and issubclass(kind, SsrError) else StepError(message)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def one_process(**sections: object) -> list[str]:
    """The launcher of a step that needs one process, whatever its config."""
    return [sys.executable]


def one_process_per_gpu(config: Path) -> list[str]:
    """The launcher of a step that uses every visible GPU: `accelerate launch` with this config if there are several."""
    n_gpus = count_gpus()
    if n_gpus <= 1:
        return one_process()
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    return [*accelerate, "--config_file", str(config), "--num_processes", str(n_gpus)]


def count_gpus() -> int:
    """The number of visible NVIDIA devices, without loading torch.

    The kernel lists all devices of the machine, also in a container that may use only some of them or none. So in a
    container only devices with a device node count. Elsewhere the nodes may not exist before the first use of a GPU.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    known = list(_NVIDIA.glob("*"))
    given = [gpu for gpu in known if _has_node(gpu)]
    return len(given if given or _in_container() else known)


def _has_node(gpu: Path) -> bool:
    try:
        minor = re.search(r"^Device Minor:\s*(\d+)", (gpu / "information").read_text(), re.MULTILINE)
    except OSError:
        return False
    return minor is not None and (_DEVICES / f"nvidia{minor[1]}").exists()


def _in_container() -> bool:
    marks = ("KUBERNETES_SERVICE_HOST", "ECS_CONTAINER_METADATA_URI_V4")
    return any(path.exists() for path in _CONTAINER_MARKS) or any(mark in os.environ for mark in marks)
