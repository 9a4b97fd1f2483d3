"""Runs of the deployed pipeline promote, on machines that reach the store with a block of the server alone."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from stage import Json, Stage, form

from flows.deployment.pools import put_access
from flows.promotion.status import promotion_status
from tasks.artifacts.store import open_store

pytestmark = pytest.mark.slow

ACCESS = "platform"


class Promoting(NamedTuple):
    """A run as the nightly schedule starts it, then one with what the weekly schedule says.

    Attributes:
        trained: When the adapter was made that each run left, in seconds since the epoch.
        stands: What is promoted after each.
    """

    nightly: str
    weekly: str
    n_paid: list[int]
    trained: list[float]
    stands: list[Json]


@pytest.fixture(scope="module")
def promoting(stage: Stage, undisturbed: str, tmp_path_factory: pytest.TempPathFactory) -> Promoting:
    store = stage.bucket("main")
    with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_API_URL: stage.server.api_url}):
        for name, value in stage.access().items() | {("SSR_CACHE", str(tmp_path_factory.mktemp("cache")))}:
            patch.setenv(name, value)
        put_access(ACCESS)
        filled_in = form(stage.data, stage.model, promotes=True, execution="deployments")
        (full,) = (one for one in stage.runs.deployment["schedules"] if one["slug"] == "weekly-full")
        runs, n_paid, trained, stands = [], [], [], []
        with stage.workers("cpu-1", access=False), stage.workers("gpu-1", pool="ssr-gpu", access=False):
            for run in (filled_in, filled_in | full["parameters"]["run"]):
                runs.append(stage.runs.start(run=run, store_access=ACCESS))
                stage.runs.wait(runs[-1])
                n_paid.append(store.paid().total())
                trained.append(float(store.manifest("train")["facts"]["started"]))
                stands += promotion_status(open_store(store.uri), "demo")
    return Promoting(*runs, n_paid, trained, stands)


def test_a_run_promotes_its_adapter_and_says_so(stage: Stage, promoting: Promoting) -> None:
    stands = promoting.stands[0]
    assert [decision["outcome"] for decision in stands["history"]] == ["promoted"]
    assert stands["current"]["intact"]
    assert promoting.nightly.endswith(stands["current"]["run_id"].rpartition("-")[2])
    children = {child["name"]: child["work_pool_name"] for child in stage.runs.children(promoting.nightly)}
    assert children["promote"] == "ssr-cpu"


def test_the_weekly_run_trains_and_measures_again_and_leaves_what_is_promoted(
    stage: Stage, promoting: Promoting
) -> None:
    children = {child["name"] for child in stage.runs.children(promoting.weekly)}
    assert children >= {"train ssr", "evaluate base", "evaluate ssr", "promote"}
    assert promoting.trained[1] > promoting.trained[0]
    assert promoting.n_paid[1] == promoting.n_paid[0]
    assert promoting.stands[1] == promoting.stands[0]
