"""What a person sees of a run in the Prefect UI: bars while it works; at its end counts, the report, and where it is.

All of it is made by the flow, not by its tasks: an artifact made in a task that is cached the next time would be
missing from the next run.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote
from uuid import UUID

from prefect import runtime
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

from tasks.artifacts.s3_store import S3Store
from tasks.artifacts.store import Ref, Store
from tasks.config import RunConfig
from tasks.report.pages import fenced
from tasks.running.step import Planned
from tasks.wording import seconds as in_words

logger = logging.getLogger(__name__)

_AWAY_SECONDS = 30.0  # between tries while the server cannot be reached
_REQUEST_SECONDS = 10.0
_LAST_WORDS_SECONDS = 10.0  # that the end of a run may wait for a slow server


class HowFar(NamedTuple):
    """What a bar says. A run whose step is on another worker knows no more of it than these words, and reads them."""

    done: int
    total: int
    detail: str

    def in_words(self) -> str:
        """Such as `25 %, loss 0.500, 2 of 8`; with a total of 0, which is not known yet, `2, loss 0.500`."""
        done, total, detail = self
        # The most telling first: a card in the UI shows some thirty characters, and no bar.
        said = [f"{100 * done / total:.0f} %", detail, f"{done:,} of {total:,}"] if total else [f"{done:,}", detail]
        return ", ".join(filter(None, said))

    @classmethod
    def from_words(cls, text: str) -> HowFar | None:
        """None where the text does not say: the step has only begun, or it is done."""
        found = re.fullmatch(r"\d+ %, (?:(.*), )?([\d,]+) of ([\d,]+)", text)
        if found is None:
            return None
        done, total = (int(number.replace(",", "")) for number in found.group(2, 3))
        return cls(done, total, found.group(1) or "")


@dataclass
class _Bar:
    """A progress artifact as it should be; `changed` until the server has it so."""

    key: str
    flow_run_id: UUID
    task_run_id: UUID | None
    percent: float = 0.0
    text: str = "started"
    changed: bool = True
    finished: bool = False
    artifact_id: UUID | None = None


class ArtifactListener:
    """Shows every step that runs as a progress artifact of its task, with its speed or loss beside it.

    Use it around the steps of a flow, in the flow's thread. Steps only leave word here, whatever thread they are in; a
    thread of the listener's own talks to the server, so that one which is slow or away costs a step nothing.

    Args:
        name: Begins the keys of the artifacts, so that the runs of one recipe have a history of their own.
    """

    def __init__(self, name: str = "", *, every_seconds: float = 2.5) -> None:
        self._name = name
        self._every_seconds = every_seconds
        self._bars: dict[str, _Bar] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._away = False
        self._flow_run_id: str | None = None

    def __enter__(self) -> ArtifactListener:
        self._flow_run_id = runtime.flow_run.id
        # A client of its own: the one in Prefect's context belongs to a thread, and is closed with its task.
        client = get_client(sync_client=True, httpx_settings={"timeout": _REQUEST_SECONDS})
        self._sender = threading.Thread(target=self._keep_sending, args=(client,), name="progress", daemon=True)
        self._sender.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            for bar in self._bars.values():
                if not bar.finished:
                    bar.text, bar.changed = f"stopped: {bar.text}", True
        self._closing.set()
        self._sender.join(_LAST_WORDS_SECONDS)

    def started(self, label: str) -> None:
        flow_run_id, task_run_id = runtime.flow_run.id or self._flow_run_id, runtime.task_run.id
        if flow_run_id is None:
            return  # nothing to show it on
        bar = _Bar(artifact_key(self._name, label), UUID(flow_run_id), UUID(task_run_id) if task_run_id else None)
        with self._lock:
            self._bars[label] = bar

    def progress(self, label: str, done: int, total: int, detail: str) -> None:
        with self._lock:
            if bar := self._bars.get(label):
                bar.percent = min(100.0, 100 * done / total) if total else 0.0
                bar.text, bar.changed = HowFar(done, total, detail).in_words(), True

    def finished(self, label: str, counts: dict[str, int], seconds: float) -> None:
        with self._lock:
            if bar := self._bars.get(label):
                bar.percent, bar.changed, bar.finished = 100.0, True, True
                bar.text = f"done in {in_words(seconds)}: {counts_in_words(counts)}"

    def reused(self, label: str, counts: dict[str, int]) -> None:
        """Nothing: its task is shown as Cached."""

    def _keep_sending(self, client: SyncPrefectClient) -> None:
        with client:
            while True:
                closing = self._closing.wait(_AWAY_SECONDS if self._away else self._every_seconds)
                self._send_changed(client)
                if closing:
                    return

    def _send_changed(self, client: SyncPrefectClient) -> None:
        with self._lock:
            changed = [bar for bar in self._bars.values() if bar.changed]
            for bar in changed:
                bar.changed = False
        for place, bar in enumerate(changed):
            try:
                _send(client, bar)
                self._away = False
            except Exception as error:  # whatever it is, training must go on
                if not self._away:
                    logger.warning(
                        "Progress is not shown in the Prefect UI for now: %s: %s", type(error).__name__, error
                    )
                self._away = True
                with self._lock:
                    for unsent in changed[place:]:
                        unsent.changed = True
                return


def _send(client: SyncPrefectClient, bar: _Bar) -> None:
    if bar.artifact_id is not None:
        client.update_artifact(bar.artifact_id, ArtifactUpdate(data=bar.percent, description=bar.text))
        return
    made = client.create_artifact(
        ArtifactCreate(
            type="progress", key=bar.key, data=bar.percent, description=bar.text, flow_run_id=bar.flow_run_id,
            task_run_id=bar.task_run_id,
        )
    )  # fmt: skip
    bar.artifact_id = made.id


def show_counts(store: Store, planned: Iterable[Planned], *, name: str, since: float) -> None:
    """A table of the steps: made or cached, counts, time, folder. A step that is not there is shown as missing.

    Args:
        since: When the run began, in seconds since 1970: what was made before is cached.
    """
    rows = []
    for one in planned:
        manifest = store.manifest(**one.ref)
        facts = manifest.facts if manifest else {}
        made = "missing" if manifest is None else "made" if facts.get("started", 0.0) >= since else "cached"
        rows.append({
            "step": one.label, "result": made, "time": in_words(facts.get("seconds")),
            "counts": counts_in_words(manifest.counts) if manifest else "", "folder": store.link(one.ref),
        })  # fmt: skip
    create_table_artifact(rows, key=artifact_key("steps", name), description="Steps of the run")


def show_report(store: Store, report: Ref, recipe: RunConfig) -> None:
    """The report as Markdown. Its template makes every text of a model or of data inert; here, without links, too."""
    markdown = _unlinked((store.fetch(report) / "report.md").read_text())
    create_markdown_artifact(markdown, key=artifact_key("report", recipe.name), description="Report of the run")


def show_links(store: Store, report: Ref, recipe: RunConfig, *, run_id: str) -> None:
    """Where the run's files are: in the store, and in AWS's console where the store is there."""
    places = {
        "Report with charts, to open in a browser": store.link(report, "report.html"),
        "Report as data": store.link(report, "report.json"),
        "Record of the run": f"{store.uri}/runs/{run_id}.json",
        "All artifacts": store.uri,
    }
    places["Where a number comes from"] = f"ssr why {run_id} --store {store.uri}"
    blocks = []
    for what, address in places.items():
        page = _aws_page(store, address)
        # As code, which scrolls where it is long: no browser opens s3://, and whoever reads it copies it.
        blocks.append(f"{what}{f' ([AWS console]({page}))' if page else ''}\n\n{fenced(address)}\n")
    create_markdown_artifact(
        "\n".join(blocks), key=artifact_key("links", recipe.name), description="Where the files are"
    )


def _unlinked(markdown: str) -> str:
    """The same without links: the UI makes them of every address in a text, once its character references are read."""
    joiner = "&#8288;"  # takes no room, and no address has one
    markdown = markdown.replace(":&#47;&#47;", f":{joiner}&#47;&#47;").replace("&#64;", f"{joiner}&#64;")
    return re.sub(r"(www)&#46;", rf"\1{joiner}&#46;", markdown, flags=re.IGNORECASE)


def _aws_page(store: Store, address: str) -> str | None:
    if not isinstance(store, S3Store) or not address.startswith("s3://") or not store.files.is_aws:
        return None
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    folder = prefix.rpartition("/")[0] if address != store.uri else prefix
    return f"https://console.aws.amazon.com/s3/buckets/{quote(bucket)}?prefix={quote(folder)}/"


def counts_in_words(counts: Mapping[str, int]) -> str:
    """Such as `1,600 rows in, 1,583 rows out, 17 dropped too long`; what is 0 is left out."""
    first = {name: counts[name] for name in ("rows_in", "rows_out") if name in counts}  # a manifest sorts by name
    said = (f"{n:,} {re.sub(r'[._]+', ' ', name)}" for name, n in {**first, **counts}.items() if n)
    return ", ".join(said) or "nothing to count"


def artifact_key(*parts: str) -> str:
    """A key as Prefect wants it: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")
