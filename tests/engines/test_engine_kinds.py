"""A kind of engine is declared once: it runs from there to the report, and a forgotten part fails at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from in_process import steps_in_process

from flows.cli.doctor import examine
from flows.execution.devices import gpu_remarks
from flows.form.parts import ModelPart
from flows.rehearsal import plan_steps
from tasks import engine_kinds
from tasks.artifacts.store import open_store
from tasks.config import EngineConfig, ModelConfig, parse_recipe
from tasks.engine_kinds import EngineKind, check_fields, register
from tasks.engines import Reply, open_engine, shared_server
from tasks.errors import ConfigError

ROOT = Path(__file__).parents[2]
ECHO = EngineKind(
    name="echo", description="says what it was asked", opens=f"{__name__}:open_echo", loads_weights=True, reads=()
)


class EchoEngine:
    """Answers with the last line of the prompt."""

    def generate(self, requests: Any, sampling: Any, *, done: Any = ()) -> Iterator[Reply]:
        for request in requests:
            if request.key not in done:
                yield Reply(request.key, "echo: " + request.messages[-1]["content"].splitlines()[-1], "stop", 1, 1)


@contextmanager
def open_echo(model: ModelConfig, config: EngineConfig, *, work: Path, adapter: Path | None) -> Iterator[Any]:
    yield EchoEngine()


def no_environment() -> Path:
    raise ConfigError("echo has no environment. Run `make echo`.")


@pytest.fixture
def known_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone afterwards."""
    monkeypatch.setattr(engine_kinds, "_KINDS", dict(engine_kinds._KINDS))


def test_a_kind_that_is_registered_once_answers_is_measured_and_reported(
    known_kinds: None, tiny_model: Path, tmp_path: Path
) -> None:
    register(ECHO)
    recipe = parse_recipe(
        {
            "model": {"base": str(tiny_model)}, "engine": "echo", "arms": [{"name": "ssr", "policy": "ssr"}],
            "data": {"sources": [{"name": "lab", "reader": "lab"}], "lab_rows": 40},
            "train": {"epochs": 1, "max_length": 256, "lora_rank": 4},
            "evaluate": {"benchmarks": [], "max_task_rows": 5, "drift_rows": 0}, "report": {"n_bootstrap": 200},
        },
        where="toy",
    )  # fmt: skip
    store = open_store(str(tmp_path))
    with steps_in_process():
        made = {planned.label: store.fetch(planned.execute(store)) for planned in plan_steps(recipe)}
    texts = pq.read_table(made["generate"] / "outputs.parquet")["text"].to_pylist()
    assert len(texts) > 10
    assert all(text.startswith("echo: ") for text in texts)
    for label in ("evaluate base", "evaluate ssr"):
        items = pq.read_table(made[label] / "items.parquet")["output"].to_pylist()
        assert items
        assert all(output.startswith("echo: ") for output in items)
    assert "echo: " in (made["report"] / "report.html").read_text()


