"""A vLLM server of our own: it answers as the model does in process, dies loudly, and is gone afterwards.

Needs vLLM's environment (SSR_VLLM_PYTHON, or `make engine`); SSR_REQUIRE_VLLM=1 makes its absence a failure.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import toy
from toy_steps import here

from tasks.artifacts.store import Store, cache_folder, open_store
from tasks.config import AbstentionConfig, EngineConfig, GenerateConfig, JudgeConfig, ModelConfig, RewriteConfig
from tasks.engines import Continuation, Engine, Likelihood, Reply, Request, Sampling, open_engine
from tasks.engines.remote import RemoteEngine
from tasks.engines.server_processes import ServerRecord, end_group, end_orphans, members
from tasks.engines.transformers import TransformersEngine
from tasks.engines.vllm_server import BASE, VllmServer, find_python
from tasks.errors import ConfigError, DataError, StepError
from tasks.generate import generate, likelihood, rewrite
from tasks.judge import judge
from tasks.lab.corpus import user_message
from tasks.lab.task import task_rows
from tasks.running.step import Planned

GREEDY = Sampling(max_new_tokens=16)
CHOICES = Sampling(max_new_tokens=16, choices=("Yes", "No"))
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(vllm_python: Path) -> EngineConfig:
    return EngineConfig(kind="vllm", timeout_seconds=120, start_timeout_seconds=400)


@pytest.fixture(scope="module")
def uncompiled(config: EngineConfig) -> EngineConfig:
    """For servers that are only started and ended: compiling a model takes them half a minute."""
    return config.model_copy(update={"extra_args": ("--enforce-eager",)})


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> ModelConfig:
    return ModelConfig(base=str(tiny_model))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def served(model: ModelConfig, config: EngineConfig, work: Path) -> Iterator[Engine]:
    """One server for most tests; when it is closed, nothing of it may be left."""
    with open_engine(model, config, work=work) as engine:
        [record], port = records(), port_in(work)
        assert is_listening(port)
        yield engine
    assert members(record.pid) == []
    assert not is_listening(port)
    assert records() == []


@pytest.fixture(scope="module")
def in_process(model: ModelConfig) -> TransformersEngine:
    return TransformersEngine(model, batch_tokens=4_000)


def lab_requests(n: int = 40) -> list[Request]:
    rows = [row for _, row in zip(range(n), task_rows(n, seed=0), strict=False)]
    return [
        Request(f"key-{i}", [{"role": "user", "content": user_message(row.document, row.question)}], seed=i)
        for i, row in enumerate(rows)
    ]


def by_key(found: Iterator[Reply]) -> dict[str, Reply]:
    replies = list(found)
    assert [reply.problem for reply in replies if reply.problem] == []
    assert len({reply.key for reply in replies}) == len(replies)
    return {reply.key: reply for reply in replies}


def records() -> list[ServerRecord]:
    return [ServerRecord(**json.loads(path.read_text())) for path in (cache_folder() / "servers").glob("*.json")]


def port_in(work: Path) -> int:
    """Of the server whose log lies there: it is among its arguments."""
    [record] = [r for r in records() if psutil.Process(r.pid).cwd() == str(work.resolve())]
    arguments = psutil.Process(record.pid).cmdline()
    return int(arguments[arguments.index("--port") + 1])


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# --- it answers as the model does in process ---


@pytest.mark.slow
def test_greedy_texts_are_those_of_the_model_in_process(served: Engine, in_process: TransformersEngine) -> None:
    expected = by_key(in_process.generate(lab_requests(), GREEDY))
    found = by_key(served.generate(lab_requests(), GREEDY))
    assert set(found) == set(expected)
    # Of a character that the token limit cuts, vLLM leaves the bytes out; a decoder shows a replacement for them.
    same = [key for key in found if found[key].text == (expected[key].text or "").rstrip("\ufffd")]
    assert len(same) >= 0.95 * len(expected)
    assert len({reply.text for reply in found.values()}) > 20, "equal answers prove nothing"
    counted = [(found[key].n_prompt_tokens, found[key].n_output_tokens, found[key].finish_reason) for key in same]
    assert counted == [
        (expected[k].n_prompt_tokens, expected[k].n_output_tokens, expected[k].finish_reason) for k in same
    ]


@pytest.mark.slow
def test_choices_and_their_probabilities_are_those_of_the_model_in_process(
    served: Engine, in_process: TransformersEngine
) -> None:
    expected = by_key(in_process.generate(lab_requests(), CHOICES))
    found = by_key(served.generate(lab_requests(), CHOICES))
    assert {reply.text for reply in found.values()} == {"Yes", "No"}
    for key, reply in found.items():
        assert reply.choice_logprobs == pytest.approx(expected[key].choice_logprobs, abs=1e-2)
        assert reply.text == expected[key].text


@pytest.mark.slow
def test_likelihoods_are_those_of_the_model_in_process(served: Engine, in_process: TransformersEngine) -> None:
    rows = [Continuation(r.key, r.messages, f"The answer is number {i}") for i, r in enumerate(lab_requests())]

    def measured(found: Iterator[Likelihood]) -> dict[str, float | None]:
        return {one.key: one.nll for one in found}

    assert measured(served.likelihoods(rows)) == pytest.approx(measured(in_process.likelihoods(rows)), abs=1e-2)


@pytest.mark.slow
def test_sampled_texts_follow_from_their_seeds(served: Engine) -> None:
    sampling = Sampling(16, temperature=1.0)
    one, again = (by_key(served.generate(lab_requests(10), sampling)) for _ in range(2))
    assert {key: reply.text for key, reply in one.items()} == {key: reply.text for key, reply in again.items()}
    other_seeds = [request._replace(seed=request.seed + 1_000) for request in lab_requests(10)]
    other = by_key(served.generate(other_seeds, sampling))
    assert {key: reply.text for key, reply in one.items()} != {key: reply.text for key, reply in other.items()}


@pytest.mark.slow
def test_the_steps_get_answers_and_verdicts_from_a_server_by_its_address(
    served: Engine, model: ModelConfig, tmp_path: Path
) -> None:
    assert isinstance(served, RemoteEngine)
    there = EngineConfig(kind="openai", urls=tuple(served.measured_model().urls))
    store = open_store(str(tmp_path))
    numbers = [f"{i:03}" for i in range(40)]
    asked = zip(numbers, lab_requests(), strict=True)
    examples = toy.put(store, "examples", [toy.example(number, messages=one.messages) for number, one in asked])

    answering = GenerateConfig(max_new_tokens=GREEDY.max_new_tokens)
    answers = rows(store, here(generate).plan(model=model, engine=there, config=answering, examples=examples))
    expected = by_key(served.generate(lab_requests(), GREEDY))
    same = [number for number in numbers if answers[number]["text"] == expected[f"key-{int(number)}"].text]
    assert len(same) >= 0.95 * len(expected)

    outputs = toy.put(store, "outputs", [toy.output(number, f"Not {number}") for number in numbers])
    # A name that only the server knows, so that it renders the chat itself.
    llm = {"judges": [{"model": {"base": BASE}}], "rubric": "lab.v1", "audit": {"n_probes": 0}}
    verdicts = here(judge).plan(
        config=JudgeConfig.model_validate({"llm": llm}), engine=there, abstention=AbstentionConfig(),
        examples=examples, outputs=outputs,
    )  # fmt: skip
    found = rows(store, verdicts).values()
    assert [row["decided_by"] for row in found] == ["llm"] * len(numbers)
    assert {row["verdict"] for row in found} <= {"accept", "reject"}


@pytest.mark.slow
def test_golds_are_rewritten_and_answers_measured_on_a_server_as_in_process(
    served: Engine, model: ModelConfig, tmp_path: Path
) -> None:
    assert isinstance(served, RemoteEngine)
    numbers = [f"{i:02}" for i in range(12)]
    asked = zip(numbers, lab_requests(12), strict=True)
    examples = [toy.example(number, golds=[f"gold {number}"], messages=one.messages) for number, one in asked]
    answers = [toy.output(number, f"answer {number}") for number in numbers]
    # Every other answer is accepted: it is measured, and its gold is not rewritten.
    verdicts = [toy.verdict(number, "reject" if i % 2 else "accept") for i, number in enumerate(numbers)]

    def made(engine: EngineConfig, folder: Path) -> tuple[dict[str, toy.Row], dict[tuple[str, str], float]]:
        store = open_store(str(folder))
        tables = {"examples": examples, "outputs": answers, "verdicts": verdicts}
        inputs = {name: toy.put(store, name, content) for name, content in tables.items()}
        writing = RewriteConfig(max_new_tokens=GREEDY.max_new_tokens)
        written = rows(store, here(rewrite).plan(model=model, engine=engine, config=writing, **inputs))
        measuring = here(likelihood).plan(model=model, engine=engine, config=GenerateConfig(), **inputs)
        [path] = store.fetch(measuring.execute(store)).glob("*.parquet")
        found = pq.read_table(path).to_pylist()
        return written, {(row["example_id"], row["kind"]): row["base_nll"] for row in found}

    written, measured = made(EngineConfig(kind="openai", urls=tuple(served.measured_model().urls)), tmp_path / "served")
    expected, expected_nll = made(EngineConfig(batch_tokens=4_000), tmp_path / "here")
    assert list(written) == list(expected) == numbers[1::2]
    same = [number for number in written if written[number]["text"] == expected[number]["text"].rstrip("\ufffd")]
    assert len(same) >= len(written) - 1
    assert len({row["text"] for row in written.values()}) > 1, "equal rewrites prove nothing"
    assert set(measured) == {(n, "gold") for n in numbers} | {(n, "answer") for n in numbers[::2]}
    assert measured == pytest.approx(expected_nll, abs=1e-2)


def rows(store: Store, planned: Planned) -> dict[str, toy.Row]:
    """Of the one table that a step writes, by example."""
    [path] = store.fetch(planned.execute(store)).glob("*.parquet")
    return {row["example_id"]: row for row in pq.read_table(path).to_pylist()}


@pytest.mark.slow
def test_its_log_is_kept(served: Engine, work: Path) -> None:
    assert "vLLM" in (work / "vllm.log").read_text()


# --- how it is started ---


def adapter(folder: Path, modules: object) -> Path:
    """As much of a LoRA adapter as is read before the server reads it."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "target_modules": modules}))
    return folder


