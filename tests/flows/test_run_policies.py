"""Which steps the policies of a recipe bring, and a whole run of several of them side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
from in_process import rehearsed

from flows.planning.questions import count_questions
from flows.rehearsal import plan_steps
from flows.runs.records import load_run
from flows.runs.why import explain_row
from tasks.artifacts.store import Store, open_store
from tasks.config import parse_recipe

ARMS = {"sft": "gold", "s3ft": "s3ft", "sdft": "rewrite_all", "probable": "min_nll"}
BEFORE = ["ingest", "evaluate base", "generate", "judge"]


def recipe(model: Path, *policies: str, **sections: Any) -> dict[str, Any]:
    names = {policy: name for name, policy in ARMS.items()}
    return {
        "model": {"base": str(model)},
        "data": {"sources": [{"name": "lab", "reader": "lab"}], "lab_rows": 40},
        "arms": [{"name": names.get(policy, "ssr"), "policy": policy} for policy in policies],
        "generate": {"n_samples": 3, "temperature": 1.0},
        "evaluate": {"benchmarks": []},
        **sections,
    }


def steps_before_training(model: Path, *policies: str) -> list[str]:
    """Labels of the planned steps that are not about one arm alone."""
    planned = plan_steps(parse_recipe(recipe(model, *policies), where="toy"))
    return [one.label for one in planned if one.step.name not in ("select", "train", "report") and one.label not in
            [f"evaluate {name}" for name in ("ssr", *ARMS)]]  # fmt: skip


@pytest.mark.parametrize(
    ("policies", "more"),
    [
        (["gold", "ssr"], []),
        (["self_only"], []),
        (["random_mix"], []),
        (["s3ft"], ["rewrite", "judge rewrites"]),
        (["rewrite_all", "gold"], ["rewrite", "judge rewrites"]),
        (["min_nll"], ["likelihood"]),
        (["min_nll", "s3ft", "rewrite_all"], ["rewrite", "judge rewrites", "likelihood"]),
    ],
)
def test_a_run_has_the_steps_that_its_policies_read_and_no_others(tiny_model, policies, more):
    assert steps_before_training(tiny_model, *policies) == BEFORE + more


def test_rewriting_waits_for_the_judge_only_where_accepted_answers_need_no_rewrite(tiny_model):
    def reads(*policies: str) -> set[str]:
        planned = plan_steps(parse_recipe(recipe(tiny_model, *policies), where="toy"))
        return {name for one in planned if one.step.name == "rewrite" for name in one.inputs}

    assert reads("s3ft", "min_nll") == {"examples", "outputs", "verdicts"}
    assert reads("s3ft", "rewrite_all") == {"examples"}


def test_an_arm_beside_another_keeps_its_targets_and_its_adapter(tiny_model):
    def of_arm(label: str, *policies: str) -> str:
        planned = plan_steps(parse_recipe(recipe(tiny_model, *policies), where="toy"))
        return next(one.ref["fingerprint"] for one in planned if one.label == label)

    for label in ("select ssr", "train ssr"):
        assert of_arm(label, "ssr") == of_arm(label, "ssr", "s3ft", "min_nll")
    for label in ("select min_nll", "train probable"):
        assert of_arm(label, "min_nll") == of_arm(label, "min_nll", "s3ft", "rewrite_all")


def test_rewrites_are_counted_ahead_where_they_do_not_hang_on_the_judge(tiny_model, tmp_path):
    def count(*policies: str) -> tuple[int, Any]:
        config = parse_recipe(recipe(tiny_model, *policies), where="toy")
        planned = plan_steps(config)
        examples = store.fetch(planned[0].execute(store)) / "examples.parquet"
        found = count_questions(store, config, planned, examples)
        return found.answers.n_missing, found.rewrites

    store = open_store(str(tmp_path / "store"))
    n_answers, n_rewrites = count("rewrite_all", "s3ft")
    assert n_rewrites == (n_answers / 3, n_answers / 3), "three answers, one rewrite of an example"
    assert count("s3ft") == (n_answers, None)
    assert count("ssr") == (n_answers, None)


class Run(NamedTuple):
    """A finished run, and the tables that its steps made by label."""

    store: Store
    record: dict[str, Any]

    def folder(self, label: str) -> Path:
        (step,) = (step for step in self.record["steps"] if step["label"] == label)
        return self.store.fetch(step["ref"])

    def rows(self, label: str, table: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pq.read_table(self.folder(label) / f"{table}.parquet").to_pylist()
        return found

    def keyed(self, label: str, table: str) -> dict[tuple[str, int], dict[str, Any]]:
        return {(row["example_id"], row.get("sample_index", 0)): row for row in self.rows(label, table)}


@pytest.fixture(scope="module")
def stopping_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny model with many tokens that end an answer: random weights hardly ever say the one."""
    folder = tmp_path_factory.mktemp("stopping-model")
    for path in tiny_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "generation_config.json").read_text())
    n_tokens = json.loads((folder / "config.json").read_text())["vocab_size"]
    config["eos_token_id"] = [config["eos_token_id"], *range(50, n_tokens, 4)]
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, stopping_model: Path, prefect_server: None) -> Run:
    folder = tmp_path_factory.mktemp("policies")
    raw = recipe(
        stopping_model, *ARMS.values(), generate={"n_samples": 3, "temperature": 1.0, "max_new_tokens": 24},
        rewrite={"max_new_tokens": 24},
        # What a random model says holds an "e" or not: verdicts of all kinds, though of no meaning.
        abstention={"phrases": ["e"]},
        train={"epochs": 1, "max_length": 256, "lora_rank": 4},
        evaluate={"benchmarks": [], "max_task_rows": 5, "max_new_tokens": 4},
        report={"n_bootstrap": 200},
    )  # fmt: skip
    store = str(folder / "store")
    return Run(open_store(store), rehearsed(parse_recipe(raw, where="toy"), store))