def test_a_kind_that_is_registered_once_is_known_wherever_kinds_count(
    known_kinds: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    register(
        EngineKind(
            "far", "on other machines", ECHO.opens, loads_weights=False, reads=("urls",), needs=("urls",),
            finds_environment=f"{__name__}:no_environment",
        )
    )  # fmt: skip
    with pytest.raises(ValueError, match="kind far needs `urls`"):
        EngineConfig(kind="far")
    with pytest.raises(ValueError, match="batch_tokens has no effect with kind far"):
        EngineConfig(kind="far", urls=("http://a/v1",), batch_tokens=1)
    assert "far" in EngineConfig.model_json_schema()["properties"]["kind"]["enum"]
    far = parse_recipe({"engine": {"kind": "far", "urls": ["http://a/v1"]}}, where="toy")
    assert gpu_remarks(far) == [], "it uses no GPU of this machine"
    with pytest.raises(ConfigError, match="an adapter cannot be put on a server elsewhere"):
        open_engine(ModelConfig(), far.engine, work=tmp_path, adapter=tmp_path)
    [finding] = [finding for finding in examine(str(tmp_path)) if finding.what == "engine far"]
    assert (finding.ok, finding.found) == (False, "echo has no environment. Run `make echo`.")


def test_the_form_offers_every_kind() -> None:
    offered = ModelPart.model_json_schema()["properties"]["engine"]["enum"]
    assert offered == ["as in the recipe", *(kind.name for kind in engine_kinds.engine_kinds())]


@pytest.mark.parametrize(
    ("engine", "on_one_server", "measured_with"),
    [
        ({"kind": "vllm", "memory_share": 0.5}, True, {"kind": "vllm", "memory_share": 0.5}),
        # A batch that is made smaller because memory ran out is as small when the arms are measured.
        ({"kind": "transformers", "batch_tokens": 600}, False, {"kind": "transformers", "batch_tokens": 600}),
        ({"kind": "openai", "urls": ["http://a/v1"]}, False, {"kind": "transformers"}),
    ],
)
def test_what_a_kind_can_measure_decides_how_base_and_arms_are_measured(
    engine: dict[str, Any], on_one_server: bool, measured_with: dict[str, Any], tiny_model: Path
) -> None:
    recipe = parse_recipe({"model": {"base": str(tiny_model)}, "engine": engine, "evaluate": {"benchmarks": []}},
                          where="toy")  # fmt: skip
    planned = {one.label: one for one in plan_steps(recipe)}
    assert ("measure" in planned) == on_one_server
    assert planned["evaluate base"].sections["engine"] == EngineConfig(**measured_with).model_dump(mode="json")


def test_a_kind_without_a_shared_server_is_not_asked_for_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not measure several models on one server"):
        shared_server(ModelConfig(), EngineConfig(), work=tmp_path, adapters={})


# --- what is forgotten ---


@pytest.mark.parametrize(
    ("declared", "imported", "message"),
    [
        ("opens='tasks.engines.toy:open_toy', reads=()", "tasks.engines", "names no function (No module"),
        ("opens='tasks.engines.vllm:open_toy', reads=()", "tasks.engines", "Write the function, or correct its name"),
        ("opens='tasks.engines.vllm:open_vllm', reads=('n_slots',)", "tasks.config", "Add the field in tasks/config/"),
        ("reads=()", "tasks.engine_kinds", "missing 1 required positional argument: 'opens'"),
    ],
    ids=["no module", "no function", "no field", "no opener"],
)  # fmt: skip
def test_a_forgotten_part_of_a_kind_fails_at_import(declared: str, imported: str, message: str) -> None:
    script = (
        "from tasks.engine_kinds import EngineKind, register\n"
        f"register(EngineKind(name='toy', description='a toy', loads_weights=True, {declared}))\nimport {imported}"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (EngineKind("vllm", "", "a:b", loads_weights=True, reads=()), "this name is declared twice"),
        (EngineKind("toy", "", "a:b", loads_weights=True, reads=(), needs=("urls",)), "List that under `reads`, too"),
        (EngineKind("toy", "", "a:b", loads_weights=False, reads=(), shares="a:c"), "Remove `shares`"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(known_kinds: None, kind: EngineKind, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register(kind)


def test_a_setting_that_no_kind_reads_is_refused() -> None:
    with pytest.raises(ValueError, match=r"EngineConfig\.n_slots: no engine kind reads it"):
        check_fields({*EngineConfig.model_fields, "n_slots"} - {"kind"})


# --- one place ---


def compared_with_a_kind(source: str) -> list[int]:
    """Lines that compare something with the name of a kind, or look it up by that name."""
    names = {kind.name for kind in engine_kinds.engine_kinds()}

    def is_name(node: ast.AST) -> bool:
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            return any(is_name(one) for one in node.elts)
        return isinstance(node, ast.Constant) and node.value in names

    found = []
    for node in ast.walk(ast.parse(source)):
        compared = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        matched = [node.value] if isinstance(node, ast.MatchValue) else []
        keys = [key for key in node.keys if key] if isinstance(node, ast.Dict) else []
        if any(map(is_name, compared + matched + keys)):
            found.append(node)
    # What a server says of its owner is no kind of engine.
    return [node.lineno for node in found if ".owned_by" not in ast.unparse(node)]


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("if engine.kind == 'vllm': ...", True),
        ("on_server = kind in ('vllm', 'openai')", True),
        ("opener = {'transformers': f}[kind]", True),
        ("match kind:\n    case 'openai': ...", True),
        ("is_vllm = model.owned_by == 'vllm'", False),
        ("config = EngineConfig(kind='vllm')", False),
    ],
)
def test_the_reader_of_comparisons_sees_them_in_every_form(source: str, is_found: bool) -> None:
    assert bool(compared_with_a_kind(source)) == is_found


def test_no_code_asks_for_a_kind_by_its_name() -> None:
    modules = [path for top in ("flows", "tasks") for path in (ROOT / top).rglob("*.py")]
    asked = {str(path.relative_to(ROOT)): compared_with_a_kind(path.read_text()) for path in modules}
    assert {name: lines for name, lines in asked.items() if lines} == {}
