"""`ssr audit-judge`: compare the verdicts of a recipe's judge with labels, or with probes whose truth is known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from flows.rehearsal import plan_steps
from tasks.artifacts.digest import digest_of
from tasks.artifacts.store import Ref, Store
from tasks.config import RunConfig
from tasks.errors import ConfigError
from tasks.running.step import Context, Planned
from tasks.wording import MISSING, count, interval, percent

Found = dict[str, Any]  # Any: JSON values


def against_labels(store: Store, recipe: RunConfig, path: Path) -> list[Found]:
    """Agreement, Cohen's kappa, precision and recall of the judge on labelled answers: of all, then by who decided.

    Raises:
        DataError: The labelled data is missing, or not what it must be.
    """
    from tasks.judge.labelled import agreements, judge_labelled, read_labelled

    rows = read_labelled(path)
    with _context(store, recipe, str(path)) as ctx:
        outcomes = judge_labelled(ctx, rows, config=recipe.judge, engine=recipe.engine, abstention=recipe.abstention)
    return [asdict(line) for line in agreements(outcomes)]


def against_probes(store: Store, recipe: RunConfig) -> Found:
    """The audit of the recipe's judge step if that is done; otherwise its probes are judged now.

    Raises:
        ConfigError: The recipe has no language model as judge, or no probes.
    """
    if recipe.judge.llm is None:
        raise ConfigError("judge.llm is null: rules alone judge. Set it, or measure the rules on --labels FILE.")
    if recipe.judge.llm.audit.n_probes == 0:
        raise ConfigError("judge.llm.audit.n_probes=0: there is no audit. Set it, or give --labels FILE.")
    planned = {one.label: one for one in plan_steps(recipe)}
    manifest = store.verified(**planned["judge"].ref)
    if manifest and "audit" in manifest.facts:
        return {"from": store.link(planned["judge"].ref), **manifest.facts["audit"]}
    return {"from": "probes judged now", **_judge_probes(store, recipe, planned["ingest"])}


def _judge_probes(store: Store, recipe: RunConfig, ingest: Planned) -> Found:
    from tasks.judge.audit import summary
    from tasks.judge.opinions import CASES
    from tasks.judge.panel_session import ask_panel, probes_for
    from tasks.tables.spool import spool

    assert recipe.judge.llm is not None  # checked by the caller
    # This command shows a judge that falls short; it must not stop at it.
    audit = recipe.judge.llm.audit.model_copy(update={"below": "gold"})
    llm = recipe.judge.llm.model_copy(update={"audit": audit})
    examples = store.fetch(ingest.execute(store)) / "examples.parquet"
    probes = probes_for(examples, llm, recipe.abstention.phrases)
    with _context(store, recipe, "probes") as ctx:
        spool([], ctx.work / "cases.parquet", CASES)
        session = ask_panel(ctx, llm, recipe.engine, cases=ctx.work / "cases.parquet", n_cases=0, probes=probes)
    return summary(session.probes, {}, llm, fell_short=session.fell_short)


@contextmanager
def _context(store: Store, recipe: RunConfig, what: str) -> Iterator[Context]:
    """The context of a step that makes no artifact: paid rows are kept, and everything else is removed at the end."""
    identity = [recipe.judge.identity(), recipe.engine.identity(), what]
    ref = Ref(step="audit-judge", fingerprint=digest_of(identity))
    ctx = Context(store, ref, store.work_folder(**ref), {})
    yield ctx
    store.done_with_work(**ref)


# --- tables for the terminal ---


def agreement_table(found: list[Found]) -> Table:
    """Agreement with labels: a row for all answers, and one for each rule or judge that decided."""
    headers = (
        "decided by", "rows", "unjudged", "agreement", "kappa", "precision", "recall", "both accept", "judge alone",
        "label alone", "both reject",
    )  # fmt: skip
    table = Table(*headers, box=None)
    for line in found:
        kappa = MISSING if line["kappa"] is None else f"{line['kappa']:.3f}"
        figures = [_share(line["agreement"]), kappa, _share(line["precision"]), _share(line["recall"])]
        confusion = ("true_accepts", "false_accepts", "false_rejects", "true_rejects")
        counts = [count(line[name]) for name in confusion]
        table.add_row(line["by"], count(line["n"]), count(line["unjudged"]), *figures, *counts)
    return table


def audit_tables(found: Found) -> Iterator[Table | str]:
    """The audit by class of example and by kind of probe, and its warnings."""
    yield f"{found['n_probes']:,} probes, {escape(found['from'])}"
    rates = Table("examples", "precision", "recall", "false accepts", "accepted answers", "wrong among them", box=None)
    for line in found["classes"]:
        wrong = line["wrong_accepted_answers"]
        expected = (
            f"{count(wrong['value'])}\n[{count(wrong['low'])}, {count(wrong['high'])}]" if line["accepted"] else "0"
        )
        shares = [_share(line[name]) for name in ("precision", "recall", "false_accepts")]
        rates.add_row(line["answerable"], *shares, count(line["accepted"]), escape(expected))
    yield rates
    kinds = Table("probe", "right verdict", "accept", "reject", "unjudged", box=None)
    for kind in found["kinds"]:
        counts = [count(kind[name]) for name in ("accept", "reject", "unjudged")]
        kinds.add_row(kind["kind"], "accept" if kind["acceptable"] else "reject", *counts)
    yield kinds
    if found["fell_short"]:
        yield f"[red]below {found['min_precision']:g}[/]: {escape(found['fell_short'])}"
    yield from (f"[yellow]{escape(warning)}[/]" for warning in found["warnings"])


def _share(share: Found) -> str:
    return escape(f"{percent(share['value'])}\n{interval(share['low'], share['high'], sign=False)}".strip())
