"""The `ssr` command. Exit codes: 0 done, 1 failed, 2 bad input.

Prefect, torch and the rest are imported by the commands that need them, so that `ssr --help` and `ssr plan` are fast.
"""

from __future__ import annotations

import sys

import typer
from rich.markup import escape

from flows.cli.options import errors
from flows.cli.run_commands import audit_judge, merge, plan, recipes, report, run, runs, why
from flows.cli.schema import schema
from flows.cli.store_commands import current, deploy, doctor, gc, lab_build
from tasks.errors import SsrError

app = typer.Typer(
    name="ssr", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Selective Self-Rehearsal: fine-tune language models without making them forget.",
)  # fmt: skip
for command in (run, plan, why, runs, report, merge, current, recipes, schema, doctor):
    app.command()(command)
app.command("audit-judge")(audit_judge)
app.command()(deploy)
app.command()(gc)

lab = typer.Typer(help="The embedded lab: a synthetic world and the tiny model trained on it.")
lab.command("build")(lab_build)
app.add_typer(lab, name="lab")


def main() -> None:
    """Entry point: turns this project's errors into a message and an exit code."""
    try:
        app(standalone_mode=True)
    except SsrError as error:
        errors.print(f"[red]error[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("stopped. What was finished is kept: the same command goes on from there.")
        sys.exit(130)
