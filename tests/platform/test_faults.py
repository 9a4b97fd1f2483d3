"""What goes wrong where runs live: machines die, two do the same, S3 fails. On real parts, the UI in a real browser.

Every table must come out as that of the run that nothing disturbed, and no row may be paid for twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from browser import browser
from in_process import rehearsed
from prefect.settings import PREFECT_API_URL, temporary_settings
from s3 import Call, S3Proxy
from searching import everything_on, leaks
from stage import Bucket, Json, Stage, form

from flows.form.run_form import RunForm

pytestmark = pytest.mark.slow


class Dead(NamedTuple):
    """Two runs whose machine has lost its power, one while generating and one while training.

    Attributes:
        paid: Rows that the first had paid for by then.
        states: What the server thought of each right after.
    """

    generating_run: str
    training_run: str
    generating: Bucket
    training: Bucket
    paid: Counter[str]
    states: list[str]


class Twice(NamedTuple):
    """Two runs of the same at once, on two machines, over an S3 that fails.

    Attributes:
        runs: As they ended.
        taken_by: For each run, the machines whose worker says that it took it.
    """

    store: Bucket
    calls: list[Call]
    runs: list[Json]
    taken_by: list[list[str]]


@contextmanager
def proxy_of(stage: Stage) -> Iterator[S3Proxy]:
    proxy = S3Proxy(stage.endpoint)
    try:
        yield proxy
    finally:
        proxy.close()


@pytest.fixture(scope="module")
def undisturbed(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    """The store of the same run, which nothing disturbed, in this process."""
    store = stage.bucket("reference")
    with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_API_URL: stage.server.api_url}):
        for name, value in stage.access().items() | {("SSR_CACHE", str(tmp_path_factory.mktemp("cache")))}:
            patch.setenv(name, value)
        recipe = RunForm.model_validate(form(stage.data, stage.model, execution="inline")).to_recipe()
        rehearsed(recipe, store.uri)
    return store


@pytest.fixture(scope="module")
def dead(stage: Stage, undisturbed: Bucket) -> Dead:
    """The first was started in the browser, with a name and epochs filled in.

    By its end the machine has kept one part of the rows, or one checkpoint, however late this test ends it.
    """
    generating, training = stage.bucket("killed-generating"), stage.bucket("killed-training")
    filled_in = form(stage.data, stage.model, execution="inline")
    before = stage.runs.deployment["parameters"]
    stage.runs.set_defaults(run=filled_in, store=generating.uri)
    with (
        proxy_of(stage) as proxy, browser(stage.server) as ui,
        stage.workers("doomed-1", endpoint=proxy.url) as (doomed,),
    ):  # fmt: skip
        proxy.stand_still_after("rows/outputs/")
        ui.open_form()
        ui.fill("Name", "by-hand")
        ui.fill("Epochs", "2")
        known = stage.runs.all()
        ui.submit()
        first = stage.runs.wait_for_another(known)
        ui.rest()
        generating.wait_for_object("rows/outputs", ".parquet")
        doomed.kill()
        states = [stage.runs.state(first)]
        ui.open_run(first, "killed")
    stage.runs.set_defaults(**before)
    with proxy_of(stage) as proxy, stage.workers("doomed-2", endpoint=proxy.url) as (doomed,):
        proxy.stand_still_after(r"work/train/.*\.complete$")  # a checkpoint counts from then on
        second = stage.runs.start(run=filled_in, store=training.uri)
        training.wait_for_object("work/train", ".complete")
        doomed.kill()
        states.append(stage.runs.state(second))
    return Dead(first, second, generating, training, generating.paid(), states)


@pytest.fixture(scope="module")
def twice(stage: Stage, dead: Dead) -> Twice:
    """After `dead`, because the automation needs that time to notice the deaths."""
    store = stage.bucket("twice")
    with (
        proxy_of(stage) as proxy,
        # A worker takes every run that it finds, so each has a queue of its own.
        stage.workers("cpu-1", queue="parents", endpoint=proxy.url) as (one,),
        stage.workers("cpu-2", queue="others", endpoint=proxy.url) as (other,),
    ):
        proxy.fail(0.05)
        proxy.slow(0.02)
        filled_in = form(stage.data, stage.model, execution="inline")
        runs = [stage.runs.start(run=filled_in, store=store.uri, queue=queue) for queue in ("parents", "others")]
        store.wait_for_object("rows/outputs", ".parquet")
        proxy.away(20)
        ended = [stage.runs.wait(run) for run in runs]
        taken_by = [[machine.name for machine in (one, other) if run in machine.log.read_text()] for run in runs]
    return Twice(store, proxy.calls, ended, taken_by)


@pytest.fixture(scope="module")
def retried(stage: Stage, dead: Dead, twice: Twice) -> str:
    """Both dead runs, retried in the browser and completed on another machine; what its page of the report says."""
    runs = dead.generating_run, dead.training_run
    for run in runs:
        stage.runs.wait(run, "CRASHED")
    with browser(stage.server) as ui:
        with stage.workers("cpu-3"):
            for run in runs:
                ui.retry(run, "crashed")
            for run in runs:
                stage.runs.wait(run)
        report = ui.open_artifact(dead.generating_run, "report-by-hand", says="Base and arms")
        ui.keep("report")
        ui.open_run(dead.generating_run, "completed")
    return report


def test_the_form_starts_a_run_with_what_was_filled_in(stage: Stage, dead: Dead, retried: str) -> None:
    given = stage.runs.read(dead.generating_run)["parameters"]["run"]
    assert (given["name"], given["train"]["epochs"]) == ("by-hand", 2)
    assert dead.generating.manifest("train")["identity"]["config"]["config"]["epochs"] == 2
    assert dead.training.manifest("train")["identity"]["config"]["config"]["epochs"] == 1
    assert "Run by-hand" in retried


def test_a_run_whose_machine_died_while_generating_goes_on_when_retried(
    undisturbed: Bucket, dead: Dead, retried: str
) -> None:
    counts = dead.generating.manifest("generate")["counts"]
    assert dead.states == ["RUNNING", "RUNNING"]  # until the automation noticed
    assert 0 < len(dead.paid) < counts["rows_out"]  # in the middle of it
    assert counts["rows_reused"] == len(dead.paid)
    assert set(dead.generating.paid().values()) == {1}
    tables, reference = dead.generating.tables(), undisturbed.tables()
    shared = {name: digest for name, digest in tables.items() if name in reference}
    assert {name.rpartition("/")[2] for name in shared} >= {"outputs.parquet", "verdicts.parquet", "targets.parquet"}
    assert {name: reference[name] for name in shared} == shared


def test_a_run_whose_machine_died_while_training_goes_on_from_its_checkpoint(
    undisturbed: Bucket, dead: Dead, retried: str
) -> None:
    assert dead.training.manifest("train")["facts"]["resumed"]
    assert set(dead.training.paid().values()) == {1}
    assert dead.training.tables() == undisturbed.tables()
    assert dead.training.names("work") == []


def test_two_machines_with_the_same_run_at_once_pay_for_it_once_while_s3_fails(
    undisturbed: Bucket, twice: Twice
) -> None:
    assert twice.taken_by == [["cpu-1"], ["cpu-2"]]
    first, second = twice.runs
    assert max(first["start_time"], second["start_time"]) < min(first["end_time"], second["end_time"])
    assert {call.outcome for call in twice.calls} >= {"passed", "500", "503", "reset"}
    assert twice.store.tables() == undisturbed.tables()
    assert set(twice.store.paid().values()) == {1}
    assert twice.store.names("claims") == []


def test_no_secret_is_in_what_killed_and_failing_runs_have_left(stage: Stage, twice: Twice, retried: str) -> None:
    assert leaks(dict(everything_on(stage))) == []
