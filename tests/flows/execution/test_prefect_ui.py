"""What a run shows in the Prefect UI, read back from a real server; and that a server which is away harms no step."""

from __future__ import annotations

import html
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from uuid import UUID, uuid4

import pytest
from markdown_it import MarkdownIt
from prefect import flow, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner

from flows.execution import prefect_ui
from flows.execution.prefect_ui import (
    ArtifactListener,
    StepProgress,
    artifact_key,
    show_counts,
    show_links,
    show_report,
)
from tasks.artifacts.digest import digest_of
from tasks.artifacts.store import Manifest, Ref, Store, describe_files, open_store
from tasks.config import RunConfig
from tasks.report.pages import inert
from tasks.running.progress import listening
from tasks.running.step import Context, Planned, Step
from tasks.wording import counts_in_words

DEADLINE_SECONDS = 60.0


def artifacts(flow_run_id: str | UUID) -> dict[str, Artifact]:
    with get_client(sync_client=True) as client:
        chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(str(flow_run_id))]))
        made = client.read_artifacts(artifact_filter=chosen)
    return {artifact.key: artifact for artifact in made if artifact.key}  # Prefect keeps results as nameless ones


def wait_for(found: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not found():
        assert time.monotonic() < end, "not seen in time"


def toy_step(name: str, body: Callable[[Context], None]) -> Planned:
    return Step(name, 1, body).plan(f"{name} It")


def run_as_tasks(store: Store, planned: list[Planned]) -> None:
    """Each step in a task, all at once, in threads, as a runner has it."""

    @task(cache_policy=NO_CACHE)
    def make(place: int) -> None:
        planned[place].execute(store)

    for future in [make.submit(place) for place in range(len(planned))]:
        future.result()


@pytest.mark.parametrize("detail", ["", "loss 0.500, 2 of 8"])
def test_the_progress_of_a_child_can_be_read_back(detail):
    progress = StepProgress(1_200, 10_000, detail)
    assert StepProgress.from_metadata(progress.to_metadata()) == progress


def test_a_child_that_has_only_begun_has_no_progress():
    assert StepProgress.from_metadata({}) is None


@pytest.mark.slow
def test_steps_that_run_side_by_side_each_show_how_far_they_are(prefect_server, tmp_path):
    seen: dict[str, Artifact] = {}
    both = threading.Barrier(2, timeout=DEADLINE_SECONDS)

    def body(ctx: Context) -> None:
        key = f"toy-{ctx.ref['step']}-it"
        ctx.progress(2, 8, "loss 0.500")
        run_id = runtime.flow_run.id
        wait_for(lambda: key in artifacts(run_id) and artifacts(run_id)[key].data == 25)
        seen[key] = artifacts(run_id)[key]
        both.wait()
        ctx.account(8, 7, {"too_long": 1})

    planned = [toy_step(name, body) for name in ("first", "second")]

    @flow(name="toy", task_runner=ThreadPoolTaskRunner(max_workers=2))
    def toy() -> str:
        with ArtifactListener("toy", every_seconds=0.05) as shows, listening(shows):
            run_as_tasks(open_store(str(tmp_path)), planned)
        return str(runtime.flow_run.id)

    made = artifacts(toy())
    assert set(made) == set(seen) == {"toy-first-it", "toy-second-it"}
    for key, artifact in made.items():
        assert (artifact.type, artifact.data) == ("progress", 100)
        assert "8 rows in, 7 rows out, 1 dropped too long" in str(artifact.description)
        assert seen[key].description == "25 %, loss 0.500, 2 of 8"
        assert StepProgress.from_metadata(seen[key].metadata_ or {}) == StepProgress(2, 8, "loss 0.500")
        assert seen[key].id == artifact.id
    assert len({artifact.task_run_id for artifact in made.values()}) == 2


@pytest.mark.slow
def test_a_step_that_fails_is_left_where_it_stopped(prefect_server, tmp_path):
    def body(ctx: Context) -> None:
        ctx.progress(3, 4, "12 tokens/s")
        raise ValueError("broken")

    planned = toy_step("failing", body)
    ids = []

    @flow(name="toy", task_runner=ThreadPoolTaskRunner(max_workers=2))
    def toy() -> None:
        ids.append(str(runtime.flow_run.id))
        with ArtifactListener("toy") as shows, listening(shows):
            run_as_tasks(open_store(str(tmp_path)), [planned])

    with pytest.raises(Exception, match="broken"):
        toy()
    (artifact,) = artifacts(ids[0]).values()
    assert (artifact.data, artifact.description) == (75, "stopped: 75 %, 12 tokens/s, 3 of 4")


@pytest.fixture
def in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", str(uuid4()))


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def tell_of_a_whole_step(listener: ArtifactListener) -> None:
    listener.started("train ssr")
    for i in range(2000):
        listener.progress("train ssr", i, 2000, f"loss {i}")
    listener.finished("train ssr", {"rows_out": 1}, 1.0)


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every try to send a bar; a server that is away is tried again at once."""
    made: list[str] = []
    send = prefect_ui._send

    def counted(client: SyncPrefectClient, bar: prefect_ui._Bar) -> None:
        made.append(bar.text)
        send(client, bar)

    monkeypatch.setattr(prefect_ui, "_send", counted)
    monkeypatch.setattr(prefect_ui, "_RETRY_SECONDS", 0.01)
    return made


@pytest.mark.usefixtures("in_a_run")
def test_a_server_that_is_away_is_told_once_and_harms_no_step(tries, caplog):
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    listener = ArtifactListener("toy", every_seconds=0.01)
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{closed}/api"}), listener:
        tell_of_a_whole_step(listener)
        wait_for(lambda: len(tries) >= 3)
    assert len([record for record in caplog.records if "not shown in the Prefect UI" in record.message]) == 1


@pytest.mark.slow
def test_a_server_that_was_away_gets_the_last_word(prefect_server, tries, monkeypatch):
    send, left = prefect_ui._send, iter([ConnectionError("away"), ConnectionError("away")])

    def fails_twice(client: SyncPrefectClient, bar: prefect_ui._Bar) -> None:
        if error := next(left, None):
            raise error
        send(client, bar)

    monkeypatch.setattr(prefect_ui, "_send", fails_twice)

    @flow(name="toy")
    def toy() -> str:
        with ArtifactListener("toy", every_seconds=0.01) as listener:
            tell_of_a_whole_step(listener)
            wait_for(lambda: bool(tries))
        return str(runtime.flow_run.id)

    (artifact,) = artifacts(toy()).values()
    assert artifact.data == 100


@pytest.mark.usefixtures("in_a_run")
def test_a_server_that_never_answers_holds_up_neither_a_step_nor_the_end(monkeypatch, silent_port):
    monkeypatch.setattr(prefect_ui, "_LAST_SEND_SECONDS", 0.1)
    listener = ArtifactListener("toy", every_seconds=0.01)
    started = time.monotonic()
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{silent_port}/api"}), listener:
        tell_of_a_whole_step(listener)
    assert time.monotonic() - started < prefect_ui._REQUEST_SECONDS / 2


def test_outside_of_a_run_nothing_is_shown(silent_port, caplog):
    listener = ArtifactListener("toy", every_seconds=0.01)
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{silent_port}/api"}), listener:
        tell_of_a_whole_step(listener)
    assert caplog.records == []


# --- at the end of a run ---


def publish(store: Store, name: str, files: dict[str, str], *, started: float, **counts: int) -> Planned:
    ref = Ref(step=name, fingerprint=digest_of(name))
    with store.staging(**ref) as folder:
        for file, text in files.items():
            (folder / file).write_text(text)
        facts = {"started": started, "seconds": 61.0}
        store.publish(folder, Manifest(**ref, identity={}, inputs={}, files=describe_files(folder), counts=counts,
                                       facts=facts))  # fmt: skip
    return Planned(Step(name, 1, lambda: None), f"{name} it", ref, {}, {}, {})


@pytest.mark.slow
def test_a_run_ends_with_its_steps_its_report_and_where_they_are(prefect_server, tmp_path):
    store = open_store(str(tmp_path))
    hostile = "<script>alert(1)</script> [x](https://evil.example) WWW.evil.example a@evil.example"
    markdown = f"# Report\n\n{inert(hostile)}\n"
    old = publish(store, "ingest", {"a": "a"}, started=100.0, rows_in=1600, rows_out=1583)
    new = publish(store, "report", {"report.md": markdown}, started=300.0)
    absent = Planned(old.step, "train it", Ref(step="train", fingerprint="0" * 64), {}, {}, {})

    @flow(name="toy")
    def toy() -> str:
        recipe = RunConfig(name="my_run")
        show_counts(store, [old, new, absent], name=recipe.name, since=200.0)
        show_report(store, new.ref, recipe)
        show_links(store, new.ref, recipe, run_id="my_run-1")
        return str(runtime.flow_run.id)

    made = artifacts(toy())
    assert set(made) == {"steps-my-run", "report-my-run", "links-my-run"}
    rows = json.loads(str(made["steps-my-run"].data))
    assert [(row["step"], row["result"]) for row in rows] == [
        ("ingest it", "cached"), ("report it", "made"), ("train it", "missing"),
    ]  # fmt: skip
    assert rows[0]["counts"] == "1,600 rows in, 1,583 rows out"
    assert rows[0]["time"] == "1 min 1 s"
    assert rows[0]["folder"] == store.link(old.ref)
    report = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(str(made["report-my-run"].data))
    assert "<h1>Report</h1>" in report
    assert not re.search(
        "<script|<a |https?://|www[.]|[a-z]@", html.unescape(report.replace("&lt;", "")), re.IGNORECASE
    )
    assert html.unescape(report).replace("\u2060", "").strip().endswith(f"<p>{hostile}</p>")
    links = str(made["links-my-run"].data)
    assert f"```\n{store.link(new.ref, 'report.html')}\n```" in links
    assert "ssr why my_run-1" in links


class TestLinksToAws:
    """A page of AWS's console stands beside an address only where the store is at AWS."""

    @pytest.fixture(autouse=True)
    def _no_endpoint(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.delenv(name, raising=False)

    def test_a_file_links_to_its_folder(self):
        store = open_store("s3://bucket/a b")
        assert prefect_ui._aws_page(store, f"{store.uri}/steps/report/f/report.html") == (
            "https://console.aws.amazon.com/s3/buckets/bucket?prefix=a%20b/steps/report/f/"
        )
        assert (
            prefect_ui._aws_page(store, store.uri) == "https://console.aws.amazon.com/s3/buckets/bucket?prefix=a%20b/"
        )

    def test_a_store_elsewhere_has_none(self, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        store = open_store("s3://bucket/runs")
        assert prefect_ui._aws_page(store, store.uri) is None

    def test_a_folder_has_none(self, tmp_path):
        assert prefect_ui._aws_page(open_store(str(tmp_path)), str(tmp_path)) is None


def test_keys_are_what_prefect_takes():
    assert artifact_key("my_run", "train ssr-1e-3.5") == "my-run-train-ssr-1e-3-5"


def test_counts_are_words_without_zeros_and_begin_with_the_rows():
    counts = {"dropped.empty": 0, "dropped.too_long": 2, "rows_in": 1000, "rows_out": 998}
    assert counts_in_words(counts) == "1,000 rows in, 998 rows out, 2 dropped too long"
    assert counts_in_words({}) == "nothing to count"
