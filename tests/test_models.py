"""Where a Hub model comes from: what is fetched for which need, and what its digest stands for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from tasks import models
from tasks.artifacts.digest import digest_of
from tasks.config import ModelConfig
from tasks.errors import DataError
from tasks.models import load_tokenizer, model_digest, model_folder

NAME, COMMIT, NEXT_COMMIT = "acme/tiny", "a" * 40, "b" * 40
MODEL = ModelConfig(base=NAME)
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
DESCRIPTION = ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors.index.json"]
SECOND_COPIES = ["consolidated.safetensors", "original/params.json", "original/consolidated.00.pth"]


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    models._hub_snapshot.cache_clear()
    yield
    models._hub_snapshot.cache_clear()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Hub repositories, instead of the user's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_into(cache: Path, files: list[str], *, commit: str = COMMIT) -> Path:
    """A snapshot as the Hub's client lays it out, with `main` at it."""
    repository = cache / "models--acme--tiny"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    folder = repository / "snapshots" / commit
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


class Hub:
    """Stands for the Hub: a repository whose `main` may move."""

    def __init__(self, cache: Path, files: list[str]) -> None:
        self.cache, self.files, self.commit = cache, files, COMMIT

    def snapshot_download(self, name: str, *, revision: str | None, **patterns: Any) -> str:
        assert name == NAME
        commit = self.commit if revision in (None, "main") else str(revision)
        return str(put_into(self.cache, list(filter_repo_objects(self.files, **patterns)), commit=commit))


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(cache, [*DESCRIPTION, *SHARDS, *SECOND_COPIES, "pytorch_model.bin"])
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    return hub


def fetched(cache: Path) -> set[str]:
    found = cache.glob("models--*/snapshots/*/**/*")
    return {str(path.relative_to(cache).as_posix()).split("/", 3)[3] for path in found if path.is_file()}


def test_a_digest_needs_no_weights(hub: Hub, cache: Path) -> None:
    model_digest(MODEL)
    assert fetched(cache) == set(DESCRIPTION)


def test_weights_are_fetched_once_though_the_repository_holds_them_twice(hub: Hub, cache: Path) -> None:
    assert model_folder(MODEL).name == COMMIT
    assert fetched(cache) == {*DESCRIPTION, *SHARDS}


def test_a_digest_stands_for_the_commit_whether_or_not_the_weights_are_here(hub: Hub) -> None:
    described = model_digest(MODEL)
    assert described == digest_of(["hub", NAME, COMMIT])  # as in every fingerprint so far
    models._hub_snapshot.cache_clear()
    model_folder(MODEL)
    assert model_digest(MODEL) == described


def test_another_commit_is_another_digest(hub: Hub) -> None:
    first = model_digest(MODEL)
    models._hub_snapshot.cache_clear()
    hub.commit = NEXT_COMMIT
    assert model_digest(MODEL) != first


def test_weights_are_of_the_commit_that_was_digested_though_the_branch_has_moved(hub: Hub) -> None:
    digest = model_digest(MODEL)
    hub.commit = NEXT_COMMIT
    assert digest_of(["hub", NAME, model_folder(MODEL).name]) == digest


def test_offline_the_cached_commit_is_digested_without_its_weights(cache: Path) -> None:
    put_into(cache, DESCRIPTION)
    assert model_digest(MODEL) == digest_of(["hub", NAME, COMMIT])
    assert model_digest(ModelConfig(base=NAME, revision=COMMIT)) == digest_of(["hub", NAME, COMMIT])


def test_offline_cached_weights_are_found(cache: Path) -> None:
    folder = put_into(cache, [*DESCRIPTION, *SHARDS])
    assert model_folder(MODEL) == folder


@pytest.mark.parametrize("weights", [[], ["consolidated.safetensors"]])
def test_offline_a_model_without_weights_cannot_be_loaded(cache: Path, weights: list[str]) -> None:
    put_into(cache, [*DESCRIPTION, *weights])
    with pytest.raises(DataError, match=r"acme/tiny: .* holds no safetensors.* HF_HUB_OFFLINE is set\."):
        model_folder(MODEL)


def test_offline_a_model_that_was_never_fetched_is_refused(cache: Path) -> None:
    with pytest.raises(DataError, match=r"model\.base=acme/tiny: .*HF_HUB_OFFLINE is set\."):
        model_digest(MODEL)


def test_a_tokenizer_is_read_without_the_weights(cache: Path, tiny_model: Path) -> None:
    folder = put_into(cache, [])
    folder.mkdir(parents=True)
    for name in os.listdir(tiny_model):
        if not name.endswith(".safetensors"):
            (folder / name).write_bytes((tiny_model / name).read_bytes())
    assert load_tokenizer(MODEL).chat_template


def test_a_folder_without_weights_is_refused_before_anything_loads_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(DataError, match="holds no safetensors"):
        model_digest(ModelConfig(base=str(tmp_path)))
