"""`ssr deploy` to a real Prefect server on PostgreSQL: what is then there, and what a second time changes."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings
from services import ROOT, Server, postgres, prefect_server, wait_for

from flows.deployment.deploy import deploy
from flows.deployment.pools import AUTOMATION, never_began_automation
from flows.deployment.target import Change, Target, fill_in
from flows.execution.access import use_access
from tasks.errors import ConfigError

SECRET = "a-secret-that-must-not-leak"
KEY = "an-access-key-that-must-not-leak"
PARENT = "rehearsal-pipeline/nightly"
Json = dict[str, Any]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def platform() -> Iterator[Server]:
    """A server of its own: to the one that is shared, other tests deploy other things."""
    with postgres() as database_url, prefect_server(database_url) as server:
        yield server


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    store = str(tmp_path_factory.mktemp("store"))
    return Target(store=store, store_access="team", recipe="nightly", gpu_limit=2, run_limit=1)


@pytest.fixture(scope="module")
def first(platform: Server, target: Target) -> list[Change]:
    """The changes of the first deployment, made by the command as a user gives it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PREFECT_"))}
    env |= {**platform.env, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "eu-west-1"}
    command = [
        sys.executable, "-m", "flows.cli", "deploy", "--store", target.store, "--store-access", "team",
        "--gpu-limit", "2", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert KEY not in done.stdout + done.stderr
    return [Change(**change) for change in json.loads(done.stdout)]


@pytest.fixture(autouse=True)
def here(platform: Server, first: list[Change], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process talks to that server, and has the credentials of the first deployment."""
    for name, value in {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "eu-west-1"}.items():
        monkeypatch.setenv(name, value)
    with temporary_settings({PREFECT_API_URL: platform.api_url}):
        yield


@pytest.fixture(scope="module", autouse=True)
def stuck(platform: Server, first: list[Change]) -> Json:
    """Runs whose worker dies with no sign of life, started before all tests: they are declared dead meanwhile.

    One that never begins; one that began, crashed, and is tried again at once, in vain; one that lives.
    """
    quick = never_began_automation(10).model_copy(update={"name": "test: the same, soon"})
    platform.ask("/automations/", quick.model_dump(mode="json"))
    lives = {"never": ["PENDING"], "again": ["PENDING", "RUNNING", "CRASHED", "SCHEDULED", "PENDING"],
             "lives": ["PENDING", "RUNNING"]}  # fmt: skip
    step = deployments(platform)["train/step"]["id"]
    parameters = {"planned": {"step": "train", "label": "l"}, "store": "s"}
    runs = {}
    for name, states in lives.items():
        runs[name] = platform.ask(f"/deployments/{step}/create_flow_run", {"parameters": parameters})["id"]
        for state in states:
            said = platform.ask(f"/flow_runs/{runs[name]}/set_state", {"state": {"type": state}})
            assert said["status"] == "ACCEPT", said
    return runs


def touched(changes: list[Change]) -> set[str]:
    return {f"{change.name}: {change.outcome}" for change in changes if change.outcome != "unchanged"}


def deployments(platform: Server) -> dict[str, Json]:
    flows = {flow["id"]: flow["name"] for flow in platform.ask("/flows/filter", {})}
    return {f"{flows[one['flow_id']]}/{one['name']}": one for one in platform.ask("/deployments/filter", {})}


def everything(platform: Server) -> Json:
    """All that a deployment makes, without what the server changes by itself."""
    volatile = {"updated", "last_polled", "status", "updated_by", "created_by", "active_slots", "slot_decay_per_second"}

    def steady(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: steady(inner) for key, inner in value.items() if key not in volatile}
        return [steady(inner) for inner in value] if isinstance(value, list) else value

    ours = [pool for pool in platform.ask("/work_pools/filter", {}) if pool["name"].startswith("ssr-")]
    return steady(
        {
            "deployments": deployments(platform),
            "pools": ours,
            "queues": {pool["name"]: platform.ask(f"/work_pools/{pool['name']}/queues/filter", {}) for pool in ours},
            "automations": platform.ask("/automations/filter", {}),
            "blocks": platform.ask("/block_documents/filter", {}),
        }
    )


def test_the_first_deployment_creates_everything(first):
    assert {change.outcome for change in first} == {"created"}
    assert Counter(change.what for change in first) == {
        "work pool": 2, "work queue": 3, "block": 1, "automation": 2, "deployment": 12,
    }  # fmt: skip


def test_the_second_deployment_changes_nothing(platform, target):
    before = everything(platform)
    assert touched(deploy(target)) == set()
    assert everything(platform) == before


def test_scheduled_runs_appear_for_the_active_schedule_alone(platform):
    parent = deployments(platform)[PARENT]
    active = {schedule["slug"]: schedule["active"] for schedule in parent["schedules"]}
    assert active == {"nightly": True, "weekly-full": False}

    def scheduled() -> list[Json]:
        wanted = {
            "deployments": {"id": {"any_": [parent["id"]]}},
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        }
        return list(platform.ask("/flow_runs/filter", wanted))

    runs = wait_for("a scheduled run", scheduled)
    assert {run["next_scheduled_start_time"][11:19] for run in runs} == {"01:00:00"}
    assert [run["parameters"]["run"].get("force") for run in runs] == [None] * len(runs)


def test_every_deployment_is_on_its_pool_with_the_heartbeat_of_the_window(platform):
    found = deployments(platform)
    pools = {name: (one["work_pool_name"], one["work_queue_name"]) for name, one in found.items()}
    assert pools[PARENT] == ("ssr-cpu", "parents")
    assert pools["train/step"] == ("ssr-gpu", "steps")
    assert pools["select/step"] == ("ssr-cpu", "steps")
    assert {one["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] for one in found.values()} == {"180"}
    assert found[PARENT]["global_concurrency_limit"]["limit"] == 1
    assert found[PARENT]["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert platform.ask("/work_pools/ssr-gpu")["concurrency_limit"] == 2


def test_the_form_of_a_run_is_on_the_server_and_wrong_values_are_refused(platform):
    schema = deployments(platform)[PARENT]["parameter_openapi_schema"]
    form = schema["definitions"]["RunForm"]["properties"]
    assert "demo" in form["recipe"]["enum"]
    assert form["recipe"]["title"] == "Recipe"
    assert deployments(platform)[PARENT]["enforce_parameter_schema"] is True


def test_a_change_is_made_and_a_schedule_that_was_paused_by_hand_stays_paused(platform, target):
    parent = deployments(platform)[PARENT]
    by_slug = {schedule["slug"]: schedule["id"] for schedule in parent["schedules"]}
    for slug, active in (("nightly", False), ("weekly-full", True)):
        platform.ask(f"/deployments/{parent['id']}/schedules/{by_slug[slug]}", {"active": active}, method="PATCH")
    try:
        changes = deploy(replace(target, recipe="demo-vllm", dead_after_seconds=600))
        assert touched(changes) == {f"{PARENT}: updated", f"{AUTOMATION}: updated"}
        changed = deployments(platform)[PARENT]
        assert changed["parameters"]["run"]["recipe"] == "demo-vllm"
        assert {one["slug"]: one["active"] for one in changed["schedules"]} == {"nightly": False, "weekly-full": True}
        weekly = next(one for one in changed["schedules"] if one["slug"] == "weekly-full")
        assert weekly["parameters"]["run"] == {
            "recipe": "demo-vllm", "execution": "deployments", "force": ["train", "evaluate"]
        }  # fmt: skip
    finally:
        for slug, active in (("nightly", True), ("weekly-full", False)):
            platform.ask(f"/deployments/{parent['id']}/schedules/{by_slug[slug]}", {"active": active}, method="PATCH")
        deploy(target)


def test_what_people_have_set_stays_until_an_option_names_it(platform, target):
    parent = deployments(platform)[PARENT]
    nightly = next(one for one in parent["schedules"] if one["slug"] == "nightly")
    pool = platform.ask("/work_pools/ssr-gpu")["base_job_template"]
    shipped_pool = copy.deepcopy(pool)
    pool["variables"]["properties"]["env"]["default"] = {"HTTPS_PROXY": "theirs"}
    theirs = {"run": {"recipe": "demo", "data": {"limit": 7}}}
    train = deployments(platform)["train/step"]
    variables = {**train["job_variables"], "stream_output": False}
    filled_in = {**parent["parameters"], "run": {**parent["parameters"]["run"], "data": {"path": "/theirs"}}}
    schedule = {"schedule": {"cron": "15 4 * * *", "timezone": "Europe/Berlin"}, "parameters": theirs}
    platform.ask("/work_pools/ssr-gpu", {"base_job_template": pool}, method="PATCH")
    platform.ask(f"/deployments/{parent['id']}", {"parameters": filled_in}, method="PATCH")
    platform.ask(f"/deployments/{parent['id']}/schedules/{nightly['id']}", schedule, method="PATCH")
    platform.ask(f"/deployments/{train['id']}", {"job_variables": variables}, method="PATCH")
    before = everything(platform)
    try:
        untold = replace(target, store=None, recipe=None, run_limit=None, gpu_limit=None)
        changes = deploy(untold)
        assert everything(platform) == before
        assert touched(changes) == {
            "ssr-gpu: env.HTTPS_PROXY: kept",
            f"{PARENT}: parameters.run.data: kept",
            f"{PARENT}: schedule nightly.schedule.cron: kept",
            f"{PARENT}: schedule nightly.schedule.timezone: kept",
            f"{PARENT}: schedule nightly.parameters.run: kept",
            "train/step: job_variables.stream_output: kept",
        }
        deploy(replace(untold, recipe="demo"))
        told = deployments(platform)[PARENT]
        assert told["parameters"]["run"] == {"recipe": "demo", "execution": "deployments"}
        [again] = [one for one in told["schedules"] if one["slug"] == "nightly"]
        assert (again["parameters"], again["schedule"]["cron"]) == ({}, "15 4 * * *")
        assert told["parameters"]["store"] == target.store
    finally:
        shipped = {"schedule": {"cron": "0 1 * * *", "timezone": "UTC"}}
        platform.ask(f"/deployments/{parent['id']}/schedules/{nightly['id']}", shipped, method="PATCH")
        platform.ask("/work_pools/ssr-gpu", {"base_job_template": shipped_pool}, method="PATCH")
        platform.ask(f"/deployments/{train['id']}", {"job_variables": train["job_variables"]}, method="PATCH")
        deploy(target)


def test_runs_that_wait_for_their_steps_leave_a_place_on_a_pool_with_a_limit(platform, target):
    platform.ask("/work_pools/ssr-cpu", {"concurrency_limit": 1}, method="PATCH")
    try:
        with pytest.raises(ConfigError, match="work pool ssr-cpu has a limit of 1"):
            deploy(target)
        platform.ask("/work_pools/ssr-cpu", {"concurrency_limit": 4}, method="PATCH")
        assert touched(deploy(target)) == {"ssr-cpu/parents: updated"}
        assert touched(deploy(target)) == set()
        queues = platform.ask("/work_pools/ssr-cpu/queues/filter", {})
        limits = {queue["name"]: queue["concurrency_limit"] for queue in queues}
        assert (limits["parents"], limits["steps"]) == (3, None)
    finally:
        platform.ask("/work_pools/ssr-cpu", {"concurrency_limit": None}, method="PATCH")
        platform.ask("/work_pools/ssr-cpu/queues/parents", {"concurrency_limit": None}, method="PATCH")


def test_a_schedule_that_somebody_added_survives(platform, target):
    parent = deployments(platform)[PARENT]
    added = {"schedule": {"cron": "30 5 * * *", "timezone": "UTC"}, "active": True}
    [made] = platform.ask(f"/deployments/{parent['id']}/schedules", [added])
    try:
        assert touched(deploy(target)) == set()
        deploy(replace(target, recipe="demo-vllm"))
        crons = [one["schedule"]["cron"] for one in deployments(platform)[PARENT]["schedules"]]
        assert sorted(crons) == ["0 1 * * *", "0 3 * * 6", "30 5 * * *"]
    finally:
        for one in deployments(platform)[PARENT]["schedules"]:
            if one["schedule"]["cron"] == "30 5 * * *":
                platform.ask(f"/deployments/{parent['id']}/schedules/{one['id']}", method="DELETE")
        deploy(target)
    assert made["active"]


def test_limits_that_are_not_given_stay_as_they_are_on_the_server(platform, target):
    platform.ask("/work_pools/ssr-gpu", {"concurrency_limit": 5}, method="PATCH")
    try:
        assert touched(deploy(replace(target, gpu_limit=None))) == set()
        assert platform.ask("/work_pools/ssr-gpu")["concurrency_limit"] == 5
    finally:
        deploy(target)


def test_another_infrastructure_for_a_pool_that_is_there_is_refused_and_nothing_changes(platform, target):
    before = everything(platform)
    other = replace(target, infra="docker", store="s3://bucket/prefix", image="flow:abc", gpu_image="gpu:abc")
    with pytest.raises(ConfigError, match="work pool ssr-cpu is of type process"):
        deploy(other, check_store=False)
    assert everything(platform) == before


def test_the_block_hides_its_secrets_and_gives_them_to_a_flow(platform, monkeypatch):
    said = json.dumps(everything(platform))
    assert "s3-access" in json.dumps(platform.ask("/block_types/filter", {}))
    assert SECRET not in said
    assert KEY not in said
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "stale")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "stale")
    use_access("team")
    found = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    assert found["AWS_ACCESS_KEY_ID"] == KEY
    assert found["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert found["AWS_REGION"] == found["AWS_DEFAULT_REGION"] == "eu-west-1"
    assert "AWS_SESSION_TOKEN" not in found


def test_a_block_that_is_not_there_is_named_with_the_command_that_makes_it(platform):
    with pytest.raises(ConfigError, match="ssr deploy --store-access nobody"):
        use_access("nobody")


def test_new_credentials_update_the_block(platform, target, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "rotated")
    changes = deploy(target)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    deploy(target)
    assert touched(changes) == {"s3-access/team: updated"}


def test_prefects_own_command_makes_the_same_of_the_filled_in_file(platform, target, tmp_path):
    file = tmp_path / "prefect.yaml"
    file.write_text(yaml.safe_dump(fill_in(target)))
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    env = {**{k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}, **platform.env}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = Counter(change.outcome for change in deploy(target) if change.what == "deployment")
    assert outcomes == {"unchanged": 12}


def test_a_store_that_cannot_be_written_is_refused_before_anything_is_changed(platform, target, tmp_path):
    before = everything(platform)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(Exception, match="the store cannot be used"):
        deploy(replace(target, store=str(blocked / "store")))
    assert everything(platform) == before


def test_a_run_whose_worker_died_before_it_began_is_declared_crashed_and_can_be_tried_again(platform, stuck):
    def read(name: str) -> Json:
        return platform.ask(f"/flow_runs/{stuck[name]}")

    def state(name: str) -> Json:
        return read(name)["state"]

    for name in ("never", "again"):
        wait_for(f"{name} to be declared dead", lambda name=name: "not begun" in str(state(name)["message"]))
        assert state(name)["type"] == "CRASHED"
        assert read(name)["end_time"], "else a parent that is tried again would wait for this one"
        retried = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}}
        assert platform.ask(f"/flow_runs/{stuck[name]}/set_state", retried)["status"] == "ACCEPT"
    assert state("lives")["type"] == "RUNNING"
