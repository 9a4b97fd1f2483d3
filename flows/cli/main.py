"""The `ssr` command. Exit codes: 0 done, 1 failed, 2 bad input.

Commands import Prefect, torch and other large libraries in their functions, so that `ssr --help` is fast.
"""

from __future__ import annotations

import sys

import typer
from rich.markup import escape

from flows.cli.audit_judge import audit_judge
from flows.cli.current import current
from flows.cli.deploy import deploy
from flows.cli.doctor import doctor
from flows.cli.gc import gc
from flows.cli.lab import lab_build
from flows.cli.merge import merge
from flows.cli.options import stderr
from flows.cli.plan import plan
from flows.cli.recipes import recipes
from flows.cli.report import report
from flows.cli.run import run
from flows.cli.runs import runs
from flows.cli.schema import schema
from flows.cli.why import why
from tasks.errors import SsrError

app = typer.Typer(
    name="ssr", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Selective Self-Rehearsal: fine-tune language models without making them forget.",
)  # fmt: skip
# Every command, in the order of `ssr --help`. Each is a file of this folder that has the name of the command.
for command in (run, plan, why, runs, report, merge, current, recipes, schema, doctor, audit_judge, deploy, gc):
    app.command()(command)

lab = typer.Typer(help="The embedded lab: a synthetic world and the tiny model trained on it.")
lab.command("build")(lab_build)
app.add_typer(lab, name="lab")


def main() -> None:
    """Run the command line; an error of this project becomes a message and an exit code."""
    try:
        app(standalone_mode=True)
    except SsrError as error:
        stderr.print(f"[red]error[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        stderr.print("stopped. What was finished is kept: the same command goes on from there.")
        sys.exit(130)
