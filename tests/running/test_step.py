"""Steps: what a fingerprint depends on, when an artifact is made again, accounting, errors, and bodies in processes."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy
from pydantic import Field

from flows import rehearsal
from tasks.artifacts.store import Ref, Store, open_store
from tasks.config import AbstentionConfig, EngineConfig, JudgeConfig, Section
from tasks.errors import ConfigError, DataError, StepError
from tasks.judge import judge
from tasks.running import progress
from tasks.running.process import one_process, run_in_process
from tasks.running.step import STEPS, Context, Planned, step
from tasks.tables import schema

ROOT = Path(__file__).parents[2]


class Inner(Section):
    kept: int = 1
    fast: int = Field(default=1, json_schema_extra={"runtime": True})


class Config(Section):
    text: str = "a"
    inner: Inner = Inner()
    several: tuple[Inner, ...] = (Inner(),)
    batch: int = Field(default=8, json_schema_extra={"runtime": True})


outside: dict[str, str] = {}
runs: list[str] = []


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    outside.clear()
    runs.clear()
    yield
    progress._listeners.clear()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@step(version=1, pool="cpu", table=None, outside=lambda *, config: dict(outside))
def toy_first(ctx: Context, *, config: Config) -> None:
    runs.append("first")
    (ctx.out / "a.txt").write_text(config.text + outside.get("content", ""))
    ctx.account(3, 2, {"too_long": 1})


@step(version=1, pool="cpu", table=None)
def toy_second(ctx: Context, *, first: Ref) -> None:
    runs.append("second")
    (ctx.out / "b.txt").write_text(ctx.path(first, "a.txt").read_text() * 2)


@step(version=1, pool="cpu", table=None)
def toy_failing(ctx: Context, *, config: Config) -> None:
    (ctx.out / "half.txt").write_text("half of")
    {"lost": lambda: ctx.account(3, 2, {}), "bug": lambda: [][0], "data": _refuse}[config.text]()


def _refuse() -> None:
    raise DataError("no column 'answer'")


def fingerprint(config: Config, label: str = "") -> str:
    return toy_first.plan(label, config=config).ref["fingerprint"]


# --- fingerprints ---


def test_a_fingerprint_is_hex_alone():
    assert set(fingerprint(Config())) <= set("0123456789abcdef")


def test_runtime_fields_and_the_label_stay_out_of_the_fingerprint():
    same = [Config(batch=1), Config(inner=Inner(fast=5)), Config(several=(Inner(fast=5),))]
    assert {fingerprint(config) for config in same} == {fingerprint(Config())}
    assert fingerprint(Config(), "another label") == fingerprint(Config())


def test_every_other_field_is_part_of_the_fingerprint():
    different = [Config(text="b"), Config(inner=Inner(kept=2)), Config(several=(Inner(kept=2),)), Config(several=())]
    assert len({fingerprint(config) for config in [Config(), *different]}) == 5


def test_what_enters_from_outside_is_part_of_the_fingerprint():
    before = fingerprint(Config())
    outside["weights"] = "1234"
    assert fingerprint(Config()) != before


def test_the_version_of_a_step_is_part_of_its_fingerprint():
    newer = replace(toy_first, version=2)
    assert newer.plan(config=Config()).ref != toy_first.plan(config=Config()).ref


def test_the_fingerprint_of_an_input_is_part_of_the_fingerprint():
    first = [toy_first.plan(config=Config(text=text)) for text in "ab"]
    assert toy_second.plan(first=first[0]).ref != toy_second.plan(first=first[1]).ref


# --- declarations ---


@pytest.mark.parametrize(
    ("declared", "error", "message"),
    [
        ({"table": None}, TypeError, "'pool'"),
        ({"pool": "cpu"}, TypeError, "'table'"),
        ({"pool": "tpu", "table": None}, ValueError, "step toy_new: there is no pool 'tpu'. Declare one of: cpu, gpu."),
        ({"pool": "cpu", "table": "outputs"}, ValueError, "step toy_new: table is 'outputs'. Declare a schema of"),
    ],
    ids=["no pool", "no table", "an unknown pool", "a table without a schema"],
)
def test_a_step_that_is_declared_incompletely_or_wrongly_fails_at_import(declared, error, message):
    def toy_new(ctx: Context) -> None: ...

    with pytest.raises(error, match=re.escape(message)):
        step(version=1, **declared)(toy_new)
    assert "toy_new" not in STEPS


def test_every_step_of_the_project_is_part_of_the_method():
    sources = [path.read_text() for path in (ROOT / "tasks").rglob("*.py")]
    declared = {name for source in sources for name in re.findall(r"^@step\((?:.|\n)*?^def (\w+)", source, re.M)}
    assert declared == set(rehearsal.STEPS), "flows/rehearsal.py says when a step runs"


def test_two_steps_of_one_name_fail_at_import():
    def toy_first(ctx: Context) -> None: ...

    with pytest.raises(ValueError, match=r"step toy_first: .*toy_first has this name already"):
        step(version=1, pool="cpu", table=None)(toy_first)


def test_a_step_that_does_not_write_its_table_publishes_nothing(store):
    planned = replace(toy_first, table=schema.TARGETS).plan(config=Config())
    with pytest.raises(
        StepError, match=r"toy_first: @step declares table=targets, but the body wrote no targets\.parquet"
    ):
        planned.execute(store)
    assert store.manifest(**planned.ref) is None


def test_a_planned_step_can_be_executed_from_its_json_values(store):
    planned = toy_first.plan("a label", config=Config(text="b"))
    again = Planned.from_json(json.loads(json.dumps(planned.to_json())))
    assert again == planned
    assert (store.fetch(again.execute(store)) / "a.txt").read_text() == "b"


# --- reuse ---


def run_both(store: Store, **options: bool) -> None:
    first = toy_first.plan(config=Config())
    first.execute(store, **options)
    toy_second.plan(first=first).execute(store)


def test_what_is_there_is_not_made_again(store):
    run_both(store)
    run_both(store)
    assert runs == ["first", "second"]


def test_force_makes_it_again_and_equal_bytes_stop_there(store):
    run_both(store)
    run_both(store, force=True)
    assert runs == ["first", "second", "first"]


def test_an_input_that_holds_other_bytes_than_before_is_read_again(store):
    run_both(store)
    planned = toy_first.plan(config=Config())
    outside["content"] = "changed"  # the body writes something else for the same fingerprint
    planned.execute(store, force=True)
    second = toy_second.plan(first=planned)
    assert second.reusable(store) is None
    second.execute(store)
    assert runs == ["first", "second", "first", "second"]
    assert (store.fetch(second.ref) / "b.txt").read_text() == "achangedachanged"


@step(version=1, pool="cpu", table=None)
def toy_long(ctx: Context, *, first: Ref) -> None:
    half = ctx.work / "half.txt"
    if not half.exists():
        runs.append("long")
        half.write_text(ctx.path(first, "a.txt").read_text())
    if "killed" in outside:
        raise StepError("killed")
    (ctx.out / "b.txt").write_text(half.read_text())


@pytest.mark.parametrize(("content", "n_runs"), [("", 1), ("changed", 2)])
def test_what_a_killed_step_left_counts_only_if_its_inputs_hold_the_same(store, content, n_runs):
    first = toy_first.plan(config=Config())
    first.execute(store)
    planned = toy_long.plan(first=first)
    outside["killed"] = "yes"
    with pytest.raises(StepError, match="killed"):
        planned.execute(store)
    outside.clear()
    outside["content"] = content
    first.execute(store, force=True)
    planned.execute(store)
    assert runs.count("long") == n_runs
    assert (store.fetch(planned.ref) / "b.txt").read_text() == f"a{content}"
    assert not list(Path(store.root).glob("work/*/*")), "nothing is left behind"


def test_a_forced_try_goes_on_from_a_forced_one_alone(store):
    first = toy_first.plan(config=Config())
    first.execute(store)
    planned = toy_long.plan(first=first)
    outside["killed"] = "yes"
    for force in (False, True, True):
        with pytest.raises(StepError, match="killed"):
            planned.execute(store, force=force)
    assert runs.count("long") == 2  # by the first, and anew by the first that is forced


@pytest.mark.parametrize("damage", ["changed", "removed", "torn manifest"])
def test_a_damaged_artifact_is_made_again(store, damage):
    planned = toy_first.plan(config=Config())
    folder = store.fetch(planned.execute(store))
    if damage == "changed":
        (folder / "a.txt").write_text("b")
    elif damage == "removed":
        (folder / "a.txt").unlink()
    else:
        (folder / "manifest.json").write_text('{"step"')
    planned.execute(store)
    assert runs == ["first", "first"]
    assert (folder / "a.txt").read_text() == "a"


def test_the_manifest_holds_identity_inputs_counts_and_circumstances(store):
    first = toy_first.plan(config=Config())
    manifest = store.manifest(**first.execute(store))
    assert manifest is not None
    assert manifest.identity == first.identity
    assert manifest.counts == {"rows_in": 3, "rows_out": 2, "dropped.too_long": 1}
    assert {"started", "seconds", "host", "python", "versions"} <= manifest.facts.keys()
    second = store.manifest(**toy_second.plan(first=first).execute(store))
    assert second is not None
    assert second.inputs == {"first": first.ref}
    assert second.input_digests == {"first": manifest.content_digest}


def test_listeners_hear_what_happens_to_a_step(store):
    heard: list[tuple[str, str]] = []

    class Listener:
        def started(self, label: str) -> None:
            heard.append(("started", label))

        def progress(self, label: str, done: int, total: int, detail: str) -> None: ...

        def finished(self, label: str, counts: dict[str, int], seconds: float) -> None:
            heard.append(("finished", label))

        def reused(self, label: str, counts: dict[str, int]) -> None:
            heard.append(("reused", label))

    progress.listen(Listener())
    for label in ("once", "twice"):
        toy_first.plan(label, config=Config()).execute(store)
    assert heard == [("started", "once"), ("finished", "once"), ("reused", "twice")]


# --- errors ---


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("lost", StepError, "toy_failing: 3 rows in, but 2 kept + {} = 2"),
        ("bug", StepError, "toy_failing: IndexError: list index out of range"),
        ("data", DataError, "no column 'answer'"),
    ],
)
def test_a_failing_body_is_an_error_of_ours_and_publishes_nothing(store, text, error, message):
    planned = toy_failing.plan(config=Config(text=text))
    with pytest.raises(error) as caught:
        planned.execute(store)
    assert str(caught.value) == message
    assert store.manifest(**planned.ref) is None
    assert not list(Path(store.root).rglob("half.txt"))


def test_the_cause_of_a_failure_is_kept(store):
    with pytest.raises(StepError) as caught:
        toy_failing.plan(config=Config(text="bug")).execute(store)
    assert isinstance(caught.value.__cause__, IndexError)


def test_reading_the_counts_of_an_input_that_is_gone_says_so(store, tmp_path):
    ref = Ref(step="toy_first", fingerprint="0" * 64)
    context = Context(store, Ref(step="toy_second", fingerprint="1" * 64), tmp_path, {"first": ref})
    with pytest.raises(StepError, match="gone while toy_second ran"):
        context.counts_of(ref)


# --- bodies in a process of their own ---


def judge_plan(store: Store, n_rows: int = 3) -> Planned:
    examples = [toy.example(f"{i:05}") for i in range(n_rows)]
    outputs = [toy.output(f"{i:05}", f"gold {i:05}") for i in range(n_rows)]
    return replace(judge, launcher=None).plan(
        engine=EngineConfig(), config=JudgeConfig(), abstention=AbstentionConfig(),
        examples=toy.put(store, "examples", examples), outputs=toy.put(store, "outputs", outputs),
    )  # fmt: skip


def spec_of(store: Store, planned: Planned, out: Path) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return {
        "module": planned.step.body.__module__, "store": store.uri, "ref": planned.ref, "out": str(out),
        "sections": planned.sections, "inputs": planned.inputs, "force": False,
    }  # fmt: skip


def test_a_step_in_a_process_of_its_own_makes_the_same_artifact(store, monkeypatch):
    here = judge_plan(store)
    in_process = toy.bytes_of(store, here.execute(store), "verdicts.parquet")
    own = replace(here, step=replace(judge, launcher=one_process))
    monkeypatch.setitem(STEPS, "judge", own.step)
    announced: list[tuple[int, int]] = []

    class Listener:
        def started(self, label: str) -> None: ...
        def finished(self, label: str, counts: dict[str, int], seconds: float) -> None: ...
        def reused(self, label: str, counts: dict[str, int]) -> None: ...
        def progress(self, label: str, done: int, total: int, detail: str) -> None:
            announced.append((done, total))

    progress.listen(Listener())
    ref = own.execute(store, force=True)
    assert toy.bytes_of(store, ref, "verdicts.parquet") == in_process
    assert toy.counts_of(store, ref)["accept"] == 3
    assert announced[-1] == (3, 3)


@pytest.mark.parametrize("error", [DataError, ConfigError])
def test_an_error_in_the_process_arrives_as_it_was_raised(store, tmp_path, error):
    script = tmp_path / "launcher.py"
    event = json.dumps({"event": "error", "type": error.__name__, "message": "no column 'answer'"})
    script.write_text(f"print('loading'); print('SSR-EVENT ' + {event!r}); raise SystemExit(2)")
    with pytest.raises(error, match="no column 'answer'"):
        run_in_process({}, tmp_path / "spec.json", launcher=[sys.executable, str(script)], progress=progress.silent)


def test_an_error_of_the_real_worker_arrives_as_it_was_raised(store, tmp_path):
    planned = judge_plan(store)
    (store.fetch(planned.inputs["outputs"]) / "manifest.json").unlink()
    with pytest.raises(Exception, match="no such artifact") as caught:
        run_in_process(
            spec_of(store, planned, tmp_path / "out"), tmp_path / "spec.json", launcher=one_process(),
            progress=progress.silent,
        )  # fmt: skip
    assert type(caught.value).__name__ == "StoreError"


def test_a_process_that_dies_gives_its_code_and_its_last_lines(tmp_path):
    script = tmp_path / "launcher.py"
    script.write_text(
        "import os, signal\n"
        "for i in range(100): print(f'line {i}')\n"
        "print('CUDA error: out of memory', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with pytest.raises(StepError) as caught:
        run_in_process({}, tmp_path / "spec.json", launcher=[sys.executable, str(script)], progress=progress.silent)
    message = str(caught.value)
    assert "ended with code -9" in message
    assert "CUDA error: out of memory" in message
    assert "line 99" in message
    assert "line 5\n" not in message


def test_a_process_that_ends_well_without_a_result_is_a_failure(tmp_path):
    script = tmp_path / "launcher.py"
    script.write_text("print('bye')")
    with pytest.raises(StepError, match="ended with code 0"):
        run_in_process({}, tmp_path / "spec.json", launcher=[sys.executable, str(script)], progress=progress.silent)


def test_a_worker_that_cannot_read_its_spec_gives_the_traceback(store, tmp_path):
    spec = spec_of(store, judge_plan(store), tmp_path / "out") | {"module": "tasks.no_such_module"}
    with pytest.raises(StepError, match=r"No module named .tasks\.no_such_module"):
        run_in_process(spec, tmp_path / "spec.json", launcher=one_process(), progress=progress.silent)


def test_a_listener_that_fails_ends_the_process(tmp_path):
    pid_file = tmp_path / "pid"
    script = tmp_path / "launcher.py"
    script.write_text(
        f"import os, pathlib, time\npathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\n"
        'print(\'SSR-EVENT {"event": "progress", "done": 1, "total": 2, "detail": ""}\', flush=True)\n'
        "time.sleep(600)\n"
    )

    def cancelled(done: int, total: int, detail: str = "") -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_process({}, tmp_path / "spec.json", launcher=[sys.executable, str(script)], progress=cancelled)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


PARENT = """
import sys
from pathlib import Path
from tasks.running import progress
from tasks.running.process import run_in_process
run_in_process({"module": "hangs"}, Path(sys.argv[1]), launcher=[sys.executable], progress=progress.silent)
"""
# What the worker imports as the module of its step: it says its process id, then never ends.
HANGS = """
import os, threading
from pathlib import Path
Path(os.environ["PID_PIPE"]).write_text(str(os.getpid()))
threading.Event().wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_the_process_ends_when_the_flow_that_started_it_is_killed(tmp_path):
    (tmp_path / "hangs.py").write_text(HANGS)
    pipe = tmp_path / "pid"
    os.mkfifo(pipe)
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "PID_PIPE": str(pipe)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "spec.json")], env=env, cwd=ROOT)
    try:
        child = os.pidfd_open(int(pipe.read_text()))  # waits for the child to write
        parent.send_signal(signal.SIGKILL)
        parent.wait(timeout=60)
        ended, _, _ = select.select([child], [], [], 60)
        if not ended:
            signal.pidfd_send_signal(child, signal.SIGKILL)
        os.close(child)
        assert ended, "the child outlived the flow: it would keep the GPU"
    finally:
        parent.kill()
        parent.wait()


def test_a_worker_whose_flow_is_already_gone_does_not_start(tmp_path):
    (tmp_path / "spec.json").write_text(json.dumps({"parent": 1_000_000_000}))
    command = [sys.executable, "-m", "tasks.running.worker", str(tmp_path / "spec.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the flow that started this step is gone" in done.stderr