def not_started(log: Path, adapters: dict[str, Path] | None = None) -> VllmServer:
    config = EngineConfig(kind="vllm", python=sys.executable)  # which has no vLLM
    return VllmServer(ModelConfig(base="lab"), config, log=log, adapters=adapters)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_every_module_that_an_adapter_has_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_gpu: bool
) -> None:
    monkeypatch.setattr("tasks.engines.vllm_server.has_cuda", lambda: on_gpu)
    fused = adapter(tmp_path / "fused", ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"])
    other = adapter(tmp_path / "other", ["layers.0.self_attn.q_proj", "o_proj"])
    words = not_started(tmp_path / "log", {"fused": fused, "other": other})._arguments()
    named = words[words.index("--lora-target-modules") + 1 : words.index("--lora-modules")]
    assert named == ["down_proj", "gate_up_proj", "o_proj", "q_proj", "qkv_proj"]


@pytest.mark.parametrize("modules", [r".*\.(q|v)_proj", "all-linear", None, [], [1]])
def test_an_adapter_whose_modules_are_no_names_is_refused(tmp_path: Path, modules: object) -> None:
    folder = adapter(tmp_path / "adapter", modules)
    with pytest.raises(DataError, match="target_modules") as refused:
        not_started(tmp_path / "log", {"adapter": folder}).__enter__()
    assert str(folder / "adapter_config.json") in str(refused.value)


def test_a_key_for_servers_elsewhere_does_not_guard_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "for another server")
    assert "VLLM_API_KEY" not in not_started(tmp_path / "log")._environment()


