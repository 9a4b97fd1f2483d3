"""The generate step beside vLLM's own offline `LLM.chat`, and one server for three models beside a server for each.

Both sides read the same prompts with the same model on the same machine, one after the other. Needs `make engine`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tasks.artifacts.store import Store, open_store
from tasks.config import (
    AbstentionConfig,
    DataConfig,
    EngineConfig,
    EvaluateConfig,
    GenerateConfig,
    ModelConfig,
    SourceConfig,
    TrainConfig,
)
from tasks.engines.remote import GROUP_ROWS
from tasks.engines.vllm_server import BASE, CPU_KV_CACHE_GB, VllmServer, find_python
from tasks.evaluate import measure
from tasks.evaluate.benchmarks import LAB_BENCHMARKS, LAB_FOLDER
from tasks.generate import generate
from tasks.ingest import ingest
from tasks.models import LAB_MODEL
from tasks.running.step import Planned, Step, as_input

N_ROWS, N_TOKENS, N_TURNS = 10_000, 32, 2
ENGINE = EngineConfig(kind="vllm")
_PLAIN = EngineConfig(kind="vllm", extra_args=("--worker-extension-cls", ""))  # without our LoRA on a CPU
_OFFLINE = """
import json, sys, time
if __name__ == "__main__":
    from vllm import LLM, SamplingParams
    chats = json.load(open(sys.argv[2]))
    llm = LLM(sys.argv[1], dtype="float32", max_model_len=4096, enable_prefix_caching=True)
    sampling = SamplingParams(max_tokens=int(sys.argv[3]), temperature=0.0)
    llm.chat(chats[:64], sampling, use_tqdm=False)
    started = time.monotonic()
    llm.chat(chats, sampling, use_tqdm=False)
    print("SECONDS", time.monotonic() - started)
"""


def measure_generate(folder: Path) -> dict[str, Any]:  # Any: JSON values
    """Rows a second of both sides, the best of two runs each, and their ratio."""
    examples = _examples(open_store(str(folder / "data")), N_ROWS)
    table = pq.read_table(examples, columns=["split", "messages"], filters=[("split", "=", "train")])
    chats = table.column("messages").to_pylist()
    (folder / "chats.json").write_text(json.dumps(chats))
    offline, ours = [], []
    for turn in range(N_TURNS):
        offline.append(len(chats) / _offline(folder / "chats.json"))
        ours.append(_ours(folder / f"generate-{turn}"))
    return {
        "rows": len(chats), "offline_rows_per_second": round(max(offline), 1),
        "step_rows_per_second": round(max(ours), 1), "ratio": round(max(ours) / max(offline), 3),
    }  # fmt: skip


def _offline(chats: Path) -> float:
    command = [str(find_python()), "-c", _OFFLINE, str(LAB_MODEL), str(chats), str(N_TOKENS)]
    env = os.environ | {"VLLM_CPU_KVCACHE_SPACE": str(CPU_KV_CACHE_GB), "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=chats.parent, env=env)
    return float(done.stdout.rpartition("SECONDS")[2].split()[0])


def _ours(folder: Path) -> float:
    """Rows a second of the whole step, Parquet included, without the server's start and end."""
    store = open_store(str(folder))
    examples = _plan_examples(N_ROWS)
    examples.execute(store)
    planned = _here(generate).plan(
        model=ModelConfig(base="lab"), engine=ENGINE, config=GenerateConfig(max_new_tokens=N_TOKENS), examples=examples
    )
    with _server_seconds() as apart:
        started = time.monotonic()
        planned.execute(store)
        seconds = time.monotonic() - started - sum(apart)
    manifest = store.manifest(**planned.ref)
    assert manifest is not None
    return manifest.counts["rows_generated"] / seconds


