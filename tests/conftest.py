"""What every test stands on: no network, no state outside its folder, and a tiny model of random weights."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

# Before anything imports Prefect or the Hub's client: both read these once.
_HOME = tempfile.mkdtemp(prefix="ssr-tests-")
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "PREFECT_HOME": f"{_HOME}/prefect",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "SSR_CACHE": f"{_HOME}/cache",
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.pop("PREFECT_API_URL", None)
# The models of the tests are too small for several threads, which would only take the cores from other workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402  # after the environment

# Modules that share what is expensive to start; with `pytest -n`, one worker runs all of a group. What takes longest
# stands first and starts first, so that no worker is left alone with it at the end.
_GROUPS = {
    "a stage of the platform": ("platform/test_pipeline", "platform/test_promotion", "platform/test_secrets"),
    "another stage": ("platform/test_faults",),
    "a Prefect server": (
        "flows/test_guide", "flows/test_recipes", "flows/test_run", "flows/test_growing", "flows/test_run_policies",
        "flows/execution/test_children", "flows/execution/test_prefect_ui", "flows/execution/test_devices",
        "flows/execution/test_step_flows", "flows/form/test_run_form",
    ),
}  # fmt: skip
_GROUP_OF = {f"tests/{module}.py": group for group, modules in _GROUPS.items() for module in modules}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:  # Any: pytest-xdist may not be installed
    """With `pytest -n`, one worker runs a whole module, or group of modules, so that it makes their fixtures once."""
    from xdist.scheduler import LoadFileScheduling

    class ByGroup(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = str(super()._split_scope(nodeid))
            return _GROUP_OF.get(module, module)

    config.option.loadscopereorder = False
    return ByGroup(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `pytest -n`, the groups start first, then the other modules with slow tests."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    groups = list(_GROUPS)

    def place(item: pytest.Item) -> tuple[int, bool]:
        group = _GROUP_OF.get(item.nodeid.partition("::")[0])
        return groups.index(group) if group else len(groups), item.path not in slow

    items.sort(key=place)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of 100,000 random parameters and the lab's tokenizer: real code paths, poor answers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tasks.lab.tokenizer import build_tokenizer

    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False, initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """Python of vLLM's environment; without one a test is skipped, unless SSR_REQUIRE_VLLM=1 says there must be one."""
    from tasks.engines.vllm_server import find_python
    from tasks.errors import ConfigError

    try:
        return find_python()
    except ConfigError as error:
        if os.environ.get("SSR_REQUIRE_VLLM") == "1":
            raise
        pytest.skip(str(error))