def test_its_sampler_needs_no_compiler_of_cuda_unless_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not_started(tmp_path / "log")._environment()["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "1")
    assert not_started(tmp_path / "log")._environment()["VLLM_USE_FLASHINFER_SAMPLER"] == "1"


# --- it fails loudly ---


def test_its_last_lines_are_not_those_of_an_earlier_server(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text("CudaError: of the earlier one\n")
    with pytest.raises(StepError, match="No module named 'vllm'") as error:
        not_started(log).__enter__()
    assert "CudaError" not in str(error.value)
    assert "CudaError" in log.read_text()


@pytest.mark.slow
def test_a_broken_model_is_told_with_the_servers_last_lines(
    tiny_model: Path, uncompiled: EngineConfig, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    with pytest.raises(StepError, match="ended with code") as error:
        open_engine(ModelConfig(base=str(broken)), uncompiled, work=tmp_path).__enter__()
    assert "Error" in str(error.value)
    assert str(tmp_path / "vllm.log") in str(error.value)
    assert records_of(tmp_path) == []


def records_of(work: Path) -> list[ServerRecord]:
    return [r for r in records() if psutil.pid_exists(r.pid) and psutil.Process(r.pid).cwd() == str(work.resolve())]


@pytest.mark.slow
def test_a_server_that_is_killed_ends_the_job_with_its_last_lines(
    model: ModelConfig, uncompiled: EngineConfig, tmp_path: Path
) -> None:
    many = [request._replace(key=f"{request.key}-{i}") for i in range(250) for request in lab_requests()]
    with open_engine(model, uncompiled, work=tmp_path) as engine:
        [record] = records_of(tmp_path)
        replies = engine.generate(many, Sampling(max_new_tokens=100))
        next(replies)
        os.killpg(record.pid, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(StepError, match="vLLM server ended with code -9") as error:
            list(replies)
        assert time.monotonic() - began < 60
    assert "INFO" in str(error.value), "its last lines"


# --- nothing of it is left ---

OWNER = """
import sys, time
from pathlib import Path
from tasks.config import EngineConfig, ModelConfig
from tasks.engines import open_engine
config = EngineConfig.model_validate_json(sys.argv[3])
with open_engine(ModelConfig(base=sys.argv[1]), config, work=Path(sys.argv[2])):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_the_server_of_a_killed_run_does_not_stay(model: ModelConfig, uncompiled: EngineConfig, tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", OWNER, model.base, str(tmp_path), uncompiled.model_dump_json()]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        [record], port = records_of(tmp_path), port_in(tmp_path)
        assert end_orphans() == [], "its owner lives"
        assert is_listening(port)
        owner.kill()
    end_orphans()
    assert members(record.pid) == []
    assert not is_listening(port)
    assert record not in records()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Stands for a server: a process group of its own."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def record(sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ServerRecord:
    """Of the sleeper, whose owner is gone; in a cache of its own, beside which real servers are left alone."""
    monkeypatch.setenv("SSR_CACHE", str(tmp_path))
    with subprocess.Popen(["true"]) as owner:
        pass
    process = psutil.Process(sleeper.pid)
    return ServerRecord(
        sleeper.pid, process.create_time() - psutil.boot_time(), process.exe(), owner.pid, owner_began=1.0
    )


def write(record: ServerRecord) -> Path:
    path = cache_folder() / "servers" / f"{record.pid}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(record)))
    return path


def test_a_server_without_its_owner_is_ended(record: ServerRecord) -> None:
    path = write(record)
    assert end_orphans() == [record.pid]
    assert members(record.pid) == []
    assert not path.exists()


def test_a_server_whose_owner_lives_is_left_alone(record: ServerRecord, sleeper: subprocess.Popen[bytes]) -> None:
    me = psutil.Process()
    path = write(dataclasses.replace(record, owner=me.pid, owner_began=me.create_time() - psutil.boot_time()))
    assert end_orphans() == []
    assert sleeper.poll() is None
    assert path.exists()


def test_the_clock_may_be_set_while_a_server_runs(
    record: ServerRecord, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    me = psutil.Process()
    write(dataclasses.replace(record, owner=me.pid, owner_began=me.create_time() - psutil.boot_time()))
    boot = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + 3_600)
    monkeypatch.setattr("psutil.boot_time", lambda: boot + 3_600)
    assert end_orphans() == []
    assert sleeper.poll() is None


@pytest.mark.parametrize("change", [{"began": 1.0}, {"python": "/another/python"}])
def test_a_process_that_only_has_the_number_of_a_server_is_never_ended(
    record: ServerRecord, sleeper: subprocess.Popen[bytes], change: dict[str, object]
) -> None:
    path = write(dataclasses.replace(record, **change))
    assert end_orphans() == []
    assert sleeper.poll() is None
    assert not path.exists()


def test_the_workers_of_a_server_whose_leader_is_gone_are_ended(record: ServerRecord) -> None:
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep({600})'])"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as leader:
        pass
    assert len(members(leader.pid)) == 1
    write(dataclasses.replace(record, pid=leader.pid, began=1.0))
    assert end_orphans() == [leader.pid]
    assert members(leader.pid) == []


def test_a_record_that_cannot_be_read_is_removed(record: ServerRecord, sleeper: subprocess.Popen[bytes]) -> None:
    path = write(record)
    path.write_text("{")
    assert end_orphans() == []
    assert not path.exists()


def test_a_group_that_ignores_the_request_is_ended_by_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.engines.server_processes.GRACE_SECONDS", 0.3)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        end_group(process.pid)
        assert members(process.pid) == []


def test_a_missing_environment_names_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make engine"):
        find_python(str(tmp_path / "python"))
