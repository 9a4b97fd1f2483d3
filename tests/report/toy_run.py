"""A small run on a local store: every artifact that the report reads, written with the real tables and manifests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.artifacts.digest import digest_of
from tasks.artifacts.store import Manifest, Ref, Store, describe_files
from tasks.config import RunConfig
from tasks.report import report
from tasks.running.step import Context
from tasks.tables.schema import DRIFT, EXAMPLES, ITEMS, METRICS, OUTPUTS, SCORES, TARGETS, VERDICTS, TableWriter

Row = dict[str, Any]  # Any: values of a table
Scores = dict[tuple[str, str, str], list[float | None]]  # by (family, benchmark, metric)

ATTACK = "<script>alert(1)</script> | [x](https://evil.example) `code` **bold**\n# heading <img src=x onerror=alert(1)>"
RECIPE: dict[str, Any] = {  # Any: YAML values
    "name": "toy",
    "arms": [
        {"name": "sft", "policy": "gold"},
        {"name": "ssr", "policy": "ssr"},
        {"name": "ssr-slow", "policy": "ssr", "learning_rate": 5e-5},
    ],
    "report": {"n_examples": 2, "n_bootstrap": 400},
}


@dataclass
class Run:
    """A run whose artifacts are there; `report` makes its report in a fresh folder."""

    store: Store
    recipe: RunConfig
    artifacts: dict[str, Ref] = field(default_factory=dict)

    def put(
        self, name: str, step: str, files: Mapping[str, tuple[pa.Schema, list[Row]]],
        counts: Mapping[str, int] | None = None, inputs: Mapping[str, Ref] | None = None,
        more_facts: Mapping[str, Any] | None = None,
    ) -> Ref:  # fmt: skip
        """Publish one artifact, as a step would."""
        fingerprint = digest_of([name, step])
        with self.store.staging(step, fingerprint) as folder:
            for file, (schema, rows) in files.items():
                with TableWriter(folder / file, schema) as writer:
                    writer.write(rows)
            facts = {"seconds": 12.5, "host": "node-1", "python": "3.11.9", "versions": {"torch": "2.13.0"}}
            facts |= more_facts or {}
            manifest = Manifest(
                step, fingerprint, identity={}, inputs=dict(inputs or {}), files=describe_files(folder),
                counts=dict(counts or {}), facts=facts,
            )  # fmt: skip
            self.store.publish(folder, manifest)
        self.artifacts[name] = Ref(step=step, fingerprint=fingerprint)
        return self.artifacts[name]

    def put_scores(
        self, name: str, scores: Scores, drift: list[Row] | None = None, *,
        higher_is_better: Mapping[str, bool | None] | None = None,
    ) -> None:  # fmt: skip
        """Publish what the evaluate step makes of these scores, with what benchmarks state of their metrics."""
        items, means = [], []
        for (family, benchmark, metric), values in sorted(scores.items(), key=lambda entry: entry[0][1:]):
            items += [_item(benchmark, metric, i, value) for i, value in enumerate(values)]
            scored = [value for value in values if value is not None]
            means.append({
                "benchmark": benchmark, "metric": metric, "family": family, "n": len(scored),
                "value": float(np.mean(scored)) if scored else None, "n_unscored": len(values) - len(scored),
                "higher_is_better": (higher_is_better or {}).get(metric),
            })  # fmt: skip
        files = {"items.parquet": (ITEMS, items), "scores.parquet": (SCORES, means)}
        files |= {"drift.parquet": (DRIFT, drift)} if drift is not None else {}
        self.put(f"scores_{name}", "evaluate", files, {"rows_in": len(items), "rows_out": len(items)})

    def report(self, out: Path) -> Path:
        out.mkdir(parents=True)
        context = Context(self.store, Ref(step="report", fingerprint="0" * 64), out, self.artifacts)
        report.body(context, recipe=self.recipe, **self.artifacts)
        return out


def _item(benchmark: str, metric: str, i: int, value: float | None) -> Row:
    problem = None if value is not None else "no answer found"
    return {
        "benchmark": benchmark, "metric": metric, "item_id": f"{i:05}", "cluster": None, "score": value,
        "problem": problem, "output": None,
    }  # fmt: skip


def put_data(run: Run, n_rows: int = 40) -> None:
    """Examples, outputs, verdicts, targets and adapters: of 10 rows 6 are accepted, 3 rejected, 1 is unjudged."""
    states = ["accept"] * 6 + ["reject"] * 3 + ["unjudged"]
    rows = [(f"{i:04x}", states[i % 10]) for i in range(n_rows)]
    all_rows = {"rows_in": n_rows, "rows_out": n_rows}
    examples = [_example(key, answerable=int(key, 16) % 2 == 0) for key, _ in rows]
    counts = {"rows_in": n_rows + 3, "rows_out": n_rows, "dropped.duplicate": 3, "rows.train": n_rows}
    run.put("examples", "ingest", {"examples.parquet": (EXAMPLES, examples)}, counts)
    counts = {**all_rows, "rows_generated": n_rows - 10, "rows_reused": 10, "tokens_generated": 280}
    outputs = [_output(key, failed=state == "unjudged") for key, state in rows]
    run.put(
        "outputs", "generate", {"outputs.parquet": (OUTPUTS, outputs)}, counts, {"examples": run.artifacts["examples"]}
    )
    verdicts = [_verdict(key, state) for key, state in rows]
    run.put("verdicts", "judge", {"verdicts.parquet": (VERDICTS, verdicts)}, all_rows)
    for i, arm in enumerate(run.recipe.arms):
        targets = [_target(key, arm.policy, state) for key, state in rows]
        run.put(f"targets_{i}", "select", {"targets.parquet": (TARGETS, targets)}, all_rows)
        if arm.name == "ssr-slow":
            run.artifacts[f"targets_{i}"] = run.artifacts["targets_1"]  # the policy is the same, so is the artifact
        counts = {"rows_in": n_rows, "rows_out": n_rows - 1, "dropped.too_long": 1, "trained_tokens_per_epoch": 999}
        metrics = [_metric(step, i) for step in range(1, 21)]
        run.put(f"adapter_{i}", "train", {"metrics.parquet": (METRICS, metrics)}, counts)


MESSAGES = [{"role": "system", "content": "Answer from the text."}, {"role": "user", "content": ATTACK + " Q?"}]


def _example(key: str, *, answerable: bool) -> Row:
    return {
        "example_id": key, "source": "lab", "split": "train", "domain": "in", "task": "grounded_qa",
        "messages": MESSAGES, "question": "Q?", "document": None, "golds": [f"gold {key}"], "incorrect": [],
        "answerable": answerable, "group": None,
    }  # fmt: skip


def _output(key: str, *, failed: bool) -> Row:
    return {
        "example_id": key, "kind": "answer", "sample_index": 0, "row_key": key,
        "text": None if failed else f"{ATTACK} {key}", "finish_reason": "stop", "n_prompt_tokens": 5,
        "n_output_tokens": 7, "problem": "timed out" if failed else None, "retryable": None,
    }  # fmt: skip


def _verdict(key: str, state: str) -> Row:
    return {
        "example_id": key, "kind": "answer", "sample_index": 0, "verdict": state, "reason": f"because {state}",
        "decided_by": None if state == "unjudged" else "contains_gold", "p_accept": None,
    }  # fmt: skip


def _target(key: str, policy: str, state: str) -> Row:
    return {
        "example_id": key, "messages": MESSAGES, "target": ATTACK, "reason": f"{policy} {state}", "base_nll": None,
        "target_type": "self" if policy == "ssr" and state == "accept" else "gold",
    }  # fmt: skip


def _metric(step: int, arm: int) -> Row:
    return {"step": step, "epoch": step / 10, "loss": 2 / step + 0.1 * arm, "learning_rate": 1e-4, "grad_norm": None}


def zeros_and_ones(ones: int, n: int) -> list[float | None]:
    return [1.0 if i < ones else 0.0 for i in range(n)]


def drift_row(key: int, base_nll: float, nll: float | None, n_tokens: int = 10, cluster: str | None = None) -> Row:
    """A row of the drift table; without `nll` an answer that was cut off."""
    scored = nll is not None
    return {
        "example_id": f"{key:04x}", "cluster": cluster, "n_tokens": n_tokens if scored else None,
        "base_nll": base_nll if scored else None, "nll": nll, "problem": None if scored else "cut_off: too long",
    }  # fmt: skip


TASK = ("task-in", "task:lab", "modified_recall")
PRECISION = ("task-in", "task:lab", "abstention_precision")
MMLU = ("general", "mmlu", "acc")
GSM8K = ("general", "gsm8k", "exact_match")
LEAKED = ("general", "gsm8k", "leaked_refusal")
