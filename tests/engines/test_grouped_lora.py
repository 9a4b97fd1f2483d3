"""What a vLLM server on a CPU does with adapters: beside vLLM's own functions, and on a real server.

Needs vLLM's environment (SSR_VLLM_PYTHON, or `make engine`); SSR_REQUIRE_VLLM=1 makes its absence a failure.
"""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tasks.config import EngineConfig, ModelConfig
from tasks.engines import Continuation, Engine, Request, Sampling, open_engine, shared_server
from tasks.engines.vllm_server import VllmServer, has_cuda
from tasks.lab.corpus import user_message
from tasks.lab.task import task_rows

MODULE = Path(__file__).parents[2] / "tasks" / "engines" / "vllm_cpu" / "grouped_lora.py"
LORA_OPS, PUNICA = "vllm.lora.ops.torch_ops.lora_ops", "vllm.lora.punica_wrapper.punica_cpu"
FUNCTIONS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice", "sgmv_shrink", "sgmv_expand", "sgmv_expand_slice")
N_TOKENS, N_SLOTS, RANK, WIDTH = 40, 3, 4, 10


# --- beside vLLM's own functions, which are plain torch ---


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def lora_ops_path(vllm_python: Path) -> Path:
    ask = "import importlib.util as u; print(u.find_spec('vllm').submodule_search_locations[0])"
    found = subprocess.run([vllm_python, "-c", ask], check=True, capture_output=True, text=True, cwd="/")
    return Path(found.stdout.strip()) / "lora" / "ops" / "torch_ops" / "lora_ops.py"


@pytest.fixture
def theirs(lora_ops_path: Path) -> ModuleType:
    return load(lora_ops_path, "theirs")


@pytest.fixture
def vllm(lora_ops_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """vLLM's functions as `import vllm` finds them, with the module that uses them on a CPU."""
    lora_ops, punica = load(lora_ops_path, "lora_ops"), ModuleType("punica_cpu")
    vars(punica).update({name: getattr(lora_ops, name) for name in FUNCTIONS})
    for name in (LORA_OPS, PUNICA):
        parts = name.split(".")
        for i in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i]), ModuleType(parts[i - 1]))
    for name, module in ((LORA_OPS, lora_ops), (PUNICA, punica)):
        parent, _, last = name.rpartition(".")
        monkeypatch.setattr(sys.modules[parent], last, module, raising=False)
        monkeypatch.setitem(sys.modules, name, module)
    return lora_ops


@pytest.fixture
def ours(vllm: ModuleType) -> ModuleType:
    """vLLM's functions after ours have taken their place."""
    load(MODULE, "grouped_lora")
    return vllm


