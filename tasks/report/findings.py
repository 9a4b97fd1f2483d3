"""Everything that the report says, as one value. `report.json` holds it, and both pages are made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from tasks.artifacts.store import Ref
from tasks.config import RunConfig
from tasks.measures.bootstrap import Floats
from tasks.report.audits import Audit, audits
from tasks.report.measured import Measured, measure
from tasks.report.provenance import ArtifactRecord, artifact_records
from tasks.report.verdict import verdict, warnings
from tasks.report.verdicts_and_targets import VerdictsAndTargets, verdicts_and_targets
from tasks.running.step import Context
from tasks.tables.schema import EXAMPLES, METRICS, OUTPUTS, TARGETS, VERDICTS, check_schema, read_table
from tasks.wording import BASE

REPORT_SCHEMA_VERSION = "2"
MAX_CURVE_POINTS = 200


@dataclass(frozen=True)
class Curve:
    """Training loss of one arm in nats per trained token. A long curve is averaged over stretches of equal length.

    A loss is None where it was not finite, because the training diverged.
    """

    arm: str
    n_steps: int
    steps: list[float | None]
    losses: list[float | None]


@dataclass(frozen=True)
class Findings:
    """Everything in the report. Scores and changes are 0 to 1; the pages multiply them by 100."""

    schema_version: str
    run: str
    title: str
    model: str
    confidence: float
    non_inferiority_margin: float
    verdict: list[str]
    warnings: list[str]
    measured: Measured
    promotion: dict[str, Any] | None  # Any: the JSON values of decision.json
    judged: VerdictsAndTargets
    audits: list[Audit]
    curves: list[Curve]
    steps: list[ArtifactRecord]
    recipe_yaml: str

    def to_json(self) -> str:
        """The content of `report.json`."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def find(ctx: Context, recipe: RunConfig, artifacts: Mapping[str, Ref]) -> Findings:
    """Read every input of the report and compute what it says.

    Raises:
        StoreError: An input is not on the store.
        DataError: A table is not of this program's schema.
    """
    arms = [arm.name for arm in recipe.arms]
    folders = {BASE: ctx.store.fetch(artifacts["scores_base"])}
    folders |= {arm: ctx.store.fetch(artifacts[f"scores_{i}"]) for i, arm in enumerate(arms)}
    measured = measure(folders, recipe)
    judge = verdicts_and_targets(
        examples=_checked(ctx.path(artifacts["examples"], "examples.parquet"), "examples"),
        outputs=_all_of(ctx, artifacts, ("outputs", "rewrites"), "outputs"),
        verdicts=_all_of(ctx, artifacts, ("verdicts", "rewrite_verdicts"), "verdicts"),
        targets=_targets(ctx, recipe, artifacts),
        n_examples=recipe.report.n_examples, confidence=recipe.report.confidence, spill=ctx.work,
    )  # fmt: skip
    steps = artifact_records(ctx.store, artifacts, recipe)
    audited = audits(ctx.store, artifacts)
    return Findings(
        schema_version=REPORT_SCHEMA_VERSION, run=recipe.name, title=recipe.report.title, model=recipe.model.base,
        confidence=recipe.report.confidence, non_inferiority_margin=recipe.report.margin,
        verdict=verdict(measured, confidence=recipe.report.confidence),
        warnings=warnings(measured, judge.acceptance, steps, audited),
        measured=measured, promotion=_decision(ctx, artifacts), judged=judge, audits=audited,
        curves=[_curve(arm, ctx.path(artifacts[f"adapter_{i}"], "metrics.parquet")) for i, arm in enumerate(arms)],
        steps=steps, recipe_yaml=yaml.safe_dump(recipe.identity(), sort_keys=False, allow_unicode=True),
    )  # fmt: skip


def _decision(ctx: Context, artifacts: Mapping[str, Ref]) -> dict[str, Any] | None:  # Any: JSON values
    if "decision" not in artifacts:
        return None
    found: dict[str, Any] = json.loads(ctx.path(artifacts["decision"], "decision.json").read_text())
    return found


_SCHEMAS = {"examples": EXAMPLES, "outputs": OUTPUTS, "verdicts": VERDICTS, "targets": TARGETS}


def _checked(path: Path, table: str) -> Path:
    check_schema(pq.read_schema(path), _SCHEMAS[table], where=path)
    return path


def _all_of(ctx: Context, artifacts: Mapping[str, Ref], names: tuple[str, ...], table: str) -> list[Path]:
    """The tables of one schema among the artifacts: of answers, and of rewrites where there are any."""
    return [_checked(ctx.path(artifacts[name], f"{table}.parquet"), table) for name in names if name in artifacts]


def _targets(ctx: Context, recipe: RunConfig, artifacts: Mapping[str, Ref]) -> dict[tuple[str, ...], Path]:
    """The distinct tables of targets by the arms that train on them: arms that differ in training alone share one."""
    users: dict[Path, list[str]] = {}
    for i, arm in enumerate(recipe.arms):
        users.setdefault(ctx.path(artifacts[f"targets_{i}"], "targets.parquet"), []).append(arm.name)
    return {tuple(names): _checked(path, "targets") for path, names in users.items()}


def _curve(arm: str, path: Path) -> Curve:
    rows = read_table(path, METRICS, columns=["step", "loss"])
    steps, losses = (rows.column(name).to_numpy().astype(np.float64) for name in ("step", "loss"))
    return Curve(arm, int(steps[-1]) if len(steps) else 0, _thinned(steps), _thinned(losses))


def _thinned(values: Floats) -> list[float | None]:
    n_parts = min(len(values), MAX_CURVE_POINTS)
    means = [float(part.mean()) for part in np.array_split(values, n_parts)] if n_parts else []
    return [mean if np.isfinite(mean) else None for mean in means]
