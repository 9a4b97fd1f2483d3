"""`ssr run`: run a recipe on this machine, with its progress in the terminal."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from flows.cli.options import (
    ForceOption,
    JsonOption,
    RecipeName,
    SetOption,
    StoreOption,
    check_forced,
    console,
    load_named,
    print_json,
    stderr,
)
from flows.cli.report import show_result

if TYPE_CHECKING:
    from tasks.artifacts.store import Store
    from tasks.config import RunConfig


def run(
    recipe: RecipeName, set_: SetOption = None, store: StoreOption = ".ssr", force: ForceOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Run a recipe, or go on where an earlier run of it stopped."""
    from flows.execution.devices import gpu_remarks
    from flows.promotion.advance import current_for
    from flows.rehearsal import plan_steps
    from flows.runs.records import load_run
    from tasks.artifacts.store import open_store

    config = load_named(recipe, set_)
    for remark in gpu_remarks(config):
        stderr.print(f"[yellow]{escape(remark)}[/]", soft_wrap=True)
    opened = open_store(store)
    opened.preflight()
    # Planning finds missing data and models before Prefect starts.
    planned = plan_steps(config, current_for(opened, config))
    check_forced(force, {name for p in planned for name in (p.step.name, p.label)})
    record = _run_flow(config, opened, force or [], quiet=as_json)
    if as_json:
        print_json(record)
    else:
        show_result(opened, load_run(opened, record["run_id"]))


def _run_flow(config: RunConfig, store: Store, force: list[str], *, quiet: bool) -> dict[str, Any]:  # Any: JSON values
    from flows.execution.terminal import TerminalListener
    from tasks.running import progress

    _prepare_prefect(store)
    out = stderr if quiet else console
    with out.status("starting Prefect"):
        from flows.run import rehearsal
    listener = TerminalListener(out)
    with listener, progress.listening(listener):
        return rehearsal(config, store=store.uri, force=tuple(force))


def _prepare_prefect(store: Store) -> None:
    """Set what Prefect reads when it is imported, unless the user has set it."""
    defaults = {
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(store.cache / "prefect"),
        # Prefect's server keeps the whole log. The terminal shows the steps, and an error once.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "tasks,flows",
        "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "DO_NOT_TRACK": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
