"""What the Prefect UI shows of a run: progress bars, and at its end the counts, the report and links to the files.

The flow makes all of these Prefect artifacts, not its tasks: a later run with a cache hit does not execute the task, so
its artifacts would be missing there.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote
from uuid import UUID

from prefect import runtime
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

from tasks import wording
from tasks.artifacts.s3_store import S3Store
from tasks.artifacts.store import Ref, Store
from tasks.config import RunConfig
from tasks.report.pages import fenced
from tasks.running.step import Planned

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 30.0  # between tries while the server cannot be reached
_REQUEST_SECONDS = 10.0
_LAST_SEND_SECONDS = 10.0  # how long the end of a run may wait for a slow server


class StepProgress(NamedTuple):
    """How far a step is. A parent run reads it from the metadata of the progress artifact of its child.

    Attributes:
        total: 0 where it is not known yet.
        detail: A short text such as a speed; may be empty.
    """

    done: int
    total: int
    detail: str

    def in_words(self) -> str:
        """Such as `25 %, loss 0.500, 2 of 8`; without a known total `2, loss 0.500`."""
        done, total, detail = self
        # The most important first: a card in the UI shows some thirty characters, and no bar.
        said = [f"{100 * done / total:.0f} %", detail, f"{done:,} of {total:,}"] if total else [f"{done:,}", detail]
        return ", ".join(filter(None, said))

    def to_metadata(self) -> dict[str, str]:
        """As the metadata of an artifact, whose values are texts."""
        return {"done": str(self.done), "total": str(self.total), "detail": self.detail}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> StepProgress | None:
        """What `to_metadata` has written; None before the step has reported progress."""
        if not metadata:
            return None
        return cls(int(metadata["done"]), int(metadata["total"]), metadata["detail"])


@dataclass
class _Bar:
    """A progress artifact as it should be on the server; `changed` until it is sent."""

    key: str
    flow_run_id: UUID
    task_run_id: UUID | None
    percent: float = 0.0
    text: str = "started"
    progress: StepProgress | None = None
    changed: bool = True
    finished: bool = False
    artifact_id: UUID | None = None


class ArtifactListener:
    """Shows every running step as a progress artifact of its task, with its speed or loss.

    Use it around the steps of a flow, in the thread of the flow. Steps report here from any thread. Only the listener's
    own thread talks to the server, so that a slow or unreachable server does not slow a step down.

    Args:
        name: Begins the keys of the artifacts, so that the runs of one recipe have a history of their own.
    """

    def __init__(self, name: str = "", *, every_seconds: float = 2.5) -> None:
        self._name = name
        self._every_seconds = every_seconds
        self._bars: dict[str, _Bar] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._unreachable = False
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
        self._sender.join(_LAST_SEND_SECONDS)

    def started(self, label: str) -> None:
        """Make a bar for the step, on the task that runs it or else on the flow."""
        flow_run_id, task_run_id = runtime.flow_run.id or self._flow_run_id, runtime.task_run.id
        if flow_run_id is None:
            return  # nothing to show it on
        bar = _Bar(artifact_key(self._name, label), UUID(flow_run_id), UUID(task_run_id) if task_run_id else None)
        with self._lock:
            self._bars[label] = bar

    def progress(self, label: str, done: int, total: int, detail: str) -> None:
        """Move the bar of the step."""
        with self._lock:
            if bar := self._bars.get(label):
                bar.percent = min(100.0, 100 * done / total) if total else 0.0
                bar.progress = StepProgress(done, total, detail)
                bar.text, bar.changed = bar.progress.in_words(), True

    def finished(self, label: str, counts: dict[str, int], seconds: float) -> None:
        """Fill the bar of the step, and show its counts."""
        with self._lock:
            if bar := self._bars.get(label):
                bar.percent, bar.changed, bar.finished = 100.0, True, True
                bar.text = f"done in {wording.seconds(seconds)}: {wording.counts_in_words(counts)}"

    def reused(self, label: str, counts: dict[str, int]) -> None:
        """Show nothing: the UI shows the task as Cached."""

    def _keep_sending(self, client: SyncPrefectClient) -> None:
        with client:
            while True:
                closing = self._closing.wait(_RETRY_SECONDS if self._unreachable else self._every_seconds)
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
                self._unreachable = False
            except Exception as error:  # whatever it is, training must go on
                if not self._unreachable:
                    logger.warning(
                        "Progress is not shown in the Prefect UI for now: %s: %s", type(error).__name__, error
                    )
                self._unreachable = True
                with self._lock:
                    for unsent in changed[place:]:
                        unsent.changed = True
                return


def _send(client: SyncPrefectClient, bar: _Bar) -> None:
    content: dict[str, Any] = {  # Any: a number, a text and a mapping
        "data": bar.percent, "description": bar.text,
        "metadata_": bar.progress.to_metadata() if bar.progress else None,
    }  # fmt: skip
    if bar.artifact_id is not None:
        client.update_artifact(bar.artifact_id, ArtifactUpdate(**content))
        return
    made = client.create_artifact(
        ArtifactCreate(
            type="progress", key=bar.key, flow_run_id=bar.flow_run_id, task_run_id=bar.task_run_id, **content
        )
    )
    bar.artifact_id = made.id


def show_counts(store: Store, planned: Iterable[Planned], *, name: str, since: float) -> None:
    """Show a table of the steps: made, cached or missing, counts, time, folder.

    Args:
        since: When the run began, in seconds since 1970. Artifacts that are older count as cached.
    """
    rows = []
    for one in planned:
        manifest = store.manifest(**one.ref)
        facts = manifest.facts if manifest else {}
        made = "missing" if manifest is None else "made" if facts.get("started", 0.0) >= since else "cached"
        rows.append({
            "step": one.label, "result": made, "time": wording.seconds(facts.get("seconds")),
            "counts": wording.counts_in_words(manifest.counts) if manifest else "", "folder": store.link(one.ref),
        })  # fmt: skip
    create_table_artifact(rows, key=artifact_key("steps", name), description="Steps of the run")


def show_report(store: Store, report: Ref, recipe: RunConfig) -> None:
    """Show the report as Markdown. Its template escapes every text of models and data; this also disables links."""
    markdown = _unlinked((store.fetch(report) / "report.md").read_text())
    create_markdown_artifact(markdown, key=artifact_key("report", recipe.name), description="Report of the run")


def show_links(store: Store, report: Ref, recipe: RunConfig, *, run_id: str) -> None:
    """Show where the files of the run are: in the store and, for a store on AWS, in the AWS console."""
    places = {
        "Report with charts, to open in a browser": store.link(report, "report.html"),
        "Report as data": store.link(report, "report.json"),
        "Record of the run": f"{store.uri}/runs/{run_id}.json",
        "All artifacts": store.uri,
        "Where a number comes from": f"ssr why {run_id} --store {store.uri}",
    }
    blocks = []
    for what, address in places.items():
        page = _aws_page(store, address)
        # As a code block, which scrolls: no browser opens s3:// links, so people copy the address.
        blocks.append(f"{what}{f' ([AWS console]({page}))' if page else ''}\n\n{fenced(address)}\n")
    create_markdown_artifact(
        "\n".join(blocks), key=artifact_key("links", recipe.name), description="Where the files are"
    )


def _unlinked(markdown: str) -> str:
    """The same text without links: the UI turns every address into one after it has decoded character references."""
    joiner = "&#8288;"  # has no width, and breaks an address
    markdown = markdown.replace(":&#47;&#47;", f":{joiner}&#47;&#47;").replace("&#64;", f"{joiner}&#64;")
    return re.sub(r"(www)&#46;", rf"\1{joiner}&#46;", markdown, flags=re.IGNORECASE)


def _aws_page(store: Store, address: str) -> str | None:
    """The page of an address in the AWS console; None for a local store or an S3 store that is not Amazon's."""
    if not isinstance(store, S3Store) or not address.startswith("s3://") or not store.files.is_aws:
        return None
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    folder = prefix.rpartition("/")[0] if address != store.uri else prefix
    return f"https://console.aws.amazon.com/s3/buckets/{quote(bucket)}?prefix={quote(folder)}/"


def artifact_key(*parts: str) -> str:
    """A key as Prefect wants it: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")