def indices(*, base: bool) -> Any:  # Any: a tensor
    import torch

    found = torch.tensor([0, 2, 2, 1, 0] * (N_TOKENS // 5))
    if base:
        found[::4] = -1
    return found


def result(ops: ModuleType, name: str, slots: Any, *, dtype: str = "float32", dim: int = 3, **more: Any) -> Any:
    """The output of one of the functions on numbers that depend on nothing but the arguments; Any: tensors."""
    import torch

    drawn = torch.Generator().manual_seed(1)

    def numbers(*shape: int) -> Any:
        return torch.randn(*shape, generator=drawn).to(getattr(torch, dtype))

    n_in, n_out = (WIDTH, RANK) if "shrink" in name else (RANK, WIDTH)
    inputs, output = numbers(N_TOKENS, n_in), numbers(N_TOKENS, WIDTH + 2)
    weights = numbers(*((N_SLOTS, n_out, n_in) if dim == 3 else (N_SLOTS, 1, n_out, n_in)))
    if name.startswith("sgmv"):
        runs, lengths = torch.unique_consecutive(slots, return_counts=True)
        starts = lengths.cumsum(0) - lengths
        where = (starts, lengths, runs, len(runs), int(lengths.max()), N_TOKENS)
    else:
        where = (slots,)
    if "shrink" in name:
        more["scaling"] = 0.5
    elif "slice" in name:
        more |= {"slice_offset": 1, "slice_size": WIDTH}
    getattr(ops, name)(inputs, weights, output, *where, **more)
    return output


@pytest.mark.parametrize("dim", [3, 4])
@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows_with_adapters_are_as_vllms(ours: ModuleType, theirs: ModuleType, name: str, add: bool, dim: int) -> None:
    import torch

    more = {} if "shrink" in name else {"add_inputs": add}
    for slots in (indices(base=False), torch.ones(N_TOKENS, dtype=torch.long)):
        expected = result(theirs, name, slots, dim=dim, **more)
        torch.testing.assert_close(result(ours, name, slots, dim=dim, **more), expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_in_half_precision_they_are_vllms_too(ours: ModuleType, theirs: ModuleType, name: str) -> None:
    import torch

    found, expected = (result(ops, name, indices(base=False), dtype="bfloat16") for ops in (ours, theirs))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows_of_the_base_model_are_left_alone(ours: ModuleType, theirs: ModuleType, name: str) -> None:
    import torch

    mixed, none = indices(base=True), torch.full((N_TOKENS,), -1)
    untouched = result(ours, name, none)
    found, base = result(ours, name, mixed), mixed < 0
    assert torch.equal(found[base], untouched[base])
    torch.testing.assert_close(found[~base], result(theirs, name, mixed)[~base])
    assert not torch.allclose(result(theirs, name, mixed)[base], untouched[base]), "vLLM is right: ours can go"


def test_one_row_for_all_outputs_stays_as_vllm_does_it(ours: ModuleType, theirs: ModuleType) -> None:
    import torch

    def spread(ops: ModuleType) -> Any:  # Any: a tensor
        output = torch.zeros(5, WIDTH)
        ops.bgmv_expand(torch.ones(1, RANK), torch.ones(N_SLOTS, WIDTH, RANK), output, torch.tensor([1]))
        return output

    assert torch.equal(spread(ours), spread(theirs))


# --- another vLLM ---


def one_more_parameter(lora_ops: ModuleType) -> None:
    known = lora_ops.bgmv_shrink
    lora_ops.bgmv_shrink = lambda inputs, weights, *rest, chunk=1: known(inputs, weights, *rest)  # type: ignore[attr-defined]


def no_function(lora_ops: ModuleType) -> None:
    del lora_ops.bgmv_expand


def one_function_for_all(lora_ops: ModuleType) -> None:
    lora_ops.sgmv_shrink = lambda *arguments: None  # type: ignore[attr-defined]


def functions_in_use(lora_ops: ModuleType) -> list[object]:
    return [getattr(module, name, None) for module in (lora_ops, sys.modules[PUNICA]) for name in FUNCTIONS]


@pytest.mark.parametrize("change", [one_more_parameter, no_function, one_function_for_all])
def test_a_vllm_with_other_functions_keeps_them_all(
    vllm: ModuleType, change: Callable[[ModuleType], None], caplog: pytest.LogCaptureFixture
) -> None:
    change(vllm)
    before = functions_in_use(vllm)
    with caplog.at_level(logging.WARNING):
        load(MODULE, "grouped_lora")
    assert functions_in_use(vllm) == before
    assert "LoRA stays as this vLLM does it" in caplog.text


def test_a_vllm_without_the_modules_is_served_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert load(MODULE, "grouped_lora").GroupedLora
    assert "LoRA stays as this vLLM does it" in caplog.text


# --- the server ---


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> ModelConfig:
    return ModelConfig(base=str(tiny_model))


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two LoRA adapters of random weights, and of two ranks."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folders = {}
    for rank in (4, 8):
        torch.manual_seed(rank)
        config = LoraConfig(
            r=rank, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
        )
        folders[f"rank-{rank}"] = tmp_path_factory.mktemp("adapter")
        made = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
        made.save_pretrained(folders[f"rank-{rank}"])
    return folders


@pytest.mark.parametrize(("on_gpu", "with_adapters"), [(False, True), (True, True), (False, False)])
def test_only_a_server_on_a_cpu_with_adapters_loads_it(
    model: ModelConfig, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    on_gpu: bool, with_adapters: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr("tasks.engines.vllm_server.has_cuda", lambda: on_gpu)
    monkeypatch.setenv("PYTHONPATH", "/ours")
    config = EngineConfig(kind="vllm", python=sys.executable)
    server = VllmServer(model, config, log=tmp_path / "log", adapters=adapters if with_adapters else None)
    expected = with_adapters and not on_gpu
    assert ("grouped_lora.GroupedLora" in server._arguments()) == expected
    assert server._environment().get("PYTHONPATH") == (str(MODULE.parent) if expected else None)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def served(model: ModelConfig, adapters: dict[str, Path], vllm_python: Path, work: Path) -> Iterator[dict[str, Engine]]:
    """Base and adapters on one server."""
    if has_cuda():
        pytest.skip("GPUs have kernels of their own")
    yield from opened(model, EngineConfig(kind="vllm", start_timeout_seconds=400), adapters, work)


@pytest.fixture(scope="module")
def in_process(model: ModelConfig, adapters: dict[str, Path], work: Path) -> Iterator[dict[str, Engine]]:
    yield from opened(model, EngineConfig(batch_tokens=4_000), adapters, work)


def opened(
    model: ModelConfig, config: EngineConfig, adapters: dict[str, Path], work: Path
) -> Iterator[dict[str, Engine]]:
    with ExitStack() as stack:
        if config.kind == "vllm":
            stack.enter_context(shared_server(model, config, work=work, adapters=adapters))
        folders = {"base": None, **adapters}
        yield {
            name: stack.enter_context(open_engine(model, config, work=work, adapter=folder))
            for name, folder in folders.items()
        }


def lab_messages(n: int) -> list[list[dict[str, str]]]:
    rows = islice(task_rows(n, seed=0), n)
    return [[{"role": "user", "content": user_message(row.document, row.question)}] for row in rows]


def likelihoods(engine: Engine) -> dict[str, float | None]:
    rows = [Continuation(f"key-{i}", said, f"The answer is {i}") for i, said in enumerate(lab_messages(40))]
    return {one.key: one.nll for one in engine.likelihoods(rows)}


def texts(engine: Engine) -> dict[str, str | None]:
    rows = [Request(f"key-{i}", said, seed=i) for i, said in enumerate(lab_messages(40))]
    return {one.key: one.text for one in engine.generate(rows, Sampling(max_new_tokens=16))}


def together(measured: Callable[[Engine], Any], engines: dict[str, Engine]) -> dict[str, Any]:
    """All at once, so that the server's batches mix their rows; Any: whatever is measured."""
    with ThreadPoolExecutor(len(engines)) as pool:
        return dict(zip(engines, pool.map(measured, engines.values()), strict=True))


@pytest.mark.slow
def test_likelihoods_in_mixed_batches_are_those_of_each_model_alone(
    served: dict[str, Engine], in_process: dict[str, Engine]
) -> None:
    mixed = together(likelihoods, served)
    for name in served:
        assert mixed[name] == pytest.approx(likelihoods(served[name]), abs=1e-4)
        assert mixed[name] == pytest.approx(likelihoods(in_process[name]), abs=1e-4)
    differ = sum(abs(mixed["base"][key] - mixed["rank-8"][key]) > 1e-2 for key in mixed["base"])
    assert differ > 30, "an adapter that changes nothing would hide a mistake"


@pytest.mark.slow
def test_texts_in_mixed_batches_are_those_of_each_model_alone(served: dict[str, Engine]) -> None:
    mixed = together(texts, served)
    for name in served:
        alone = texts(served[name])
        same = sum(mixed[name][key] == alone[key] for key in alone)
        assert same >= 0.95 * len(alone), f"{name}: {same} of {len(alone)}"


@pytest.mark.slow
def test_the_server_says_that_it_groups_adapters(served: dict[str, Engine], work: Path) -> None:
    assert "one product for each adapter" in (work / "vllm.log").read_text()
