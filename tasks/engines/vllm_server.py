"""A vLLM server that a step starts from its own environment, watches, and ends with all its processes.

vLLM has an environment of its own because it and Prefect require versions of FastAPI that do not resolve together. A
server never outlives its step: it gets a signal when this process dies, and what a hard kill leaves behind is ended by
the next start (`tasks.engines.server_processes`).
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tasks.config import EngineConfig, ModelConfig
from tasks.engines.server_processes import end_group, end_orphans, record_server, remove_record
from tasks.errors import ConfigError, DataError, StepError
from tasks.models import context_length, model_folder
from tasks.running.process import count_gpus

logger = logging.getLogger(__name__)

ENVIRONMENT = Path(__file__).parents[2] / ".venv-vllm"
BASE = "base"  # the name of the model without an adapter
_POLL_SECONDS = 0.25
_LOG_LINES, _LOG_ERRORS = 15, 5
_ERROR = re.compile(r"\b[A-Z]\w*(?:Error|Exception): ")
_NOISE = re.compile(r"leaked|nanobind|resource_tracker|warnings\.warn|skipped remainder")
# Asks the kernel for a signal when the parent dies (PR_SET_PDEATHSIG), then becomes the server. vLLM's console script
# is not used: it looks for a distribution called vllm, and CPU builds have another name.
_LAUNCH = """
import ctypes, os, runpy, signal, sys
parent = int(sys.argv.pop(1))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != parent:
    sys.exit("the process that started this server is gone")
