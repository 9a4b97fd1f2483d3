"""Datasets of the Hub, without the Hub: its loader on a local folder, its refusals offline."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, constants

from tasks.config import DataConfig, SourceConfig
from tasks.errors import DataError
from tasks.ingest import ingest


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def dataset(write, tmp_path, monkeypatch: pytest.MonkeyPatch) -> str:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"question": f"{i}?", "answer": str(i)} for i in range(3)]
    write("dataset/train.jsonl", rows)
    write("dataset/test.jsonl", [{"question": "held out?", "answer": "yes"}])
    return str(tmp_path / "dataset")


def test_the_rows_of_the_named_split_are_read(run, dataset):
    found = run({"hub": dataset, "revision": "abc"})
    assert set(found.by_question()) == {"0?", "1?", "2?"}
    found = run(
        {"hub": dataset, "revision": "abc", "hub_split": "test"}, {"name": "b", "hub": dataset, "revision": "abc"}
    )
    assert "held out?" in found.by_question()


def test_another_revision_is_another_step(dataset):
    prints = {
        ingest.plan(config=DataConfig(sources=(SourceConfig(hub=dataset, revision=r),))).ref["fingerprint"]
        for r in "ab"
    }
    assert len(prints) == 2


def test_offline_an_unpinned_dataset_is_refused_while_planning(dataset):
    with pytest.raises(DataError, match=r"Set data\.sources\.0\.revision to a commit"):
        ingest.plan(config=DataConfig(sources=(SourceConfig(hub=dataset),)))


def test_a_split_that_is_not_there_is_refused(run, dataset):
    with pytest.raises(DataError, match=r"split none\).*Check data\.sources\.0\.hub"):
        run({"hub": dataset, "revision": "abc", "hub_split": "none"})


def test_online_the_commit_stands_for_the_revision_and_rows_are_streamed(run, dataset, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # The one call that needs the Hub itself.
    monkeypatch.setattr(
        HfApi, "dataset_info", lambda self, name, *, revision: SimpleNamespace(sha=f"sha-of-{revision}")
    )
    source = {"hub": dataset, "revision": "v1"}
    assert set(run(source).by_question()) == {"0?", "1?", "2?"}
    outside = ingest.plan(config=DataConfig.model_validate({"sources": [source]})).identity["outside"]
    assert outside["data.sources.0"]["revision"] == "sha-of-v1"
