"""The items of benchmarks that a model was measured on, kept on the store, so that no later run measures them again.

    <store>/items/<key>.parquet     every item of one benchmark for one model, never removed

The key holds everything that decides an item: the weights of model and adapter, the engine, the settings, the metrics
and the benchmark's content. The task's data are not part of it, so when they grow, only the task's own questions are
asked anew. A forced step measures again.
"""

from __future__ import annotations

from pathlib import Path

from tasks.artifacts.digest import digest_of
from tasks.artifacts.store import Ref, Store
from tasks.config import AbstentionConfig, EngineConfig, EvaluateConfig, ModelConfig
from tasks.evaluate import benchmarks
from tasks.measures.metrics import GENERAL, scored_versions
from tasks.models import model_digest

_VERSION = 3  # raise it when the same key would give other items
_OF_THE_TASK = ("benchmarks", "max_task_rows", "max_new_tokens", "drift_rows")  # settings that no benchmark reads


def key_of(
    store: Store, name: str, adapter: Ref | None, *, model: ModelConfig, engine: EngineConfig, config: EvaluateConfig,
    abstention: AbstentionConfig,
) -> str:  # fmt: skip
    """The key of one benchmark for one model."""
    settings = {field: value for field, value in config.identity().items() if field not in _OF_THE_TASK}
    content = benchmarks.content_digests(config.model_copy(update={"benchmarks": (name,)}))
    weights = [model_digest(model), _files(store, adapter)]
    sections = [model.identity(), engine.identity(), abstention.identity()]
    return digest_of([_VERSION, scored_versions(GENERAL), name, content, settings, weights, sections])


def _files(store: Store, adapter: Ref | None) -> dict[str, str] | None:
    """Digests of an adapter's files; None for the base, so that no adapter can have the key of the base."""
    if adapter is None:
        return None
    manifest = store.manifest(**adapter)
    files = manifest.files if manifest else []
    return {entry["name"]: entry["sha256"] for entry in files if entry["name"].startswith("adapter/")}


def get(store: Store, key: str, target: Path) -> bool:
    """Copy the items to a local file; False if there are none."""
    try:
        store.files.download(_path(store, key), target)
    except FileNotFoundError:
        return False
    return True


def put(store: Store, key: str, source: Path) -> None:
    """Put the items of a local file on the store; they appear whole or not at all."""
    store.files.upload(source, _path(store, key))


def _path(store: Store, key: str) -> str:
    return store.path("items", f"{key}.parquet")
