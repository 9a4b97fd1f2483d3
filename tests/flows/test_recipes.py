"""The shipped recipes on a few rows in the official file formats, with their models swapped for tiny ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from in_process import rehearsed, ssr

from tasks.config import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "deployments" / "recipes"
N = 24
PLACES = "Oslo Paris Rome Lima Cairo Delhi Tokyo Berlin Madrid Vienna Prague Dublin".split()


def _text(i: int) -> str:
    return f"Office {i} is in {PLACES[i % len(PLACES)]}. It opens at {i + 1} in the morning."


def md2d_dialogues(word: str) -> dict[str, Any]:
    def dialogue(i: int) -> dict[str, Any]:
        references = [{"label": "solution", "id_sp": "1", "doc_id": f"Office{i}#1_0"}]
        turns = [
            {"turn_id": 1, "role": "user", "da": "query", "references": references,
             "utterance": f"{word} is office {i}?"},
            {"turn_id": 2, "role": "agent", "da": "respond_solution", "references": references,
             "utterance": f"It is in {PLACES[i % len(PLACES)]}, and opens at {i + 1}."},
        ]  # fmt: skip
        return {"dial_id": f"d{i}", "turns": turns}

    return {"dial_data": {"dmv": [dialogue(i) for i in range(N)]}}


def md2d_documents() -> dict[str, Any]:
    return {"doc_data": {"dmv": {f"Office{i}#1_0": {"doc_id": f"Office{i}#1_0", "title": f"Office {i}",
                                                    "doc_text": _text(i)} for i in range(N)}}}  # fmt: skip


def musique() -> list[dict[str, Any]]:
    def row(i: int, *, answerable: bool) -> dict[str, Any]:
        paragraphs = [{"idx": 0, "title": f"Office {i}", "paragraph_text": _text(i), "is_supporting": True}]
        return {"id": f"2hop__{i}", "question": f"In which city is office {i}?", "answer": PLACES[i % len(PLACES)],
                "answer_aliases": [], "paragraphs": paragraphs if answerable else [paragraphs[0] | {
                    "paragraph_text": "It opens early."}], "answerable": answerable}  # fmt: skip

    return [row(i, answerable=answerable) for i in range(4) for answerable in (True, False)]


def natural_questions(word: str) -> list[dict[str, Any]]:
    def row(i: int) -> dict[str, Any]:
        page = f"<P> {_text(i).replace('.', ' .')} </P>"
        n = len(page.split())
        passage = {"start_token": 0, "end_token": n, "candidate_index": 0}
        annotation = {"long_answer": passage, "short_answers": [{"start_token": 5, "end_token": 6}],
                      "yes_no_answer": "NONE", "annotation_id": 1}  # fmt: skip
        return {"example_id": i, "document_text": page, "question_text": f"{word} is office {i}", "document_url": "",
                "long_answer_candidates": [passage | {"top_level": True}], "annotations": [annotation]}  # fmt: skip

    return [row(i) for i in range(N)]


def squad(word: str) -> dict[str, Any]:
    def question(i: int) -> dict[str, Any]:
        place = PLACES[i % len(PLACES)]
        found = [{"text": place, "answer_start": _text(i).index(place)}] if i % 3 else []
        return {"question": f"{word} is office {i}?", "id": f"{word}{i}", "is_impossible": not found, "answers": found}

    articles = [{"title": f"Office {i}", "paragraphs": [{"context": _text(i), "qas": [question(i)]}]} for i in range(N)]
    return {"version": "v2.0", "data": articles}


# What stands for each file that a recipe names: an object is JSON, a list is JSON lines.
FILES: dict[str, Any] = {
    "multidoc2dial_dial_train.json": md2d_dialogues("Where"),
    "multidoc2dial_dial_validation.json": md2d_dialogues("In which city"),
    "multidoc2dial_doc.json": md2d_documents(),
    "musique_full_v1.0_dev.jsonl": musique(),
    "v1.0-simplified_simplified-nq-train.jsonl.gz": natural_questions("where"),
    "v1.0-simplified_nq-dev-all.jsonl.gz": natural_questions("in which city"),
    "train-v2.0.json": squad("Where"),
    "dev-v2.0.json": squad("In which city"),
}


def put_file(folder: Path, name: str) -> str:
    content = FILES[Path(name).name]
    path = folder / Path(name).name.removesuffix(".gz")
    lines = [json.dumps(row) for row in content] if isinstance(content, list) else [json.dumps(content)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def swapped(name: str, model: Path, folder: Path) -> dict[str, Any]:
    """A shipped recipe with tiny models, in this process, on the files above, with one arm of each policy."""
    raw = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    raw["model"]["base"] = str(model)
    raw["engine"] = "transformers"
    for source in raw["data"]["sources"]:
        source |= {key: put_file(folder, source[key]) for key in ("path", "documents") if key in source}
    for judge in raw["judge"]["llm"]["judges"]:
        judge |= {"model": {"base": str(model)}, "engine": None}
    raw["judge"]["llm"]["audit"]["n_probes"] = 12
    raw["generate"]["max_new_tokens"] = 6
    raw["train"] |= {"epochs": 1, "micro_batch_size": 4, "max_length": 512, "lora_rank": 4}
    raw["arms"] = list({arm["policy"]: arm for arm in raw["arms"]}.values())
    if any(arm["policy"] == "s3ft" for arm in raw["arms"]):
        raw["rewrite"] = {"max_new_tokens": 6}
    raw["evaluate"] |= {"benchmarks": ["lab_sums"], "limit": 2, "max_task_rows": 4, "max_new_tokens": 6}
    raw["report"]["n_bootstrap"] = 200
    raw["execution"] = {"workers": 1}
    return raw


def asked(*arguments: str) -> Any:  # Any: JSON values
    done = ssr(*arguments, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mistral-7b-md2d", "mistral-7b-nq", "small-24gb"])
def test_a_shipped_recipe_is_priced_and_runs_to_its_report(
    name: str, tiny_model: Path, tmp_path: Path, prefect_server: None
) -> None:
    recipe = tmp_path / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(swapped(name, tiny_model, tmp_path)))
    store = str(tmp_path / "store")

    priced = asked("plan", str(recipe), "--store", store)
    # By its first word, the first that has it: answers are judged before rewrites.
    lines = {line["work"].split()[0]: line for line in reversed(priced["price"]["lines"])}
    assert {"generate", "judge", "train", "evaluate", "drift"} <= set(lines)
    assert lines["generate"]["rows"] == priced["rows_to_generate"] > 0
    assert lines["judge"]["rows"] == priced["rows"] + 12  # every answer and every probe
    arms = yaml.safe_load(recipe.read_text())["arms"]
    assert lines["train"]["rows"] == len(arms) * priced["rows"]
    assert lines["evaluate"]["rows"] == (1 + len(arms)) * (4 + 2)
    assert ("rewrite" in lines) == any(arm["policy"] == "s3ft" for arm in arms)
    assert all(line["gpu_hours"] >= 0 and line["prompt_tokens"] > 0 for line in lines.values())
    assert priced["price"]["assumptions"]

    record = rehearsed(load_recipe(recipe), store)
    assert record["status"] == "completed"
    report = asked("report", record["run_id"], "--store", store)
    assert [arm["name"] for arm in report["measured"]["arms"]] == [arm["name"] for arm in arms]