@pytest.mark.slow
def test_every_policy_teaches_what_the_tables_say(finished: Run) -> None:
    verdicts, outputs = finished.keyed("judge", "verdicts"), finished.keyed("generate", "outputs")
    rewrites = finished.keyed("rewrite", "outputs")
    rewrite_verdicts = finished.keyed("judge rewrites", "verdicts")
    nll = {(row["example_id"], row["kind"], row["sample_index"]): row["base_nll"]
           for row in finished.rows("likelihood", "likelihoods")}  # fmt: skip
    examples = {row["example_id"]: row for row in finished.rows("ingest", "examples") if row["split"] == "train"}
    targets = {policy: finished.keyed(f"select {policy}", "targets") for policy in ARMS.values()}
    seen, n_others = set(), 0
    for example_id, example in examples.items():
        accepted = [i for i in range(3) if verdicts[example_id, i]["verdict"] == "accept"]
        gold = ("gold", example["golds"][0])
        anew = gold
        if rewrite_verdicts[example_id, 0]["verdict"] == "accept":
            anew = ("rewrite", rewrites[example_id, 0]["text"])
        likely = min(accepted, key=lambda i: (nll[example_id, "answer", i], i), default=None)
        n_others += likely not in (None, *accepted[:1])
        expected = {
            "gold": gold,
            "s3ft": ("self", outputs[example_id, accepted[0]]["text"]) if accepted else anew,
            "rewrite_all": anew,
            "min_nll": gold if likely is None else ("self", outputs[example_id, likely]["text"]),
        }
        for policy, found in targets.items():
            row = found[example_id, 0]
            assert (row["target_type"], row["target"]) == expected[policy], policy
            seen.add((policy, row["target_type"]))
        measured = targets["min_nll"][example_id, 0]["base_nll"]
        assert measured == (nll[example_id, "gold", 0] if likely is None else nll[example_id, "answer", likely])
    assert {("s3ft", kind) for kind in ("self", "gold")} | {("rewrite_all", "rewrite"), ("min_nll", "self")} <= seen
    assert n_others > 0, "the first accepted answer was always the most probable: that proves nothing"


@pytest.mark.slow
def test_the_report_shows_rewrites_their_verdicts_and_what_they_cost(finished: Run) -> None:
    found = json.loads((finished.folder("report") / "report.json").read_text())
    assert {row["kind"] for row in found["judged"]["acceptance"]} == {"answer", "rewrite"}
    mixes = {mix["arms"][0]: mix["counts"] for mix in found["judged"]["mixes"]}
    assert mixes["sdft"]["rewrite"] > 0
    assert mixes["s3ft"]["self"] > 0
    labels = [made["label"] for made in found["steps"]]
    assert {"rewrite", "judge rewrites", "likelihood"} <= set(labels)
    assert all(made["closes"] is not False for made in found["steps"])


@pytest.mark.slow
def test_the_chain_of_a_row_holds_its_rewrite_and_its_likelihoods(finished: Run) -> None:
    example_id = finished.rows("select s3ft", "targets")[0]["example_id"]
    chain = explain_row(finished.store, load_run(finished.store, "latest"), example_id)
    titles = {entry["title"] for entry in chain}
    assert {"rewrite: outputs", "judge rewrites: verdicts", "likelihood: likelihoods", "select s3ft: targets"} <= titles
