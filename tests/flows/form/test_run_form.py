"""The form of a run: it fills in to a recipe, no field is without effect, and what is wrong is said in its words."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import pytest
from prefect import flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError as RefusedByTheServer
from prefect.utilities.schema_tools.validation import validate
from pydantic import BaseModel, ValidationError

from flows.form.arms import Benchmark
from flows.form.run_form import RunForm
from flows.runs.recipes import RECIPES, shipped
from tasks.config import load_recipe
from tasks.running.step import STEPS

OWN_DATA = {"recipe": "small-24gb", "data": {"path": "rows.jsonl"}}
LLM_JUDGE = {"recipe": "demo-vllm"}
PROMOTING = {"recipe": "nightly"}


def form(*parts: dict[str, Any]) -> RunForm:
    """A form filled in with all of these."""
    filled: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            filled[name] = {**filled.get(name, {}), **value} if isinstance(value, dict) else value
    return RunForm.model_validate(filled)


def problem(*parts: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        form(*parts)
    return "; ".join(error["msg"] for error in caught.value.errors())


def fields(model: type[BaseModel] = RunForm, path: tuple[str, ...] = ()) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, (*path, name))
        else:
            yield ".".join((*path, name))


# --- to a recipe ---


@pytest.mark.parametrize("name", shipped())
def test_a_form_with_a_recipe_alone_is_that_recipe(name):
    assert form({"recipe": name}).to_recipe() == load_recipe(RECIPES / f"{name}.yaml")


def test_an_empty_form_is_the_demo():
    assert form().to_recipe() == load_recipe(RECIPES / "demo.yaml")


# For each field a value, and what else is filled in before and after.
CHANGED: dict[str, tuple[Any, dict[str, Any]]] = {
    "recipe": ("small-24gb", {}),
    "name": ("nightly", {}),
    "data.path": ("rows.jsonl", {"recipe": "small-24gb"}),
    "data.hub": ("org/set", {"recipe": "small-24gb"}),
    "data.reader": ("squad2", OWN_DATA),
    "data.task": ("number", OWN_DATA),
    "data.question": ("ask", OWN_DATA),
    "data.answer": ("say", OWN_DATA),
    "data.document": ("text", OWN_DATA),
    "data.limit": (100, {}),
    "model.base": ("org/model", {}),
    "model.engine": ("vllm", {}),
    "model.urls": (["http://host:8000/v1"], {"model": {"engine": "openai", "urls": ["http://other:1/v1"]}}),
    "model.max_new_tokens": (77, {}),
    "judge.rules_only": (True, LLM_JUDGE),
    "judge.model": ("org/judge", {}),
    "judge.threshold": (0.7, LLM_JUDGE),
    "judge.min_token_recall": (0.8, {}),
    "train.policies": (["gold", "self_only"], {}),
    "train.learning_rates": ([3e-5], {}),
    "train.epochs": (3, {}),
    "train.max_length": (300, {}),
    "evaluate.benchmarks": (["mmlu"], {}),
    "evaluate.limit": (50, {}),
    "evaluate.max_task_rows": (60, {}),
    "promotion.arm": ("sft-5e-4", {}),
    "promotion.benchmark_margin": (0.05, PROMOTING),
    "promotion.task_margin": (0.05, PROMOTING),
    "promotion.train_on": ("new", PROMOTING),
    "execution": ("deployments", {}),
    "overrides": (["train.lora_rank=32"], {}),
}


def nested(path: str, value: Any) -> dict[str, Any]:
    *parents, last = path.split(".")
    found = {last: value}
    for parent in reversed(parents):
        found = {parent: found}
    return found


def test_every_field_has_a_case():
    assert set(fields()) - {"force"} == set(CHANGED)  # what the flow does with `force` is no part of the recipe


@pytest.mark.parametrize("path", CHANGED)
def test_a_field_of_the_form_changes_the_recipe(path):
    value, before = CHANGED[path]
    assert form(before, nested(path, value)).to_recipe() != form(before).to_recipe()


def test_a_form_is_its_override_lines():
    filled = form(OWN_DATA, {"model": {"base": "é😀"}, "train": {"epochs": 3}, "overrides": ["train.lora_rank=8"]})
    assert load_recipe(RECIPES / "small-24gb.yaml", filled.override_lines()) == filled.to_recipe()


def test_data_of_ones_own_take_the_place_of_all_sources():
    filled = form(OWN_DATA, {"data": {"task": "grounded_qa", "document": "text", "limit": 9}})
    (source,) = filled.to_recipe().data.sources
    assert (source.path, source.reader, source.task, source.limit) == ("rows.jsonl", "auto", "grounded_qa", 9)
    assert (source.fields.question, source.fields.document) == ("question", "text")


def test_a_limit_alone_holds_for_every_source_of_the_recipe():
    sources = form({"recipe": "mistral-7b-md2d", "data": {"limit": 9}}).to_recipe().data.sources
    assert [source.limit for source in sources] == [9, 9, 9]


def test_another_engine_leaves_the_settings_of_the_first_behind():
    engine = form({"recipe": "small-24gb", "model": {"engine": "transformers"}}).to_recipe().engine
    assert engine.kind == "transformers"
    assert engine.max_context is None


def test_the_same_engine_keeps_the_settings_of_the_recipe():
    engine = form({"recipe": "small-24gb", "model": {"engine": "vllm"}}).to_recipe().engine
    assert engine.max_context == 4096


def test_chosen_arms_keep_what_the_recipe_says_of_them_and_new_ones_are_trained_like_the_first():
    arms = form({"train": {"policies": ["ssr", "self_only"]}}).to_recipe().arms
    assert [(arm.name, arm.policy, arm.learning_rate) for arm in arms] == [
        ("ssr-5e-4", "ssr", 5e-4), ("ssr-1e-3", "ssr", 1e-3),
        ("self_only-5e-4", "self_only", 5e-4), ("self_only-1e-3", "self_only", 1e-3),
    ]  # fmt: skip


def test_every_arm_is_trained_with_every_learning_rate():
    demo = load_recipe(RECIPES / "demo.yaml")
    filled = form({"train": {"policies": ["gold", "ssr"], "learning_rates": [5e-4, 1e-3]}})
    assert sorted(filled.to_recipe().arms, key=str) == sorted(demo.arms, key=str)


def test_an_arm_that_is_not_called_by_its_rate_keeps_its_name():
    recipe = form({"recipe": "nightly", "train": {"learning_rates": [1e-4]}}).to_recipe()
    assert [(arm.name, arm.learning_rate) for arm in recipe.arms] == [("ssr", 1e-4)]


def test_epochs_hold_for_arms_that_have_their_own():
    own = 'arms=[{"name": "a", "policy": "ssr", "epochs": 1}]'
    assert form({"overrides": [own]}).to_recipe().arms[0].epochs == 1
    recipe = form({"train": {"epochs": 3}}).to_recipe()
    assert [arm.train_config(recipe.train).epochs for arm in recipe.arms] == [3] * 4


def test_a_margin_alone_keeps_what_the_recipe_says_of_promotion():
    promotion = form(PROMOTING, {"promotion": {"task_margin": 0.05}}).to_recipe().promotion
    assert promotion is not None
    assert (promotion.arm, promotion.benchmark_margin, promotion.task_margin) == ("ssr", 0.1, 0.05)


def test_an_arm_that_the_form_makes_can_be_promoted():
    filled = form({"train": {"policies": ["s3ft"], "learning_rates": [1e-4]}, "promotion": {"arm": "s3ft-1e-4"}})
    recipe = filled.to_recipe()
    assert recipe.promotion is not None
    assert [arm.name for arm in recipe.arms] == [recipe.promotion.arm]


def test_rules_alone_can_accept_where_the_recipe_left_all_to_its_judge():
    assert not form(LLM_JUDGE).to_recipe().judge.contains_gold
    judge = form(LLM_JUDGE, {"judge": {"rules_only": True}}).to_recipe().judge
    assert judge.llm is None
    assert judge.contains_gold


def test_a_judge_model_keeps_the_rubric_of_the_recipe():
    llm = form(LLM_JUDGE, {"judge": {"model": "org/judge", "threshold": 0.7}}).to_recipe().judge.llm
    assert llm is not None
    assert (llm.judges[0].model.base, llm.rubric, llm.threshold) == ("org/judge", "lab.v1", 0.7)


# --- what is refused, and how it is said ---


@pytest.mark.parametrize(
    ("filled", "message"),
    [
        ({"recipe": "other"}, "Recipe: no 'other' here. Shipped: demo, demo-vllm"),
        ({"data": {"path": "rows.jsonl"}}, "Data: recipe demo is made for the lab"),
        ({"recipe": "small-24gb", "data": {"path": "a", "hub": "b"}}, "Data: give either a path or a Hub dataset"),
        ({"data": {"reader": "squad2"}}, "Data: Format describes data of your own."),
        ({"data": {"document": "text"}}, "Data: Document column describes data of your own."),
        ({"model": {"engine": "openai"}}, "recipe demo: engine: kind openai needs `urls`"),
        ({"model": {"urls": ["http://host/v1"]}}, "recipe demo: engine: urls has no effect with kind transformers"),
        ({"judge": {"threshold": 0.7}}, "Judge: Threshold is for a judge model"),
        ({"judge": {"rules_only": True, "model": "x"}}, "Judge: with rules alone there is no judge model"),
        ({"train": {"policies": ["min_nll"]}}, "recipe demo: arm min_nll-5e-4: policy min_nll chooses among several"),
        (
            {"promotion": {"task_margin": 0.05}},
            "Promotion: Largest loss on the task is for runs that promote an adapter, and recipe demo promotes none.",
        ),
        ({"promotion": {"train_on": "new"}}, "Promotion: Rows to train on is for runs that promote an adapter"),
        ({"promotion": {"arm": "srs"}}, "recipe demo: promotion.arm='srs': no such arm. There are: sft-5e-4, ssr-5e-4"),
        ({"promotion": {"arm": "ssr-5e-4", "train_on": "new"}}, "recipe demo: promotion.train_on=new: every arm would"),
        (
            {"promotion": {"arm": "ssr-5e-4"}, "overrides": ["evaluate.benchmarks=[]"]},
            "recipe demo: promotion: without evaluate.benchmarks",
        ),
        ({"force": ["measure"]}, "Run again: this run has no step measure. It has: ingest, evaluate"),
        ({"overrides": ["train.epoch=3"]}, "recipe demo: unknown key 'train.epoch': did you mean 'epochs'?"),
        ({"overrides": ["train.epochs=many"]}, "recipe demo: train.epochs: Input should be a valid number"),
        ({"overrides": ["train.epochs.x=1"]}, "recipe demo: train.epochs.x=1: epochs is a value"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_words_of_the_form(filled, message):
    found = problem(filled)
    assert found.startswith(message)
    assert str(RECIPES) not in found


# Lines about the same as a field: the field, what is filled in, the line.
CLASHES: list[tuple[str, dict[str, Any], str]] = [
    ("Training: Epochs", {"train": {"epochs": 3}}, "train.epochs=4"),
    ("Training: Epochs", {"train": {"epochs": 1}}, " train.epochs =4"),  # the recipe's value, filled in all the same
    ("Training: Longest row", {"train": {"max_length": 512}}, "train={epochs: 1}"),
    ("Training: Arms", {"train": {"policies": ["ssr"]}}, "arms.0.learning_rate=0.0003"),
    ("Data: Rows", {"data": {"limit": 9}}, "data={lab_rows: 100, sources: [{name: lab, reader: lab, task: open}]}"),
    ("Data: Path", OWN_DATA, "data.sources.0.fields.answer=c"),
    ("Model: Engine", {"model": {"engine": "vllm"}}, "engine=vllm"),
    ("Model: Longest answer", {"model": {"max_new_tokens": 9}}, "evaluate={benchmarks: [lab]}"),
    ("Judge: Rules alone", {**LLM_JUDGE, "judge": {"rules_only": True}}, "judge.llm.threshold=0.8"),
    ("Promotion: Largest loss on the task", {**PROMOTING, "promotion": {"task_margin": 0.05}}, "promotion=null"),
    ("Name", {"name": "mine"}, "name=other"),
    ("Where steps run", {"execution": "deployments"}, "execution.steps=inline"),
]


@pytest.mark.parametrize(("field", "filled", "line"), CLASHES)
def test_a_line_about_the_same_as_a_field_is_refused(field, filled, line):
    said = problem(filled, {"overrides": ["report.n_examples=1", line, "generate.temperature=0.5"]})
    assert said == f"{field} and the line {line.strip()} under More changes set the same. Leave out one of the two."


@pytest.mark.parametrize(
    ("filled", "line"),
    [
        ({"train": {"epochs": 3}}, "train.lora_rank=8"),
        ({"train": {"epochs": 3}}, "arms.0.epochs=5"),
        ({"recipe": "small-24gb", "model": {"engine": "vllm"}}, "engine.max_context=8192"),
        ({"execution": "inline"}, "execution.workers=1"),
        ({**PROMOTING, "promotion": {"task_margin": 0.05}}, "promotion.confidence=0.9"),
        ({"data": {"path": ""}}, "data.sources.0.task=open"),
    ],
)
def test_a_line_beside_a_field_counts_with_it(filled, line):
    assert form(filled, {"overrides": [line]}).to_recipe() != form(filled).to_recipe()


def test_a_field_that_no_arm_would_follow_is_refused():
    own = 'arms=[{"name": "a", "policy": "ssr", "epochs": 1}]'
    assert "train.epochs=3.0: has no effect, every arm has its own" in problem(
        {"train": {"epochs": 3}, "overrides": [own]}
    )


@pytest.mark.parametrize("path", CHANGED)
def test_the_lines_of_a_field_are_about_the_keys_it_names(path):
    value, before = CHANGED[path]
    if path in ("recipe", "overrides"):
        return
    start, filled = form(before), form(before, nested(path, value))
    written = [line.partition("=") for line in filled.override_lines() if line not in start.override_lines()]
    keys = {key for _, key in filled.keys_set()}
    assert written
    for key, _, _ in written:
        assert any(f"{named}.".startswith(f"{key}.") for named in keys), f"{path} sets {key}: name it in KEYS"
    for named in keys - {key for _, key in start.keys_set()}:
        assert any(f"{named}.".startswith(f"{key}.") for key, _, _ in written) or named == "judge.contains_gold"


def test_steps_of_the_run_can_be_forced():
    assert form({"force": ["train", "report"]}).force == ["train", "report"]
    assert form(LLM_JUDGE, {"force": ["measure"]}).force == ["measure"]
    assert form({"train": {"policies": ["s3ft"]}, "force": ["rewrite"]}).force == ["rewrite"]


def test_the_steps_to_choose_from_are_all_there_are():
    of_the_project = {name for name, step in STEPS.items() if step.body.__module__.startswith("tasks.")}
    assert set(RunForm.model_json_schema()["properties"]["force"]["items"]["enum"]) == of_the_project


def test_the_recipes_choose_benchmarks_that_the_form_offers():
    chosen = {name for recipe in shipped() for name in form({"recipe": recipe}).to_recipe().evaluate.benchmarks}
    assert chosen <= set(typing.get_args(Benchmark))


# --- as Prefect has it ---


def toy(run: RunForm = RunForm()) -> None:
    """A flow that takes the form."""


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return parameter_schema(toy).model_dump_for_openapi()


def definitions(schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = schema["definitions"]
    return found


def described(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for part, definition in definitions(schema).items():
        for name, field in definition["properties"].items():
            yield f"{part}.{name}", field


def test_every_field_has_a_title_a_description_and_its_place(schema):
    found = dict(described(schema))
    assert len(found) == len(list(fields())) + 6  # the sections
    for name, field in found.items():
        assert {"title", "description", "position"} <= set(field), name
        assert field["description"].endswith("."), name
    for definition in definitions(schema).values():
        places = [field["position"] for field in definition["properties"].values()]
        assert places == sorted(set(places))


def test_no_field_asks_for_a_type_first(schema):
    assert [name for name, field in described(schema) if "anyOf" in field] == []


def test_choices_are_selects(schema):
    found = dict(described(schema))
    assert found["RunForm.recipe"]["enum"] == list(shipped())
    assert found["RunForm.recipe"]["default"] == "demo"
    for name in ("RunForm.execution", "ModelPart.engine", "DataPart.reader", "DataPart.task", "PromotionPart.train_on"):
        assert found[name]["default"] in found[name]["enum"]
    for name in ("RunForm.force", "TrainPart.policies", "EvaluatePart.benchmarks"):
        assert found[name]["items"]["enum"]


def sent(schema: dict[str, Any], **filled: Any) -> None:
    validate({"run": filled}, schema, raise_on_error=True)


def test_the_server_takes_a_form_that_is_empty_or_whose_fields_are(schema):
    sent(schema)
    sent(schema, name=None, data={"path": None, "limit": None}, judge={"threshold": None}, train={"epochs": None})
    sent(schema, promotion={"arm": None, "benchmark_margin": None, "task_margin": None})


@pytest.mark.parametrize(
    ("filled", "place"),
    [
        ({"recipe": "other"}, "run.recipe"),
        ({"name": "My run"}, "run.name"),
        ({"data": {"limit": 0}}, "run.data.limit"),
        ({"data": {"limit": "many"}}, "run.data.limit"),
        ({"judge": {"threshold": 1.5}}, "run.judge.threshold"),
        ({"train": {"epochs": -1}}, "run.train.epochs"),
        ({"train": {"learning_rates": [5]}}, "run.train.learning_rates[0]"),
        ({"train": {"policies": ["best"]}}, "run.train.policies[0]"),
        ({"train": {"policies": ["ssr", "ssr"]}}, "run.train.policies"),
        ({"evaluate": {"benchmarks": ["other"]}}, "run.evaluate.benchmarks[0]"),
        ({"promotion": {"benchmark_margin": 1}}, "run.promotion.benchmark_margin"),
        ({"promotion": {"train_on": "some"}}, "run.promotion.train_on"),
        ({"force": ["trian"]}, "run.force[0]"),
        ({"overrides": ["train.epochs 3"]}, "run.overrides[0]"),
        ({"model": {"engine": "llama"}}, "run.model.engine"),
        ({"modle": {}}, "run"),
    ],
)
def test_the_server_refuses_a_wrong_value_and_names_its_field(schema, filled, place):
    with pytest.raises(RefusedByTheServer, match=f"field '{place}'".replace("[", r"\[").replace("]", r"\]")):
        sent(schema, **filled)


@pytest.mark.slow
def test_a_run_whose_form_does_not_fit_fails_at_once_and_says_why(prefect_server):
    state = flow(toy)({"data": {"path": "rows.jsonl"}}, return_state=True)
    assert state.is_failed()
    assert state.message is not None
    assert "run: Data: recipe demo is made for the lab" in state.message
