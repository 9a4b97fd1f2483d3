"""The engine in this process: what decides its answers, and what must not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tasks.config import ModelConfig
from tasks.engines import Request, Sampling
from tasks.engines.transformers import TransformersEngine


def answers(model: Path, sampling: Sampling) -> dict[str, str | None]:
    engine = TransformersEngine(ModelConfig(base=str(model)), batch_tokens=2_000)
    asked = [Request(str(i), [{"role": "user", "content": f"Q {i}?"}], seed=7) for i in range(8)]
    return {reply.key: reply.text for reply in engine.generate(asked, sampling)}


def test_what_a_models_repository_says_of_decoding_does_not_count(tiny_model: Path, tmp_path: Path) -> None:
    penalised = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((penalised / "generation_config.json").read_text())
    changed = {"repetition_penalty": 50.0, "do_sample": True, "top_k": 1, "temperature": 0.01}
    (penalised / "generation_config.json").write_text(json.dumps(config | changed))
    for sampling in (Sampling(16), Sampling(16, temperature=1.0)):
        assert answers(penalised, sampling) == answers(tiny_model, sampling)
