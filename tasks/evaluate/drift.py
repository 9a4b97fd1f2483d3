"""Drift: how far an adapter has moved from its base on the task's prompts. It predicts forgetting without old data.

Drift is the forward KL divergence from base to adapter on the prompts of the new task (RL's Razor, arXiv 2509.04259),
estimated by Monte Carlo: the base draws an answer to each prompt at temperature 1, and each model says how probable it
finds the answer. A row's `nll - base_nll`, times its tokens, is one draw of the divergence of whole answers.

Only in-domain test prompts are used: the paper measures drift on the task that was trained, and what drift predicts is
the loss elsewhere.

Not covered: answers that are longer than `max_new_tokens`, or empty. They have no score, so the estimate is of the
divergence on answers that ended. White space around an answer counts for neither model, because engines strip it. What
a chat template writes after the end of an answer (a line break) counts for both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tasks.artifacts.digest import stable_seed
from tasks.config import EvaluateConfig
from tasks.engines import Continuation, Engine, Likelihood, Reply, Request, Sampling
from tasks.tables import schema

Row = dict[str, Any]  # Any: values of a table


def prompts(examples: Path, config: EvaluateConfig) -> list[Row]:
    """The first `drift_rows` in-domain test prompts, in the order of their ids."""
    wanted = [("split", "=", "test"), ("domain", "=", "in")]
    table = pq.read_table(examples, columns=["example_id", "messages", "group"], filters=wanted)
    rows: list[Row] = table.sort_by("example_id").slice(0, config.drift_rows).to_pylist()
    return rows


def draw(engine: Engine, prompts: Sequence[Row], config: EvaluateConfig) -> Iterator[Row]:
    """Let the base answer each prompt and say how probable it finds its answer; rows of the drawn table."""
    requests = [
        Request(row["example_id"], row["messages"], stable_seed(config.seed, row["example_id"])) for row in prompts
    ]
    replies = {r.key: r for r in engine.generate(requests, Sampling(config.max_new_tokens, temperature=1.0))}
    problems = {key: _unusable(reply) for key, reply in replies.items()}
    texts = {key: reply.text for key, reply in replies.items() if reply.text and not problems[key]}
    found = _likelihoods(engine, prompts, texts)
    for row in prompts:
        key = row["example_id"]
        problem = problems[key] or found[key].problem
        yield {
            "example_id": key, "cluster": row["group"], "text": replies[key].text, "problem": problem,
            "n_tokens": None if problem else replies[key].n_output_tokens,
            "base_nll": None if problem else found[key].nll,
        }  # fmt: skip


def compare(engine: Engine, prompts: Sequence[Row], drawn: Path) -> Iterator[Row]:
    """Ask an adapter how probable it finds the answers that its base drew; rows of the drift table."""
    rows = schema.read_table(drawn, schema.DRAWN).to_pylist()
    found = _likelihoods(engine, prompts, {row["example_id"]: row["text"] for row in rows if not row["problem"]})
    for row in rows:
        compared: Row = {name: row[name] for name in ("example_id", "cluster", "n_tokens", "base_nll", "problem")}
        if not row["problem"]:
            own = found[row["example_id"]]
            compared |= {"nll": own.nll, "problem": own.problem}
        yield {"nll": None} | compared


def _unusable(reply: Reply) -> str | None:
    """Why this answer cannot be measured; None where it can."""
    if reply.text is None:
        return reply.problem
    if reply.finish_reason == "length":
        return "cut_off: longer than max_new_tokens"
    if not reply.text:
        return "empty_answer: no text to measure"
    return None if reply.n_output_tokens else "no_token_count: the engine gives none"


def _likelihoods(engine: Engine, prompts: Sequence[Row], texts: dict[str, str]) -> dict[str, Likelihood]:
    """Likelihoods by example id. One that is not finite, because half precision overflowed, becomes a problem."""
    asked = [
        Continuation(row["example_id"], row["messages"], texts[row["example_id"]])
        for row in prompts
        if row["example_id"] in texts
    ]
    return {found.key: _finite(found) for found in engine.likelihoods(asked)}


def _finite(found: Likelihood) -> Likelihood:
    if found.nll is None or math.isfinite(found.nll):
        return found
    return Likelihood(found.key, None, f"not_finite: the likelihood is {found.nll}", retryable=False)
