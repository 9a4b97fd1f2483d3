"""The decision on toy scores: what is promoted, what is kept back, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy

from tasks.artifacts.digest import digest_of
from tasks.artifacts.store import Manifest, Ref, Store, describe_files, open_store
from tasks.config import PromotionConfig
from tasks.errors import StepError
from tasks.promotion import decide as deciding
from tasks.promotion import promote
from tasks.running.step import Planned
from tasks.tables import schema

Scores = dict[tuple[str, str, str], list[float | None]]  # by (family, benchmark, metric)

TASK = ("task-in", "task:toy", "modified_recall")
MMLU = ("general", "mmlu", "acc")
GSM8K = ("general", "gsm8k", "exact_match")
N = 1000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def right(n_right: int, n: int = N) -> list[float | None]:
    """The first so many items right. Two models of these differ on the items in between alone."""
    return [float(i < n_right) for i in range(n)]


BASE: Scores = {TASK: right(500), MMLU: right(600), GSM8K: right(400)}


def publish(store: Store, step: str, files: dict[str, tuple[Any, list[toy.Row]] | str]) -> Planned:
    ref = Ref(step=step, fingerprint=digest_of([step, repr(files)]))
    with store.staging(**ref) as out:
        for name, content in files.items():
            (out / name).parent.mkdir(exist_ok=True)
            if isinstance(content, str):
                (out / name).write_text(content)
                continue
            with schema.TableWriter(out / name, content[0]) as writer:
                writer.write(content[1])
        store.publish(out, Manifest(**ref, identity={}, inputs={}, files=describe_files(out)))
    return toy.as_input(ref)


def scores(store: Store, found: Scores, clusters: list[str] | None = None) -> Planned:
    items, means = [], []
    for (family, benchmark, metric), values in sorted(found.items(), key=lambda entry: entry[0][1:]):
        for i, value in enumerate(values):
            items.append(
                {
                    "benchmark": benchmark, "metric": metric, "item_id": f"{i:05}", "score": value, "output": None,
                    "cluster": clusters[i] if clusters else None, "problem": "none" if value is None else None,
                }
            )  # fmt: skip
        scored = [value for value in values if value is not None]
        means.append(
            {
                "benchmark": benchmark, "metric": metric, "family": family, "n": len(scored),
                "value": float(np.mean(scored)) if scored else None, "n_unscored": len(values) - len(scored),
            }
        )  # fmt: skip
    return publish(
        store, "evaluate", {"items.parquet": (schema.ITEMS, items), "scores.parquet": (schema.SCORES, means)}
    )


def adapter(store: Store, weights: str) -> Planned:
    return publish(store, "train", {"adapter/adapter_model.safetensors": weights})


def decide(
    store: Store, arm: Scores, *, base: Scores = BASE, current: Scores | None = None,
    clusters: list[str] | None = None, **config: Any,
) -> dict[str, Any]:  # fmt: skip
    """The decision on an arm, against an adapter promoted now where it has scores."""
    now = {}
    if current is not None:
        now = {"current": adapter(store, "older"), "scores_current": scores(store, current, clusters)}
    planned = promote.plan(
        config=PromotionConfig(arm="ssr", n_bootstrap=400, **config), adapter=adapter(store, "newer"),
        scores_base=scores(store, base, clusters), scores_arm=scores(store, arm, clusters), **now,
    )  # fmt: skip
    return decision_of(store, planned)


def decision_of(store: Store, planned: Planned) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((store.fetch(planned.execute(store)) / "decision.json").read_text())
    return found


def test_an_adapter_that_gains_on_the_task_and_forgets_nothing_is_promoted(store: Store) -> None:
    found = decide(store, {**BASE, TASK: right(800), MMLU: right(598)})
    assert (found["outcome"], found["compared_with"]) == ("promoted", "base")
    assert found["reasons"] == ["no worse than the base on all of 3 checks"]
    mmlu = next(check for check in found["checks"] if check["benchmark"] == "mmlu")
    assert (mmlu["kind"], mmlu["against"], mmlu["margin"], mmlu["n_lost"]) == ("benchmark", "base", 0.02, 2)
    assert mmlu["change"] == pytest.approx(-0.002)
    assert -0.02 < mmlu["low"] < -0.002


def test_one_benchmark_that_was_forgotten_keeps_it_back_whatever_it_gains_elsewhere(store: Store) -> None:
    found = decide(store, {TASK: right(900), MMLU: right(700), GSM8K: right(370)})
    assert found["outcome"] == "kept"
    (reason,) = found["reasons"]
    assert reason.startswith("gsm8k (exact_match) against base: a loss of 2 points is not ruled out: -3.0, above -")


def test_a_loss_on_the_task_against_the_promoted_adapter_keeps_it_back_though_the_base_is_worse(store: Store) -> None:
    found = decide(store, {**BASE, TASK: right(700)}, current={**BASE, TASK: right(730)})
    assert (found["outcome"], found["compared_with"]) == ("kept", "current")
    failed = [check for check in found["checks"] if not check["passed"]]
    assert [(check["kind"], check["against"]) for check in failed] == [("task", "current")]


def test_benchmarks_are_compared_with_the_base_and_not_with_the_promoted_adapter(store: Store) -> None:
    # Otherwise each could forget a little more than the one before.
    found = decide(store, {**BASE, MMLU: right(600)}, current={**BASE, MMLU: right(700)})
    assert found["outcome"] == "promoted"
    assert {check["against"] for check in found["checks"] if check["kind"] == "benchmark"} == {"base"}


def test_an_adapter_as_good_as_the_promoted_one_takes_its_place(store: Store) -> None:
    found = decide(store, BASE, current=BASE)
    assert found["outcome"] == "promoted"
    assert all(check["change"] == 0 for check in found["checks"])


def test_too_few_items_show_nothing_and_it_is_said_how_many_would(store: Store) -> None:
    few = {key: right(20, 40) for key in BASE}
    found = decide(store, few, base=few)
    assert found["outcome"] == "kept"
    assert [check["needed"] for check in found["checks"]] == [268, 133, 133]
    assert (
        "mmlu (acc) against base: not shown: 40 items rule out a loss of 6.34 points at best, the margin is 2 points: "
        "133 items are needed"
    ) in found["reasons"]


def test_as_many_items_as_are_said_to_be_needed_are_enough(store: Store) -> None:
    enough = {TASK: right(100, 268), MMLU: right(50, 133), GSM8K: right(50, 133)}
    assert decide(store, enough, base=enough)["outcome"] == "promoted"
    short = {**enough, MMLU: right(50, 132)}
    assert decide(store, short, base=short)["outcome"] == "kept"


def test_items_without_a_score_are_left_out_and_counted(store: Store) -> None:
    arm: Scores = {**BASE, MMLU: [*right(600)[:960], *[None] * 40]}
    found = decide(store, arm)
    mmlu = next(check for check in found["checks"] if check["benchmark"] == "mmlu")
    assert (mmlu["n"], mmlu["n_unscored"], mmlu["change"], mmlu["passed"]) == (960, 40, 0, True)


def test_too_many_items_without_a_score_show_nothing(store: Store) -> None:
    arm: Scores = {**BASE, MMLU: [*right(600)[:940], *[None] * 60]}
    assert "60 of 1,000 items have no score, more than promotion.max_unscored_share" in decide(store, arm)["reasons"][0]
    assert decide(store, arm, max_unscored_share=0.1)["outcome"] == "promoted"
    nothing: Scores = {**BASE, MMLU: [None] * N}
    assert "no item was scored for both" in decide(store, nothing)["reasons"][0]


def test_a_benchmark_or_a_task_that_was_not_measured_keeps_it_back(store: Store) -> None:
    for missing, said in (((MMLU, GSM8K), "nothing general was measured"), ((TASK,), "nothing of the task")):
        measured = {key: values for key, values in BASE.items() if key not in missing}
        found = decide(store, measured, base=measured)
        assert found["outcome"] == "kept"
        assert said in found["reasons"][0]


def test_a_benchmark_that_no_check_can_go_by_keeps_it_back(store: Store) -> None:
    found = {**BASE, ("general", "wikitext", "word_perplexity (lower is better)"): right(500)}
    decision = decide(store, found, base=found)
    assert decision["outcome"] == "kept"
    assert "wikitext: no metric of which more is better" in decision["reasons"][0]


def test_items_that_belong_together_widen_the_bound(store: Store) -> None:
    # 10 items more lost than gained, each change shared by the 10 items of a cluster.
    arm: Scores = {**BASE, MMLU: [*right(600)[:560], *[0.0] * 40, *[1.0] * 30, *right(0, 370)]}
    alone = decide(store, arm, benchmark_margin=0.03)
    together = decide(store, arm, clusters=[str(i // 10) for i in range(N)], benchmark_margin=0.03)
    lows = [next(c["low"] for c in found["checks"] if c["benchmark"] == "mmlu") for found in (alone, together)]
    assert lows[1] < lows[0] < -0.01
    assert (alone["outcome"], together["outcome"]) == ("promoted", "kept")


def test_a_few_clusters_show_nothing(store: Store) -> None:
    found = decide(store, BASE, clusters=[str(i % 15) for i in range(N)])
    assert found["outcome"] == "kept"
    assert "15 groups of items are too few to tell, at least 20 are needed" in found["reasons"][0]


def test_graded_scores_are_compared_item_by_item(store: Store) -> None:
    graded: list[float | None] = [0.5 + (i % 5) / 10 for i in range(N)]
    better: list[float | None] = [min(1.0, (score or 0) + 0.05) for score in graded]
    found = decide(store, {**BASE, TASK: better}, base={**BASE, TASK: graded})
    task = next(check for check in found["checks"] if check["kind"] == "task")
    assert (found["outcome"], task["test"]) == ("promoted", "paired bootstrap")
    assert decide(store, {**BASE, TASK: graded}, base={**BASE, TASK: better})["outcome"] == "kept"


def test_the_margin_and_the_level_decide(store: Store) -> None:
    arm = {**BASE, MMLU: right(590)}
    assert decide(store, arm)["outcome"] == "promoted"
    assert decide(store, arm, benchmark_margin=0.012)["outcome"] == "kept"
    assert decide(store, arm, confidence=0.999)["outcome"] == "kept"


def test_out_of_domain_splits_decide_nothing(store: Store) -> None:
    out = ("task-out", "task:far", "modified_recall")
    found = decide(store, {**BASE, out: right(0)}, base={**BASE, out: right(900)})
    assert found["outcome"] == "promoted"
    assert "task:far" not in {check["benchmark"] for check in found["checks"]}


def test_the_promoted_adapter_itself_changes_nothing(store: Store) -> None:
    same = adapter(store, "same")
    config = PromotionConfig(arm="ssr", n_bootstrap=400)
    measured = {"scores_base": scores(store, BASE), "scores_arm": scores(store, {**BASE, MMLU: right(500)})}
    found = decision_of(store, promote.plan(config=config, adapter=same, current=same, **measured))
    assert found["outcome"] == "current"
    assert found["reasons"][0] == "the adapter is the one promoted now"
    assert "by today's items mmlu (acc) against base" in found["reasons"][1]


def test_the_same_weights_under_another_fingerprint_change_nothing(store: Store) -> None:
    # As training leaves them where it goes on from an adapter and finds no new row.
    copied = publish(store, "train", {"adapter/adapter_model.safetensors": "same", "metrics": "none"})
    measured = {name: scores(store, BASE) for name in ("scores_base", "scores_arm", "scores_current")}
    config = PromotionConfig(arm="ssr", n_bootstrap=400)
    planned = promote.plan(config=config, adapter=copied, current=adapter(store, "same"), **measured)
    assert decision_of(store, planned)["outcome"] == "current"


def test_a_promoted_adapter_without_scores_is_refused(store: Store) -> None:
    measured = {name: scores(store, BASE) for name in ("scores_base", "scores_arm")}
    planned = promote.plan(
        config=PromotionConfig(arm="ssr"), adapter=adapter(store, "new"), current=adapter(store, "old"), **measured
    )
    with pytest.raises(StepError, match="no scores on these items"):
        planned.execute(store)


def test_the_same_scores_give_the_same_bytes(tmp_path: Path) -> None:
    graded: Scores = {**BASE, TASK: [0.4 + (i % 7) / 12 for i in range(N)]}
    files = []
    for name in ("one", "two"):
        store = open_store(str(tmp_path / name))
        planned = promote.plan(
            config=PromotionConfig(arm="ssr"), adapter=adapter(store, "new"), scores_base=scores(store, BASE),
            scores_arm=scores(store, graded),
        )  # fmt: skip
        files.append(toy.bytes_of(store, planned.execute(store), "decision.json"))
    assert files[0] == files[1]


def test_a_true_loss_beyond_the_margin_is_promoted_in_at_most_one_draw_in_twenty(store: Store) -> None:
    # One benchmark truly loses the margin, on items that also change by chance; everything else is as good as can be.
    n_draws, n_promoted = 120, 0
    rng = np.random.default_rng(1)
    base = store.fetch(scores(store, {TASK: right(300, 300), MMLU: right(600)}).ref)
    for _ in range(n_draws):
        lost, gained = rng.random(600) < 0.07, rng.random(400) < 0.05
        found = np.concatenate([1.0 - lost, gained]).tolist()  # -.042 + .020: a loss of 2.2 points
        arm = store.fetch(scores(store, {TASK: right(300, 300), MMLU: found}).ref)
        decision = deciding.decide(
            {deciding.BASE: base, deciding.ARM: arm}, PromotionConfig(arm="ssr"), is_current=False
        )
        n_promoted += decision.outcome == "promoted"
    assert n_promoted <= 0.05 * n_draws
