"""compose.yaml: valid, pinned, checked for health, without secrets, and of one mind with the deployments."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.deployment.target import Target, fill_in

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker" / "compose.yaml"
TEXT = FILE.read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
VARIABLES = re.findall(r"\$\{(\w+)(:?[-?])?", TEXT)
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|AUTH_STRING")

ONE_SHOT = {name for name, service in SERVICES.items() if service["restart"] == "no"}


def words(service: dict[str, Any]) -> list[str]:
    """The command of a service; where it is one string, a variable in braces is a word."""
    command = service.get("command", [])
    return command if isinstance(command, list) else re.findall(r"\$\{(?:[^{}]|\$\{\w+\})*\}|\S+", command)


WORKERS = {name: service for name, service in SERVICES.items() if "worker" in words(service)}


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_it_follows_the_schema_of_compose_files() -> None:
    check = Path(sys.executable).with_name("check-jsonschema")
    command = [str(check), "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_image_is_pinned_by_version_or_built_here() -> None:
    for name, service in SERVICES.items():
        image = service["image"]
        assert "latest" not in image, name
        if image.startswith("ssr-"):
            assert ("build" in service) == (service.get("pull_policy") != "never"), name
            assert service.get("build", {"dockerfile": "docker/Dockerfile"})["dockerfile"] == "docker/Dockerfile"
            assert ":${SSR_COMMIT:-local}" in image, name
        else:
            assert re.search(r":\d+\.\d+(\.\d+)?(-\w+)?(@sha256:[0-9a-f]{64})?$", image), image


def test_every_image_of_ours_is_built_by_one_service_which_is_there_whenever_another_needs_it() -> None:
    ours = {name: service for name, service in SERVICES.items() if service["image"].startswith("ssr-")}
    builders = {service["image"]: name for name, service in ours.items() if "build" in service}
    assert len(builders) == sum("build" in service for service in ours.values())  # two at once get in each other's way
    for service in ours.values():
        builder = builders[service["image"]]
        assert SERVICES[builder].get("profiles", service.get("profiles")) == service.get("profiles")


def test_every_service_is_checked_for_health_and_restarted_or_runs_once() -> None:
    assert {"migrate", "bucket", "deploy"} == ONE_SHOT
    for name, service in SERVICES.items():
        if name in ONE_SHOT:
            assert service["healthcheck"] == {"disable": True}, name
        else:
            assert service["healthcheck"]["test"][0] == "CMD", name
            assert service["restart"] == "unless-stopped", name


def test_up_waits_for_every_service_that_runs_once() -> None:
    # `up --wait` takes the end of a container for a failure unless a service that always runs waits for that end.
    awaited = {
        needed
        for service in SERVICES.values()
        if "profiles" not in service
        for needed, how in service.get("depends_on", {}).items()
        if how["condition"] == "service_completed_successfully"
    }
    assert awaited == ONE_SHOT
    for service in SERVICES.values():
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] == ("service_completed_successfully" if needed in ONE_SHOT else "service_healthy")


def test_nothing_runs_as_root_or_can_become_root() -> None:
    for name, service in SERVICES.items():
        # Our own images end as a user of their own: test_docker_images.
        assert service["image"].startswith("ssr-") or service["user"].split(":")[0] not in ("", "0", "root"), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name


def test_a_secret_has_no_default_and_a_missing_one_stops_compose() -> None:
    secrets = {(name, how) for name, how in VARIABLES if SECRET.search(name) or name.endswith("_KEY")}
    assert {name for name, _ in secrets} == {"POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"}
    assert {how for _, how in secrets} == {":?"}
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if SECRET.search(name):  # without a value it is passed on if it is set, and absent if not
                assert value is None or value.endswith(":?set it in docker/.env}"), name


def test_a_command_line_holds_no_secret() -> None:
    for service in SERVICES.values():
        said = " ".join([*words(service), *service["healthcheck"].get("test", [])])
        assert not SECRET.search(said)


def test_the_example_names_every_variable_and_gives_no_secret() -> None:
    example = (ROOT / "docker" / ".env.example").read_text()
    values = dict(re.findall(r"^(?:# )?([A-Z0-9_]+)=(.*)$", example, re.M))
    passed_on = {
        name for service in SERVICES.values() for name, value in service.get("environment", {}).items() if value is None
    }
    assert {name for name, _ in VARIABLES} | passed_on <= set(values)
    assert [name for name, value in values.items() if value and (SECRET.search(name) or name.endswith("_KEY"))] == []
    for name, default in re.findall(r"\$\{(\w+):-([^${}]+)\}", TEXT):
        # What the example shows as the default is the default; the label of an unnamed build is not.
        assert values[name] in (default, "") or name == "SSR_COMMIT", name


def test_passwords_are_ignored_by_git() -> None:
    command = ["git", "check-ignore", "--no-index", "docker/.env", "docker/.env.smoke"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["docker/.env", "docker/.env.smoke"]
    example = [*command[:-2], "docker/.env.example"]
    assert subprocess.run(example, cwd=ROOT, capture_output=True, check=False).returncode == 1


def test_ports_are_published_on_this_machine_only_unless_told_otherwise() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 2
    assert all(re.match(r"\$\{\w+_HOST:-127\.0\.0\.1\}:", port) for port in published)


def test_the_gpu_worker_gets_its_devices_shared_memory_and_vllm() -> None:
    service = SERVICES["gpu-worker"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert service["profiles"] == ["gpu"]
    assert service["shm_size"]
    assert service["build"]["target"] == "gpu-worker"
    assert service["build"]["args"]["VARIANT"] == "cuda"


def test_every_profile_serves_both_pools() -> None:
    profiles = {profile for service in WORKERS.values() for profile in service.get("profiles", [])}
    assert profiles == {"gpu", "cpu-only", "cpu-engine"}
    for profile in profiles:
        started = [s for s in WORKERS.values() if profile in s.get("profiles", [profile])]
        assert sorted(option(s["command"], "--pool") for s in started) == ["ssr-cpu", "ssr-gpu"], profile


def test_a_worker_polls_a_process_pool_under_a_name_of_its_own_and_tells_its_health() -> None:
    names = [option(service["command"], "--name") for service in WORKERS.values()]
    assert len(set(names)) == len(names) == 4
    for service in WORKERS.values():
        assert option(service["command"], "--type") == "process"
        assert "--with-healthcheck" in service["command"]
        assert "127.0.0.1:8080/health" in service["healthcheck"]["test"][-1]


def test_the_workers_serve_the_pools_of_the_deployments() -> None:
    deployments = fill_in(Target(store="s3://bucket/prefix"))["deployments"]
    pools = {deployment["work_pool"]["name"] for deployment in deployments}
    assert pools == {option(service["command"], "--pool") for service in WORKERS.values()}


def test_a_worker_whose_pool_can_hold_parents_has_no_limit_of_its_own() -> None:
    # It would die with all runs in it when a killed one comes back, and parents could fill it while their steps wait.
    (parents,) = (service for service in WORKERS.values() if option(service["command"], "--pool") == "ssr-cpu")
    assert "--limit" not in parents["command"]


def test_the_stack_leaves_what_its_schedules_run_as_it_is_unless_it_is_told() -> None:
    """A recipe that is given replaces what people have filled in, and this runs whenever the stack is started."""
    *_, store, last = words(SERVICES["deploy"])
    assert (store, last) == ("${SSR_STORE:-s3://ssr/store}", "${SSR_RECIPE:+--recipe ${SSR_RECIPE}}")


def test_every_prefect_variable_is_a_setting_of_this_prefect() -> None:
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_valid_setting_names

    used = {name for s in SERVICES.values() for name in s.get("environment", {}) if name.startswith("PREFECT_")}
    assert len(used) >= 10
    assert used <= _get_valid_setting_names(Settings)


def test_a_password_with_characters_that_mean_something_in_an_address_reaches_the_database() -> None:
    environment = {name: str(value) for name, value in SERVICES["prefect-server"]["environment"].items()}
    environment["PREFECT_SERVER_DATABASE_PASSWORD"] = "p@ss:/#w%"
    environment.pop("PREFECT_SERVER_API_AUTH_STRING")
    script = "from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL as url; print(url.value())"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "postgresql+asyncpg://prefect:p%40ss%3A%2F%23w%25@postgres:5432/prefect"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n_words"), [("cpu-worker", 3), ("prefect-server", 3), ("migrate", 4), ("deploy", 2)])
def test_the_options_in_a_command_are_options_of_this_prefect(name: str, n_words: int) -> None:
    tool, *rest = words(SERVICES[name])
    command = [str(Path(sys.executable).with_name(tool)), *rest[: n_words - 1], "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    options = re.findall(r"(?:^|[\s+])(--[a-z-]+)", " ".join(rest))
    assert options
    assert [option for option in options if f"{option} " not in done.stdout] == []
