"""Recipes: what is refused and how it is said; overrides; and that every field has an effect or is marked runtime."""

from __future__ import annotations

import traceback
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from flows.rehearsal import plan_steps
from tasks.config import EngineConfig, RunConfig, Section, load_recipe, parse_recipe
from tasks.errors import ConfigError


def parsed(**sections: Any) -> RunConfig:
    return parse_recipe(sections, where="toy.yaml")


def problem(**sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(**sections)
    return str(caught.value)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "my-run.yaml"
    path.write_text("train: {epochs: 1}\narms:\n  - {name: sft, policy: gold}\n  - {name: ssr, policy: ssr}\n")
    return path


# --- what is refused ---


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"trian": {}}, "unknown key 'trian': did you mean 'train'?"),
        ({"train": {"learning_rte": 1}}, "unknown key 'train.learning_rte': did you mean 'learning_rate'?"),
        ({"train": {"zzz": 1}}, "unknown key 'train.zzz': known here: learning_rate, epochs"),
        (
            {"arms": [{"name": "a", "policy": "ssr", "epoch": 1}]},
            "unknown key 'arms.0.epoch': did you mean 'epochs'?",
        ),
        (
            {"data": {"sources": [{"path": "a"}, {"path": "b", "fields": {"anwser": "x"}}]}},
            "unknown key 'data.sources.1.fields.anwser': did you mean 'answer'?",
        ),
        (
            {"data": {"sources": [{"path": "a", "unanswerable": {"shar": 0.5}}]}},
            "unknown key 'data.sources.0.unanswerable.shar': did you mean 'share'?",
        ),
    ],
)
def test_an_unknown_key_comes_with_its_place_and_the_nearest_right_one(sections, message):
    assert problem(**sections).startswith(f"toy.yaml: {message}")


@pytest.mark.parametrize(
    ("sections", "place", "value"),
    [
        ({"train": {"epochs": "many"}}, "train.epochs", "'many'"),
        ({"train": {"epochs": 0}}, "train.epochs", "0"),
        ({"train": {"lora_dropout": 1.0}}, "train.lora_dropout", "1.0"),
        ({"train": []}, "train", "[]"),
        ({"train": None}, "train", "None"),
        ({"arms": {"name": "a"}}, "arms", "{'name': 'a'}"),
        ({"arms": [{"name": "a", "policy": "best"}]}, "arms.0.policy", "'best'"),
        ({"arms": [{"name": "A b", "policy": "ssr"}]}, "arms.0.name", "'A b'"),
        ({"arms": []}, "arms", "[]"),
        ({"name": "../x"}, "name", "'../x'"),
        ({"data": {"sources": []}}, "data.sources", "[]"),
        ({"generate": {"n_samples": 2}}, "generate", "{'n_samples': 2}"),
        ({"data": {"sources": [{"name": "a"}]}}, "data.sources.0", "{'name': 'a'}"),
    ],
)
def test_a_wrong_value_comes_with_its_place_and_itself(sections, place, value):
    message = problem(**sections)
    assert message.startswith(f"toy.yaml: {place}: ")
    assert f"(found {value})" in message


def test_every_problem_is_told_at_once():
    assert len(problem(train={"epochs": -1, "learning_rte": 1}, judge={"undecided": "maybe"}).splitlines()) == 3


def test_arms_that_share_a_name_are_refused():
    arms = [{"name": "a", "policy": "gold"}, {"name": "a", "policy": "ssr"}]
    assert "arms share a name: a" in problem(arms=arms)


def test_sources_that_share_a_name_are_refused():
    assert "sources share a name: a" in problem(data={"sources": [{"name": "a", "path": p} for p in "xy"]})


def test_an_arm_called_base_is_refused():
    assert "an arm cannot be called base" in problem(arms=[{"name": "base", "policy": "ssr"}])