sys.argv[0] = "vllm.entrypoints.openai.api_server"
runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
"""
# On a CPU, vLLM's own LoRA is slow, and wrong for rows of the base model in a batch with adapters.
_GROUPED_LORA = Path(__file__).parent / "vllm_cpu" / "grouped_lora.py"
CPU_KV_CACHE_GB = 2
# Variables that the server does not inherit. Our import path: the server has its own transformers. Threads:
# `execution.threads` is for steps that share the cores, and this step only waits for the server. The key: with it, the
# server would refuse our requests.
_NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "OMP_NUM_THREADS", "VLLM_API_KEY")


class VllmServer:
    """A running vLLM server; use as a context manager.

    Args:
        adapters: LoRA folders by the name under which requests ask for them.
        log: The file to which its output is appended.

    Raises:
        ConfigError: There is no vLLM environment.
        DataError: vLLM cannot serve one of the adapters.
        StepError: The server did not come up; the message ends with its last lines.
    """

    def __init__(
        self, model: ModelConfig, config: EngineConfig, *, log: Path, adapters: Mapping[str, Path] | None = None
    ) -> None:
        self._python = find_python(config.python)
        self._model = model
        self._config = config
        self._adapters = dict(adapters or {})
        self._log, self._log_begins = log, 0
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The base URL of its API; it has a port once it is entered."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def context(self) -> int:
        """Longest prompt with its answer, in tokens."""
        return self._config.max_context or context_length(model_folder(self._model))

    def __enter__(self) -> Self:
        end_orphans()
        self.port = _free_port()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with self._log.open("ab") as log:
            self._log_begins = log.tell()  # an earlier server may have written to the same file
            # A session of its own makes a process group of its own, which is ended as a whole.
            self._process = subprocess.Popen(
                [str(self._python), "-c", _LAUNCH, str(os.getpid()), *self._arguments()],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env=self._environment(), cwd=self._log.parent,
            )  # fmt: skip
        try:
            record_server(self._process.pid)
            self._wait(started)
        except BaseException:
            self._end()
            raise
        logger.info("vLLM ready on port %d after %.0f s", self.port, time.monotonic() - started)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def explain_death(self) -> str | None:
        """Why the server is gone, with its last lines; None while it runs."""
        if self._process is None or self._process.poll() is None:
            return None
        return f"the vLLM server ended with code {self._process.returncode}; its last lines:\n{self.last_lines()}"

    def last_lines(self) -> str:
        """The lines of its log that say what went wrong, indented."""
        try:
            with self._log.open("rb") as log:
                log.seek(self._log_begins)
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return "    (no log)"
        return "\n".join(f"    {line[:300]}" for line in _lines_on_failure(lines))

    def _arguments(self) -> list[str]:
        c = self._config
        found = [
            "--model", str(model_folder(self._model)), "--served-model-name", BASE, "--host", "127.0.0.1",
            "--port", str(self.port), "--max-model-len", str(self.context), "--enable-prefix-caching",
            "--generation-config", "vllm", "--dtype", self._dtype(), "--tensor-parallel-size", str(c.tensor_parallel),
            "--data-parallel-size", str(c.data_parallel), "--uvicorn-log-level", "warning",
            "--disable-uvicorn-access-log",
        ]  # fmt: skip
        if has_cuda():
            found += ["--gpu-memory-utilization", str(c.memory_share)]
        else:
            # Without this, a seeded request whose prompt is computed in two chunks kills the server: the random
            # generators of a CPU have no offset.
            found.append("--no-enable-chunked-prefill")
        if c.quantization:
            found += ["--quantization", c.quantization]
        if self._adapters:
            ranks, modules = zip(*map(_lora_shape, self._adapters.values()), strict=True)
            found += ["--enable-lora", "--max-loras", str(len(ranks)), "--max-lora-rank", str(_lora_rank(max(ranks)))]
            # vLLM silently drops the weights of a module that is not named here. Without any name it adapts lm_head,
            # too; with that, on a CPU, prompt log-probabilities of several rows at once kill vLLM 0.32.
            found += ["--lora-target-modules", *sorted(set().union(*modules))]
            found += ["--lora-modules", *(f"{name}={folder}" for name, folder in self._adapters.items())]
        if self._groups_lora():
            found += ["--worker-extension-cls", f"{_GROUPED_LORA.stem}.GroupedLora"]
        return [*found, *c.extra_args]

    def _dtype(self) -> str:
        if self._model.dtype != "auto":
            return self._model.dtype
        return "auto" if has_cuda() else "float32"

    def _environment(self) -> dict[str, str]:
        ours = {
            "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": str(CPU_KV_CACHE_GB),
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            # FlashInfer would compile its sampler at the start, with an nvcc that images and most machines lack.
            "VLLM_USE_FLASHINFER_SAMPLER": "0",
        }  # fmt: skip
        if self._groups_lora():
            ours["PYTHONPATH"] = str(_GROUPED_LORA.parent)
        kept = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        return ours | kept

    def _groups_lora(self) -> bool:
        return bool(self._adapters) and not has_cuda()

    def _wait(self, started: float) -> None:
        while time.monotonic() - started < self._config.start_timeout_seconds:
            if death := self.explain_death():
                raise StepError(f"{death}\nCorrect the engine section of the recipe, or see {self._log}.")
            if _answers(f"http://127.0.0.1:{self.port}/health"):
                return
            time.sleep(_POLL_SECONDS)
        raise StepError(
            f"the vLLM server is not ready after {self._config.start_timeout_seconds:g} s; its last lines:\n"
            f"{self.last_lines()}\nRaise engine.start_timeout_seconds, or see {self._log}."
        )

    def _end(self) -> None:
        if self._process is not None:
            end_group(self._process.pid)
            self._process.poll()  # reads the exit code, so that no zombie stays
            remove_record(self._process.pid)


def find_python(given: str | None = None) -> Path:
    """The Python of the environment that holds vLLM.

    Args:
        given: `engine.python` of the recipe, if it says one.

    Raises:
        ConfigError: There is no such file.
    """
    given = given or os.environ.get("SSR_VLLM_PYTHON")
    path = Path(given).expanduser() if given else ENVIRONMENT / "bin" / "python"
    if not path.exists():
        where = f"{path}: no such file." if given else "vLLM's environment is not set up."
        raise ConfigError(f"engine.kind=vllm: {where} Run `make engine`, or set engine.python or SSR_VLLM_PYTHON.")
    return path.absolute()


def has_cuda() -> bool:
    """Whether there is an NVIDIA device, without loading torch."""
    return count_gpus() > 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        # Without the proxies of the environment: the server runs on this machine.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _lines_on_failure(lines: list[str]) -> list[str]:
    """The last lines that name an error, then the last lines, without what interpreters write when they exit."""
    kept = [line for line in lines if line.strip() and not _NOISE.search(line)]
    errors = [line for line in kept if _ERROR.search(line)]
    return list(dict.fromkeys([*errors[-_LOG_ERRORS:], *kept[-_LOG_LINES:]]))


def _lora_shape(adapter: Path) -> tuple[int, set[str]]:
    """The rank of an adapter and the names of the modules that it adapts, from its config.

    Raises:
        DataError: The config gives no list of module names, but a pattern, for example.
    """
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    names = config.get("target_modules")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"{path}: target_modules is {names!r}, and vLLM needs a list of module names. Write the names that the "
            "adapter was trained on, or use engine kind transformers."
        )
    # vLLM compares the last part of a module's name, and would not match "self_attn.q_proj".
    return int(config["r"]), {name.rpartition(".")[2] for name in names}


def _lora_rank(needed: int) -> int:
    """The rank to reserve: vLLM takes certain ranks only, and a larger one than needed costs nothing but memory."""
    return next((rank for rank in (8, 16, 32, 64, 128, 256, 320, 512) if rank >= needed), needed)