def measure_evaluate(folder: Path) -> dict[str, Any]:  # Any: JSON values
    """Seconds of base and two adapters on one server, and of lm-eval run once for each: on plain vLLM, and in process.

    Everything is counted on all sides, loading and the servers' starts as well.
    """
    store = open_store(str(folder / "evaluate"))
    examples = _plan_examples(200)
    examples.execute(store)
    # lm-eval has no task rows, and measures no drift.
    config = EvaluateConfig(benchmarks=("lab",), max_task_rows=1, max_new_tokens=20, drift_rows=0)
    sections = {"model": ModelConfig(base="lab"), "engine": ENGINE, "abstention": AbstentionConfig(), "config": config}
    adapters = {f"adapter_{i}": _adapter(store, seed=i) for i in (1, 2)}
    planned = _here(measure).plan(examples=examples, **sections, **adapters)
    started = time.monotonic()
    planned.execute(store)
    together = time.monotonic() - started
    folders = [None, *(store.fetch(one.ref) / "adapter" for one in adapters.values())]
    on_servers = sum(_lm_eval_on_vllm(one, folder) for one in folders)
    in_process = sum(_lm_eval_in_process(one) for one in folders)
    return {
        "one_server_seconds": round(together, 1), "three_lm_eval_on_vllm_seconds": round(on_servers, 1),
        "three_lm_eval_in_process_seconds": round(in_process, 1), "ratio": round(together / on_servers, 3),
        "ratio_in_process": round(together / in_process, 3),
    }  # fmt: skip


def _lm_eval_on_vllm(adapter: Path | None, folder: Path) -> float:
    started = time.monotonic()
    adapters = {"adapter": adapter} if adapter else {}
    with VllmServer(ModelConfig(base="lab"), _PLAIN, log=folder / "plain.log", adapters=adapters) as server:
        settings = {
            "model": next(iter(adapters), BASE), "base_url": f"{server.url}/completions", "tokenizer": LAB_MODEL,
            "tokenizer_backend": "huggingface", "tokenized_requests": True, "num_concurrent": 32,
            "max_length": server.context,
        }  # fmt: skip
        _lm_eval("local-completions", settings, batch_size=GROUP_ROWS)
    return time.monotonic() - started


def _lm_eval_in_process(adapter: Path | None) -> float:
    started = time.monotonic()
    settings = {"pretrained": LAB_MODEL, "dtype": "float32", **({"peft": adapter} if adapter else {})}
    _lm_eval("hf", settings, batch_size=64)
    return time.monotonic() - started


def _lm_eval(model: str, settings: dict[str, Any], *, batch_size: int) -> None:  # Any: values of several kinds
    given = ",".join(f"{name}={value}" for name, value in settings.items())
    command = [
        sys.executable, "-m", "lm_eval", "--model", model, "--model_args", given, "--tasks", ",".join(LAB_BENCHMARKS),
        "--include_path", str(LAB_FOLDER), "--apply_chat_template", "--batch_size", str(batch_size),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, text=True)


def _adapter(store: Store, seed: int) -> Planned:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from tasks.artifacts.digest import digest_of
    from tasks.artifacts.store import Manifest, Ref, describe_files

    torch.manual_seed(seed)
    config = LoraConfig(r=TrainConfig().lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(LAB_MODEL), config)
    ref = Ref(step="train", fingerprint=digest_of(["bench", seed]))
    with store.staging(**ref) as out:
        made.save_pretrained(out / "adapter", safe_serialization=True)
        store.publish(out, Manifest(**ref, identity={}, inputs={}, files=describe_files(out)))
    return as_input(ref)


@contextmanager
def _server_seconds() -> Any:  # Any: an iterator of a list that fills
    """Collects how long servers take to start and to end."""
    spent: list[float] = []
    enter, leave = VllmServer.__enter__, VllmServer.__exit__

    def timed(method: Any) -> Any:  # Any: a method
        def run(*arguments: Any) -> Any:
            started = time.monotonic()
            try:
                return method(*arguments)
            finally:
                spent.append(time.monotonic() - started)

        return run

    VllmServer.__enter__, VllmServer.__exit__ = timed(enter), timed(leave)
    try:
        yield spent
    finally:
        VllmServer.__enter__, VllmServer.__exit__ = enter, leave


def _here(step: Step) -> Step:
    return dataclasses.replace(step, launcher=None)


def _plan_examples(n_rows: int) -> Planned:
    return ingest.plan(config=DataConfig(sources=(SourceConfig(name="lab", reader="lab"),), lab_rows=n_rows))


def _examples(store: Store, n_rows: int) -> Path:
    return store.fetch(_plan_examples(n_rows).execute(store)) / "examples.parquet"


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(json.dumps({"generate": measure_generate(folder), "evaluate": measure_evaluate(folder)}, indent=2))


if __name__ == "__main__":
    main()