def test_an_out_of_domain_source_cannot_train():
    source = {"path": "a", "domain": "out", "split": "train"}
    assert "split must be test" in problem(data={"sources": [source]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train: {epochs: [", "not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"- a\n- b\n", "a recipe is a mapping of sections, found list"),
        (b"", "a recipe is a mapping of sections, found NoneType"),
        (b"just text", "a recipe is a mapping of sections, found str"),
        (b"!!python/object/apply:os.getcwd []", "not YAML"),
        (b"1: 2\n", "1: Keys should be strings"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_its_path(tmp_path, content, message):
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_recipe(tmp_path / "bad.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'bad.yaml'}: {message}")


def test_a_recipe_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such recipe\. `ssr recipes` lists"):
        load_recipe(tmp_path / "none.yaml")


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(tmp_path)


# --- overrides ---


def test_the_name_of_a_run_is_the_file_s_where_it_has_none(recipe):
    assert load_recipe(recipe).name == "my-run"
    assert load_recipe(recipe, ["name=other"]).name == "other"


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("train.epochs=3", lambda c: c.train.epochs, 3.0),
        ("train.learning_rate=2e-4", lambda c: c.train.learning_rate, 2e-4),
        ("train.packing=true", lambda c: c.train.packing, True),
        ("generate.max_new_tokens=7", lambda c: c.generate.max_new_tokens, 7),
        ("evaluate.benchmarks=[lab]", lambda c: c.evaluate.benchmarks, ("lab",)),
        ("evaluate.limit=null", lambda c: c.evaluate.limit, None),
        ("arms.1.epochs=5", lambda c: c.arms[1].epochs, 5.0),
        ("arms.0={name: x, policy: self_only}", lambda c: c.arms[0].name, "x"),
        ("report.title=a=b", lambda c: c.report.title, "a=b"),
    ],
)
def test_an_override_sets_one_value(recipe, override, read, value):
    config = load_recipe(recipe, [override])
    assert read(config) == value
    assert load_recipe(recipe).arms[1].name == config.arms[1].name


def test_the_last_override_of_a_key_wins(recipe):
    assert load_recipe(recipe, ["train.epochs=3", "train.epochs=4"]).train.epochs == 4


def test_an_override_reaches_into_a_section_that_is_written_as_one_value(recipe):
    recipe.write_text(recipe.read_text() + "engine: vllm\nexecution: deployments\n")
    found = load_recipe(recipe, ["engine.memory_share=0.5", "execution.workers=3"])
    assert (found.engine.kind, found.engine.memory_share) == ("vllm", 0.5)
    assert (found.execution.steps, found.execution.workers) == ("deployments", 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "write it as section.key=value"),
        ("=3", "write it as section.key=value"),
        ("arms.2.epochs=1", "2 is not a place in a list of 2"),
        ("arms.-1.epochs=1", "-1 is not a place in a list of 2"),
        ("arms.ssr.epochs=1", "ssr is not a place in a list of 2"),
        ("arms.2=x", "2 is not a place in a list of 2"),
        ("train.epochs.more=1", "epochs is a value, it has nothing below it"),
        ("arms.0.policy.more=1", "policy is a value, it has nothing below it"),
        ("train.epochs=[1", "not a YAML value"),
        ("train.epoch=1", "did you mean 'epochs'?"),
        ("train.epochs=-1", "train.epochs"),
        ("report.title=", "report.title"),
    ],
)
def test_a_wrong_override_is_refused(recipe, override, message):
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, [override])
    assert message in str(caught.value)


# --- every field has an effect, or is marked runtime ---


class Leaf(NamedTuple):
    """A field of the recipe; `path` leads to it through sections and places in lists."""

    path: tuple[str | int, ...]
    field: FieldInfo
    runtime: bool

    @property
    def name(self) -> str:
        return ".".join(map(str, self.path))


def leaves(
    section: type[Section] = RunConfig, path: tuple[str | int, ...] = (), runtime: bool = False
) -> Iterator[Leaf]:
    for name, field in section.model_fields.items():
        extra = field.json_schema_extra
        marked = runtime or bool(isinstance(extra, dict) and extra.get("runtime"))
        below = _section_in(field.annotation)
        if below is None:
            yield Leaf((*path, name), field, marked)
        else:
            is_list = typing.get_origin(field.annotation) is tuple
            yield from leaves(below, (*path, name, 0) if is_list else (*path, name), marked)


