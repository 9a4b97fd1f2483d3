"""What `ssr deploy` would put on a server, without one: templates of work pools, and settings that are refused."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from prefect.client.schemas.objects import StateType
from prefect.flows import load_flow_from_entrypoint
from prefect.server.schemas.actions import validate_base_job_template
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import AwaitingConcurrencySlot, AwaitingRetry, Late, Scheduled
from prefect.utilities.templating import find_placeholders
from prefect.workers.base import BaseJobConfiguration
from typer.testing import CliRunner

from flows.cli.main import app
from flows.deployment.deploy import deploy
from flows.deployment.pool_changes import merge_template
from flows.deployment.pools import QUEUES, dead_worker_automation, job_template, never_began_automation, start_seconds
from flows.deployment.target import Infra, Target, fill_in
from flows.execution.access import S3Access, use_access
from flows.execution.children import DEPLOYMENT
from flows.form.run_form import RunForm
from flows.rehearsal import STEPS
from flows.runs.recipes import RECIPES
from tasks.config import load_recipe
from tasks.errors import ConfigError
from tasks.running.step import Step

ROOT = Path(__file__).parents[3]
TEMPLATES = [(infra, pool) for infra in get_args(Infra) for pool in QUEUES]
GPU_CONTAINERS = [infra for infra in get_args(Infra) if infra != "process"]


def leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every scalar of a JSON value with its path."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, f"{path}.{key}")]
    if isinstance(value, list):
        return [leaf for i, inner in enumerate(value) for leaf in leaves(inner, f"{path}.{i}")]
    return [(path, value)]


# --- templates ---


def test_every_committed_template_belongs_to_a_pool():
    files = {path.stem for path in (ROOT / "deployments" / "work_pools").iterdir()}
    assert files == {f"{infra}-{pool.removeprefix('ssr-')}" for infra, pool in TEMPLATES}


@pytest.mark.parametrize(("infra", "pool"), TEMPLATES)
def test_a_template_declares_what_it_uses_and_uses_what_it_declares(infra, pool):
    template = job_template(infra, pool)
    assert validate_base_job_template(template) == template, "the server's own check"
    used = {placeholder.name for placeholder in find_placeholders(json.dumps(template["job_configuration"]))}
    assert used == set(template["variables"]["properties"])


@pytest.mark.parametrize(("infra", "pool"), TEMPLATES)
def test_the_variables_of_a_template_are_described_and_their_defaults_fit(infra, pool):
    schema = job_template(infra, pool)["variables"]
    jsonschema.Draft202012Validator.check_schema(schema)
    properties = schema["properties"]
    defaults = {name: prop["default"] for name, prop in properties.items() if prop.get("default") is not None}
    jsonschema.validate(defaults, schema)
    assert [name for name, prop in properties.items() if not (prop.get("description") or prop.get("$ref"))] == []


@pytest.mark.parametrize(("infra", "pool"), TEMPLATES)
def test_a_template_names_secrets_and_holds_none(infra, pool):
    """A variable of a secret's name is empty, or filled in from the worker's environment; no default is a key."""
    template = job_template(infra, pool)
    environment = template["variables"]["properties"]["env"].get("default", {})
    for name, value in environment.items():
        assert not re.search("KEY|SECRET|TOKEN|PASSWORD", name) or value == f"{{{{ ${name} }}}}", name
    for path, value in leaves(template["variables"]["properties"]):
        if path.endswith(".default") and isinstance(value, str):
            assert not re.search(r"AKIA[0-9A-Z]{16}|[A-Za-z0-9/+]{40}|hf_[A-Za-z0-9]{20}", value), path


def test_steps_of_the_gpu_pool_ask_for_gpus_and_those_of_the_cpu_pool_do_not():
    def asked(infra: Infra, pool: str) -> Any:  # Any: as each infrastructure writes it
        config = job_template(infra, pool)["job_configuration"]
        if infra == "docker":
            kwargs = config["container_create_kwargs"]
            return kwargs["device_requests"][0]["count"] if isinstance(kwargs, dict) else None
        if infra == "kubernetes":
            [container] = config["job_manifest"]["spec"]["template"]["spec"]["containers"]
            return container["resources"]["limits"].get("nvidia.com/gpu")
        [container] = config["task_definition"]["containerDefinitions"]
        return next((r["value"] for r in container.get("resourceRequirements", []) if r["type"] == "GPU"), None)

    for infra in GPU_CONTAINERS:
        assert asked(infra, "ssr-gpu") == "{{ gpu_count }}", infra
        assert asked(infra, "ssr-cpu") is None, infra


def test_pods_on_gpu_nodes_have_shared_memory_a_model_cache_and_a_way_onto_the_nodes():
    pod = job_template("kubernetes", "ssr-gpu")["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert "persistentVolumeClaim" in volumes[mounts["/var/lib/ssr/models"]]
    assert pod["nodeSelector"] == "{{ node_selector }}"
    assert pod["tolerations"] == "{{ tolerations }}"
    assert all("secretRef" in source for source in pod["containers"][0]["envFrom"])


@pytest.mark.parametrize("pool", QUEUES)
def test_a_docker_worker_hands_on_the_keys_it_has_and_an_empty_one_for_those_it_lacks(pool, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "of-the-hub")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    nobody: Any = object()  # in place of a client: nothing in a template asks the server
    found = asyncio.run(BaseJobConfiguration.from_template_and_values(job_template("docker", pool), {}, client=nobody))
    assert found.env["HF_TOKEN"] == "of-the-hub"
    assert found.env["AWS_SESSION_TOKEN"] == ""


# --- what people have changed on a pool ---


def changed(template: Any, **defaults: Any) -> Any:
    """A template as the form of the UI hands it back: every variable with a default, null where its field is empty."""
    properties = {
        name: {**one, "default": defaults.get(name, one.get("default"))}
        for name, one in template["variables"]["properties"].items()
    }
    return {**template, "variables": {**template["variables"], "properties": properties}}


def defaults(template: Any) -> Any:
    return {name: one.get("default") for name, one in template["variables"]["properties"].items()}


@pytest.mark.parametrize(("infra", "pool"), TEMPLATES)
def test_a_template_that_nobody_changed_stays_as_it_is(infra, pool):
    first = merge_template(job_template(infra, pool), {})
    assert validate_base_job_template(first.template) == first.template
    assert merge_template(job_template(infra, pool), first.template) == first


def test_what_people_have_set_on_a_pool_stays_and_is_named():
    ours = job_template("ecs", "ssr-gpu")
    there = changed(merge_template(ours, {}).template, cluster="theirs", execution_role_arn="arn:theirs")
    merged = merge_template(ours, there)
    assert sorted(merged.kept) == ["cluster", "execution_role_arn"]
    assert (defaults(merged.template)["cluster"], defaults(merged.template)["execution_role_arn"]) == (
        "theirs",
        "arn:theirs",
    )
    assert merge_template(ours, merged.template) == merged, "and the next time"


def test_a_new_default_of_ours_arrives_unless_somebody_has_set_another():
    old = job_template("docker", "ssr-gpu")
    there = merge_template(old, {}).template
    environment = {**defaults(old)["env"], "HTTPS_PROXY": "theirs", "SSR_CACHE": "/theirs"}
    del environment["AWS_SESSION_TOKEN"]
    there = changed(there, networks=["theirs"], env=environment)
    new = changed(old, shm_size="16g", networks=["ours"], env={**defaults(old)["env"], "NEW": "ours"})
    merged = merge_template(new, there)
    found = defaults(merged.template)
    assert (found["shm_size"], found["networks"]) == ("16g", ["theirs"])
    assert (found["env"]["NEW"], found["env"]["HTTPS_PROXY"], found["env"]["SSR_CACHE"]) == (
        "ours",
        "theirs",
        "/theirs",
    )
    assert "AWS_SESSION_TOKEN" not in found["env"]
    assert sorted(merged.kept) == ["env.AWS_SESSION_TOKEN", "env.HTTPS_PROXY", "env.SSR_CACHE", "networks"]


def test_a_default_that_somebody_emptied_stays_empty():
    ours = job_template("docker", "ssr-cpu")
    merged = merge_template(ours, changed(merge_template(ours, {}).template, volumes=None))
    assert merged.kept == ["volumes"]
    assert "default" not in merged.template["variables"]["properties"]["volumes"]


def test_a_job_configuration_that_somebody_changed_stays_with_its_variables():
    ours = job_template("kubernetes", "ssr-cpu")
    there = merge_template(ours, {}).template
    there = json.loads(json.dumps(there))
    there["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["priorityClassName"] = "{{ priority }}"
    there["variables"]["properties"]["priority"] = {"type": "string", "default": "low"}
    merged = merge_template(ours, there)
    assert merged.kept == ["job_configuration"]
    assert merged.template["job_configuration"] == there["job_configuration"]
    assert defaults(merged.template)["priority"] == "low"
    assert validate_base_job_template(merged.template) == merged.template


def test_on_a_pool_without_a_record_what_differs_stays_and_what_is_new_arrives():
    old = json.loads(json.dumps(job_template("docker", "ssr-cpu")))
    del old["variables"]["properties"]["env"]["default"]["HF_TOKEN"]
    del old["variables"]["properties"]["volumes"]
    old["job_configuration"] = {"image": "{{ image }}"}
    merged = merge_template(job_template("docker", "ssr-cpu"), changed(old, mem_limit="8g"))
    assert merged.kept == ["mem_limit"]
    assert defaults(merged.template)["env"]["HF_TOKEN"] == "{{ $HF_TOKEN }}"
    assert defaults(merged.template)["volumes"] == defaults(job_template("docker", "ssr-cpu"))["volumes"]
    assert merged.template["job_configuration"] == job_template("docker", "ssr-cpu")["job_configuration"]


# --- what is deployed ---


def test_nothing_of_this_machine_stands_in_the_file():
    text = (ROOT / "deployments" / "prefect.yaml").read_text()
    assert str(ROOT) not in text
    assert not re.search(r"(?<!\w)/(?:home|root|work|tmp|Users)/", text)


@pytest.mark.parametrize("infra", get_args(Infra))
def test_a_filled_in_file_holds_no_template_and_no_empty_value(infra, monkeypatch):
    monkeypatch.setattr("flows.deployment.target._commit", lambda: "0123456789ab")
    content = fill_in(Target(infra=infra, store="s3://bucket/prefix", store_access="team"))
    assert find_placeholders(content) == set()
    assert [path for path, value in leaves(content["deployments"]) if value in ("", None)] == []


def test_what_the_target_leaves_open_is_left_out():
    parent = fill_in(Target(store="s3://bucket/prefix"))["deployments"][0]
    assert parent["parameters"].keys() == {"run", "store"}
    assert "image" not in parent["work_pool"]["job_variables"]


def test_a_recipe_of_ones_own_is_written_into_the_form(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text((RECIPES / "demo.yaml").read_text().replace("name: demo\n", ""))
    parent = fill_in(Target(store="s3://b/p", recipe=str(file)))["deployments"][0]
    runs = [one["parameters"]["run"] for one in (parent, *parent["schedules"]) if one.get("parameters")]
    assert len(runs) == 2
    for run in runs:
        form = RunForm.model_validate(run)
        wanted = load_recipe(file, ["execution.steps=deployments"])
        assert form.to_recipe() == wanted
        assert (form.name, form.execution) == ("own", "deployments")
    assert runs[1]["force"] == ["train", "evaluate"]


def test_every_step_is_deployed_once_and_models_run_on_the_gpu_pool():
    deployments = fill_in(Target(store="s3://b/p"))["deployments"]
    pools = {entry["entrypoint"].rsplit(".", 1)[1]: entry["work_pool"]["name"] for entry in deployments}
    gpu = {"generate", "rewrite", "likelihood", "judge", "train", "measure", "evaluate"}
    assert len(deployments) == len(pools)
    assert {name for name, pool in pools.items() if pool == "ssr-gpu"} == gpu
    assert {name for name, pool in pools.items() if pool == "ssr-cpu"} == {
        "ingest",
        "select",
        "report",
        "promote",
        "pipeline",
    }


def test_the_deployment_of_a_step_finds_the_flow_of_that_name():
    steps = [entry for entry in fill_in(Target(store="s3://b/p"))["deployments"] if entry["name"] == DEPLOYMENT]
    for entry in steps:
        flow = load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False)
        assert entry["entrypoint"] == f"flows.steps.{flow.name}"


def test_a_new_step_is_deployed_to_the_pool_that_it_declares(monkeypatch):
    monkeypatch.setitem(STEPS, "toy", Step("toy", 1, lambda ctx: None, pool="gpu"))
    entry = fill_in(Target(store="s3://b/p"))["deployments"][-1]
    assert (entry["entrypoint"], entry["work_pool"]["name"]) == ("flows.steps.toy", "ssr-gpu")


def test_a_parent_waits_on_a_queue_that_comes_after_its_steps():
    parent = fill_in(Target(store="s3://b/p"))["deployments"][0]["work_pool"]
    assert QUEUES[parent["name"]][parent["work_queue_name"]] > QUEUES["ssr-cpu"]["steps"]


def test_a_folder_is_given_to_workers_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fill_in(Target(store=".ssr"))["deployments"][0]["parameters"]["store"] == str(tmp_path / ".ssr")


def test_images_without_a_tag_get_the_commit(monkeypatch):
    monkeypatch.setattr("flows.deployment.target._commit", lambda: "0123456789ab")
    deployments = fill_in(Target(infra="docker", store="s3://b/p", image="registry:5000/flow"))["deployments"]
    images = {entry["work_pool"]["job_variables"]["image"] for entry in deployments}
    assert images == {"registry:5000/flow:0123456789ab", "ssr-gpu-worker:0123456789ab-cuda"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe": "dmeo"}, "--recipe dmeo: no such recipe. Shipped: demo"),
        ({"recipe": "own/dmeo.yaml"}, "own/dmeo.yaml: no such recipe"),
        ({"image": "flow:abc"}, "--image has no effect with --infra process"),
        ({"infra": "docker", "store": ".ssr"}, "--store .ssr: containers do not see a folder"),
        ({"infra": "ecs", "store": "s3://b/p", "image": "flow:latest"}, "the tag latest does not say what ran"),
        ({"dead_after_seconds": 89}, "--dead-after-seconds 89: live runs would be marked crashed"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_what_to_do(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        fill_in(Target(**settings))


# --- dead workers ---


@pytest.mark.parametrize(("window", "heartbeat"), [(90, 30), (300, 100), (540, 180), (3600, 180)])
def test_three_heartbeats_fit_into_the_window(window, heartbeat):
    environment = fill_in(Target(dead_after_seconds=window))["deployments"][0]["work_pool"]["job_variables"]["env"]
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == str(heartbeat)


def test_a_window_shorter_than_three_of_the_heartbeats_that_prefect_is_set_to_is_refused():
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 60}):
        assert Target(dead_after_seconds=180).heartbeat_seconds() == 60
        with pytest.raises(ConfigError, match="PREFECT_FLOWS_HEARTBEAT_FREQUENCY=60 give 180 or more"):
            Target(dead_after_seconds=179).heartbeat_seconds()


@pytest.mark.parametrize("automation", [dead_worker_automation(540), never_began_automation(600)])
def test_a_run_that_has_ended_or_waits_is_not_taken_for_dead(automation):
    trigger = automation.trigger
    terminal = {StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED}
    assert trigger.expect >= {f"prefect.flow-run.{state.value.title()}" for state in terminal}
    waiting = {Scheduled().name, AwaitingRetry().name, AwaitingConcurrencySlot().name, Late().name}
    assert trigger.expect >= {f"prefect.flow-run.{name}" for name in waiting}
    assert trigger.expect >= {"prefect.flow-run.heartbeat", *trigger.after}
    assert trigger.for_each == {"prefect.resource.id"}


@pytest.mark.parametrize("infra", get_args(Infra))
def test_a_run_may_take_longer_to_begin_than_its_pool_lets_it(infra):
    pools = [job_template(infra, pool) for pool in QUEUES]
    limits = [defaults(pool).get("pod_watch_timeout_seconds", 0) for pool in pools]
    assert start_seconds(infra, pools) >= max(600, *limits)
    patient = [changed(pool, pod_watch_timeout_seconds=7200) for pool in pools]
    assert (start_seconds(infra, patient) > 7200) == (infra == "kubernetes")


@pytest.mark.parametrize("automation", [dead_worker_automation(540), never_began_automation(600)])
def test_deployed_runs_carry_the_tag_that_the_automation_looks_for(automation):
    related = automation.trigger.match_related
    [(_, tag)] = [leaf for leaf in leaves(related.model_dump()) if "tag." in str(leaf[1])]
    tags = list(itertools.chain.from_iterable(e["tags"] for e in fill_in(Target(store="s3://b/p"))["deployments"]))
    assert {f"prefect.tag.{name}" for name in tags} == {tag}


# --- access ---

AWS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID",
       "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")  # fmt: skip


def test_variables_that_a_worker_handed_on_empty_are_unset(monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    use_access("")
    assert "AWS_DEFAULT_REGION" not in os.environ
    assert os.environ["AWS_ACCESS_KEY_ID"] == "mine"


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_endpoint_of_an_access_is_found_under_both_names_and_replaces_both(variable, monkeypatch):
    for name in AWS:
        monkeypatch.delenv(name, raising=False)
    for name, value in {variable: "http://s3", "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "mine"}.items():
        monkeypatch.setenv(name, value)
    found = S3Access.from_environment().to_environment()
    assert found["AWS_ENDPOINT_URL"] == found["AWS_ENDPOINT_URL_S3"] == "http://s3"


def test_access_without_a_secret_in_the_environment_is_refused(monkeypatch):
    for name in AWS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY is missing"):
        S3Access.from_environment()


def test_secrets_of_access_are_not_shown(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "whisper")
    assert "whisper" not in repr(S3Access.from_environment()) + S3Access.from_environment().model_dump_json()


def test_a_server_that_does_not_answer_is_named():
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), pytest.raises(ConfigError) as raised:
        deploy(Target(store="s3://bucket/prefix"))
    assert "PREFECT_API_URL=http://127.0.0.1:9/api: " in str(raised.value)


# --- what is said in the end ---


@pytest.mark.parametrize("infra", get_args(Infra))
def test_the_command_for_a_worker_comes_with_what_the_worker_needs(infra, monkeypatch):
    monkeypatch.setattr("flows.deployment.deploy.deploy", lambda target, *, check_store: [])
    done = CliRunner().invoke(app, ["deploy", "--infra", infra, "--store", "s3://bucket/prefix"])
    assert f"prefect worker start --pool ssr-gpu --type {infra}" in done.stdout
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    needed = re.findall(r"-e '\.\[(\w+)\]'", done.stdout)
    assert needed == ([] if infra == "process" else [infra])
    assert set(needed) <= set(extras)