def _section_in(annotation: Any) -> type[Section] | None:
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def others(field: FieldInfo, current: Any) -> list[Any]:
    """Values of a field's type that are not its current one, most of them valid."""
    kinds = [kind for kind in _members(field.annotation) if kind is not type(None)]
    if len(kinds) != 1:
        raise AssertionError(f"teach `others` about {field.annotation}")
    (kind,) = kinds
    if typing.get_origin(kind) is Literal:
        found: list[Any] = [value for value in typing.get_args(kind) if value != current]
    elif kind is bool:
        found = [not current]
    elif kind in (int, float):
        bounds = [getattr(m, name) for m in field.metadata for t, name in _BOUNDS if isinstance(m, t)]
        found = [kind((current or 0) + 1), kind((current or 0) / 2), *(kind(b + 0.001) for b in bounds)]
    elif kind is str:
        found = [f"{current or ''}x"]
    elif typing.get_origin(kind) is tuple:
        found = [["another"]]
    else:
        raise AssertionError(f"teach `others` about {kind}")
    return [value for value in found if value != current]


_BOUNDS = ((Gt, "gt"), (Ge, "ge"), (Lt, "lt"), (Le, "le"))


def _members(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


# A section's fields must reach the step that the section is for: the report's fingerprint covers the whole recipe.
STEP_OF = {
    "model": "generate", "engine": "generate", "data": "ingest", "generate": "generate",
    "rewrite": "rewrite", "judge": "judge", "abstention": "judge",
    "train": "train", "evaluate": "evaluate", "promotion": "promote", "report": "report", "name": "report",
    "arms.0.name": "report", "arms.0.policy": "select", "arms.0.select_seed": "select", "arms": "train",
}  # fmt: skip
_LAB = {"data.sources": [{"name": "lab", "reader": "lab"}]}
_HUB = {"data.sources.0.hub": "org/set", "data.sources.0.path": None}
_GROUNDED = {"data.sources.0.task": "grounded_qa", "data.sources.0.fields.document": "doc"}
_UNANSWERABLE = _GROUNDED | {"data.sources.0.unanswerable": {"share": 0.5, "seed": 1}}
_OPENAI = {"engine": {"kind": "openai", "urls": ["http://localhost:1/v1"]}}
_VLLM = {"engine": {"kind": "vllm"}}
_OF_OPENAI = ("served_model", "api_key_env", "concurrency", "timeout_seconds")
_OF_VLLM = (
    "python", "tensor_parallel", "data_parallel", "memory_share", "max_context", "quantization", "extra_args",
    "start_timeout_seconds",
)  # fmt: skip


def judging(engine: dict[str, Any] | None = None, **llm: Any) -> dict[str, Any]:
    """A judge of which every field can be changed, but for those that exclude each other."""
    judges = [{"model": {"base": "judge"}, "engine": engine or {"kind": "transformers"}}]
    sampled = {"reasoning": True, "temperature": 1.0, "repeats": 2, "audit": {"min_precision": 0.5}}
    return {"judge.llm": {"judges": judges, **sampled, **llm}}


# Where one field alone cannot be changed: what else stands in the recipe before, and what changes.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "arms.0.policy": ({}, {"arms.0.policy": "gold"}),
    "engine.kind": ({}, {"engine.kind": "vllm"}),
    "evaluate.benchmarks": ({}, {"evaluate.benchmarks": ["mmlu"]}),  # others are looked up in the harness
    "engine.urls": (_OPENAI, {"engine.urls": ["http://localhost:2/v1"]}),
    **{f"engine.{name}": (_OPENAI, {}) for name in _OF_OPENAI},
    **{f"engine.{name}": (_VLLM, {}) for name in _OF_VLLM},
    **{
        f"judge.llm.{name}": (judging(), {})
        for name in (
            "verdict_by",
            "max_reasoning_tokens",
            "repeats",
            "temperature",
            "combine",
            "threshold",
            "seed",
            "max_unjudged_share",
            "audit.n_probes",
            "audit.min_precision",
            "audit.below",
            "audit.seed",
            "judges.0.model.base",
            "judges.0.model.revision",
            "judges.0.model.dtype",
            "judges.0.engine.batch_tokens",
        )
    },
    "judge.llm.rubric": (judging(), {"judge.llm.rubric": "template.txt"}),
    "judge.llm.reasoning": (judging(temperature=0.0, repeats=1), {}),
    "judge.llm.judges.0.engine.kind": (judging(), {"judge.llm.judges.0.engine.kind": "vllm"}),
    "judge.llm.judges.0.engine.urls": (
        judging(_OPENAI["engine"]),
        {"judge.llm.judges.0.engine.urls": ["http://localhost:2/v1"]},
    ),
    **{f"judge.llm.judges.0.engine.{name}": (judging(_OPENAI["engine"]), {}) for name in _OF_OPENAI},
    **{f"judge.llm.judges.0.engine.{name}": (judging(_VLLM["engine"]), {}) for name in _OF_VLLM},
    "generate.n_samples": ({"generate.temperature": 1.0}, {}),
    **{
        f"rewrite.{name}": ({"arms.0.policy": "s3ft"}, {})
        for name in ("max_new_tokens", "temperature", "top_p", "seed", "max_failed_share")
    },
    "rewrite.template": ({"arms.0.policy": "s3ft"}, {"rewrite.template": "template.txt"}),
    **{
        f"promotion.{name}": ({"promotion": {"arm": "ssr"}}, {})
        for name in (
            "benchmark_margin",
            "task_margin",
            "confidence",
            "max_unscored_share",
            "train_on",
            "n_bootstrap",
            "seed",
        )
    },
    "promotion.arm": (
        {"promotion": {"arm": "ssr"}, "arms": [{"name": name, "policy": "ssr"} for name in ("ssr", "other")]},
        {"promotion.arm": "other"},
    ),
    "data.sources.0.hub": ({}, _HUB),
    "data.sources.0.hub_config": (_HUB, {}),
    "data.sources.0.hub_split": (_HUB, {}),
    "data.sources.0.revision": (_HUB, {}),
    "data.sources.0.path": ({}, {"data.sources.0.path": "moved.jsonl"}),
    "data.sources.0.documents": (
        {"data.sources.0.reader": "md2d", "data.sources.0.documents": "rows.jsonl"},
        {"data.sources.0.documents": "moved.jsonl"},
    ),
    "data.sources.0.reader": ({}, {"data.sources.0.reader": "nq"}),
    "data.lab_rows": (_LAB, {}),
    "data.seed": (_LAB, {}),
    "abstention.phrases": ({}, {"abstention.phrases": ["cannot find"]}),
    "data.sources.0.task": ({"data.sources.0.fields.document": "doc"}, {}),
    "data.sources.0.unanswerable.share": (_UNANSWERABLE, {}),
    "data.sources.0.unanswerable.seed": (_UNANSWERABLE, {}),
}
# A choice among one is none, until there is another.
LEAVES = [leaf for leaf in leaves() if len(typing.get_args(leaf.field.annotation)) != 1]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe over a file, and the places that its changed fields may name."""
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "moved.jsonl", "x"):
        Path(name).write_text('{"question": "1 + 1?", "answer": "2"}\n')
    Path("template.txt").write_text("{{ gold }}")
    monkeypatch.setattr("tasks.ingest.sources.revision_digest", lambda config, key: "commit")
    for module in ("generate.filling", "judge.panel", "train.step", "evaluate.step"):
        monkeypatch.setattr(f"tasks.{module}.model_digest", lambda model: "weights")
    return {
        "data": {"sources": [{"name": "rows", "path": "rows.jsonl"}]},
        "arms": [{"name": "ssr", "policy": "ssr"}],
        "evaluate": {"benchmarks": ["lab"]},
    }


def changed(raw: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    copy = yaml.safe_load(yaml.safe_dump(raw))
    for name, value in values.items():
        *parents, last = [int(part) if part.isdigit() else part for part in name.split(".")]
        node = copy
        for parent in parents:
            node = node[parent] if isinstance(node, list) else node.setdefault(parent, {})
        node[last] = value
    return copy


def current_value(config: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        if config is None:
            return None
        config = config[part] if isinstance(part, int) else getattr(config, part)
    return config


def fingerprints(raw: dict[str, Any]) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for planned in plan_steps(parse_recipe(raw, where="toy")):
        found.setdefault(planned.step.name, set()).add(planned.ref["fingerprint"])
    return {step: frozenset(made) for step, made in found.items()}


def before_and_after(base: dict[str, Any], leaf: Leaf) -> tuple[dict[str, frozenset[str]], dict[str, frozenset[str]]]:
    """Fingerprints with two values of one field, all else being equal."""
    before, changes = CASES.get(leaf.name, ({}, {}))
    start = changed(base, before)
    current = current_value(parse_recipe(start, where="toy"), leaf.path)
    values = [changes[leaf.name]] if leaf.name in changes else others(leaf.field, current)
    refusals = []
    for value in values:
        try:
            return fingerprints(start), fingerprints(changed(start, changes | {leaf.name: value}))
        except ConfigError as error:
            refusals.append(f"{value!r}: {error}")
    raise AssertionError(f"{leaf.name}: no other value is allowed. Teach CASES one.\n" + "\n".join(refusals))


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if not leaf.runtime], ids=lambda leaf: leaf.name)
def test_a_field_of_the_recipe_changes_the_step_it_is_for(base, leaf):
    before, after = before_and_after(base, leaf)
    step = STEP_OF.get(leaf.name) or STEP_OF[str(leaf.path[0])]
    assert before[step] != after[step], f"{leaf.name} is accepted and ignored: use it, or mark it runtime"


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if leaf.runtime], ids=lambda leaf: leaf.name)
def test_a_runtime_field_changes_no_fingerprint(base, leaf):
    before, after = before_and_after(base, leaf)
    assert before == after


def test_the_walk_finds_the_fields_it_should():
    names = {leaf.name for leaf in LEAVES}
    assert {"train.learning_rate", "arms.0.policy", "data.sources.0.fields.question", "execution.workers"} <= names
    assert "data.sources.0.unanswerable.share" in names
    assert {leaf.name for leaf in LEAVES if leaf.runtime} == {
        "generate.max_failed_share", "rewrite.max_failed_share", "train.checkpoint_steps", "train.micro_batch_size",
        "train.gradient_checkpointing", "execution.workers", "execution.threads", "execution.steps",
        "data.sources.0.path", "data.sources.0.documents", "judge.llm.max_unjudged_share",
        "evaluate.benchmark_batch_size", "evaluate.max_failed_share",
        *(f"{engine}.{name}" for engine in ("engine", "judge.llm.judges.0.engine") for name in (
            "urls", "api_key_env", "python", "tensor_parallel", "data_parallel", "memory_share", "concurrency",
            "timeout_seconds", "start_timeout_seconds",
        )),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"kind": "transformers", "concurrency": 8}, "concurrency has no effect with kind transformers"),
        ({"kind": "openai", "urls": ["http://a/v1"], "quantization": "fp8"}, "quantization has no effect"),
        ({"kind": "vllm", "urls": ["http://a/v1"]}, "urls has no effect with kind vllm"),
        ({"kind": "openai"}, "kind openai needs `urls`"),
        ("vlm", "engine.kind"),
    ],
)
def test_a_setting_that_the_engine_does_not_read_is_refused(engine, message):
    assert message in problem(engine=engine)


@pytest.mark.parametrize("kind", ["openai", "vllm"])
@pytest.mark.parametrize(
    "urls",
    [
        ["http://a/v1", "http://user:s3cr3t@b/v1"], ["http://s3cr3t@b/v1"], ["http://b/v1?key=s3cr3t"],
        ["http://user:pass/s3cr3t@b/v1"], "http://user:s3cr3t@b/v1", ["user:s3cr3t@b"], {"http://s3cr3t@b/v1": None},
    ],
)  # fmt: skip
def test_a_secret_in_an_address_is_refused_and_not_repeated(kind: str, urls: object) -> None:
    engine = {"kind": kind, "urls": urls}
    for check in (EngineConfig.model_validate, lambda engine: parsed(engine=engine)):
        with pytest.raises(ConfigError, match=r"engine\.api_key_env") as refused:
            check(engine)
        assert "s3cr3t" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    ("key", "of_the_arm"),
    [("train.learning_rate", "learning_rate"), ("train.epochs", "epochs"), ("train.seed", "train_seed")],
)
def test_an_override_that_no_arm_follows_is_refused(key: str, of_the_arm: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"arms: [{{name: a, policy: ssr, {of_the_arm}: 1}}, {{name: b, policy: gold, {of_the_arm}: 1}}]")
    with pytest.raises(ConfigError) as refused:
        load_recipe(path, [f"{key}=3"])
    own = f"arms.0.{of_the_arm}, arms.1.{of_the_arm}"
    assert str(refused.value) == f"--set {key}=3: has no effect, every arm has its own. Set {own}"
    load_recipe(path, [f"{key}=3", f"arms.1.{of_the_arm}=null"])  # one arm follows it


@pytest.mark.parametrize("name", ["template", "temperature", "max_failed_share"])
def test_a_setting_of_rewrites_without_a_policy_that_teaches_them_is_refused(name):
    value = {"template": "mine.txt", "temperature": 0.7, "max_failed_share": 0.5}[name]
    arms = [{"name": "ssr", "policy": "ssr"}]
    assert f"rewrite.{name} has no effect without an arm of policy s3ft" in problem(rewrite={name: value}, arms=arms)
    for policy in ("s3ft", "rewrite_all"):
        assert parsed(rewrite={name: value}, arms=[{"name": "a", "policy": policy}])


def test_a_choice_among_one_answer_is_refused():
    arms = [{"name": "probable", "policy": "min_nll"}]
    assert "arm probable: policy min_nll chooses among several answers" in problem(arms=arms)
    assert parsed(arms=arms, generate={"n_samples": 4, "temperature": 0.7})


@pytest.mark.parametrize(
    ("llm", "message"),
    [
        ({"judges": []}, "judge.llm.judges"),
        ({"judges": [{}]}, "judge.llm.judges.0.model"),
        ({"judges": [{"model": {"base": "x"}}] * 2}, "two judges are the same"),
        ({"max_reasoning_tokens": 9}, "max_reasoning_tokens has no effect without reasoning"),
        ({"repeats": 3}, "repeats has no effect with temperature 0"),
        ({"temperature": 1.0}, "temperature has no effect where probabilities are read"),
        ({"temperature": 1.0, "repeats": 2}, "temperature has no effect where probabilities are read"),
        ({"seed": 1}, "seed has no effect with temperature 0"),
        ({"combine": "majority"}, "combine has no effect with one opinion"),
        ({"verdict_by": "text", "threshold": 0.7}, "threshold has no effect where verdicts are read from text"),
        ({"audit": {"n_probes": 0, "min_precision": 0.5}}, "min_precision has no effect with n_probes 0"),
        ({"audit": {"n_probes": 0, "seed": 1}}, "seed has no effect with n_probes 0"),
        ({"audit": {"below": "gold"}}, "below has no effect without min_precision"),
        ({"threshhold": 0.7}, "did you mean 'threshold'?"),
    ],
)
def test_a_setting_that_a_judge_does_not_read_is_refused(llm, message):
    assert message in problem(judge={"llm": {"judges": [{"model": {"base": "judge"}}]} | llm})


def test_what_becomes_of_undecided_answers_is_the_models_business_where_there_are_any():
    assert "undecided has no effect with llm" in problem(
        judge={"undecided": "reject", "llm": {"judges": [{"model": {"base": "judge"}}]}}
    )


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"promotion": {}}, "promotion.arm"),
        ({"promotion": {"arm": "srs"}}, "promotion.arm='srs': no such arm. There are: sft, ssr"),
        ({"promotion": {"arm": "ssr"}, "evaluate": {"benchmarks": []}}, "without evaluate.benchmarks"),
        ({"promotion": {"arm": "ssr", "train_on": "new"}}, "every arm would go on from the same adapter"),
        ({"promotion": {"arm": "ssr", "benchmark_margin": 0}}, "promotion.benchmark_margin"),
    ],
)
def test_a_promotion_that_could_show_nothing_is_refused(sections, message):
    assert message in problem(**sections)


def test_the_name_of_an_engine_alone_is_enough():
    assert parsed(engine="vllm").engine.kind == "vllm"


def test_every_field_has_a_description():
    # It is the label of the field in the form of the Prefect UI.
    assert [leaf.name for leaf in LEAVES if not leaf.field.description] == []
