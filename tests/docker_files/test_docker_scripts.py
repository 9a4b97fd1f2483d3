"""The scripts in docker/: clean, and doing what they say with a stand-in for `docker` and a real S3 and HTTP server."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from moto.server import ThreadedMotoServer

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
VENV = Path(sys.executable).parent


def run(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=120, check=False)


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_shellcheck_finds_nothing() -> None:
    scripts = sorted(str(path) for path in DOCKER.glob("*.sh"))
    assert len(scripts) == 3
    done = run([str(VENV / "shellcheck"), *scripts])
    assert done.returncode == 0, done.stdout


def test_every_script_is_strict_and_may_be_executed() -> None:
    for path in DOCKER.glob("*.sh"):
        assert "\nset -euo pipefail\n" in path.read_text(), path.name
        assert path.stat().st_mode & stat.S_IXUSR, path.name


# --- smoke.sh ---

FAKE_DOCKER = """#!/usr/bin/env bash
echo "$*" >> "$CALLS"
case "$*" in
  "compose version --short") echo "${COMPOSE_VERSION-2.40.3}"; [[ ${COMPOSE_VERSION-2} ]] ;;
  *" up "*) cp "$ENV_FILE" "$CALLS.env"; stat -c %a "$ENV_FILE" >> "$CALLS.env"; exit "${UP_CODE:-0}" ;;
esac
"""


@pytest.fixture
def smoke(tmp_path: Path) -> Path:
    """smoke.sh in a copy of docker/, so that what it writes stays there, and a `docker` that writes down its calls."""
    shutil.copytree(DOCKER, tmp_path / "docker", ignore=shutil.ignore_patterns(".env", ".env.smoke"))
    executable(tmp_path / "bin" / "docker", FAKE_DOCKER)
    return tmp_path / "docker" / "smoke.sh"


def run_smoke(script: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    home = script.parents[1]
    path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
    calls, env_file = str(home / "calls"), str(home / "docker" / ".env.smoke")
    return run(["bash", str(script), *arguments], PATH=path, CALLS=calls, ENV_FILE=env_file, **env)


def calls_of(script: Path) -> list[str]:
    """What `docker` was called with, without the options that all calls share."""
    path = script.parents[1] / "calls"
    return [re.sub(r"^compose --project-name .* --profile \S+ ", "", line) for line in path.read_text().splitlines()]


def printed(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """The commands of a dry run, as words."""
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("docker ")]


def test_a_dry_run_prints_the_commands_in_order_and_runs_none(smoke: Path) -> None:
    done = run_smoke(smoke, "--dry-run")
    commands = printed(done)
    shared = ["docker", "compose", "--project-name", "ssr-smoke", "--file", str(smoke.parent / "compose.yaml")]
    assert all(command[: len(shared)] == shared for command in commands)
    verbs = [command[len(shared) + 4] for command in commands]
    assert verbs == ["build", "up", "run", "exec", "exec", "exec", "down"]
    inside = [" ".join(command[len(shared) + 5 :]) for command in commands]
    assert inside[1].startswith("--detach --wait")
    assert inside[2] == "--rm deploy"
    assert "prefect --no-prompt deployment run rehearsal-pipeline/nightly --params" in inside[3]
    assert "--watch" in inside[3]
    assert "artifact inspect report-demo" in inside[4]
    assert inside[5].endswith(" s3://ssr/smoke")
    assert "--volumes" in inside[6]
    assert "http://127.0.0.1:4200" in done.stdout
    assert not (smoke.parents[1] / "calls").exists()
    assert not (smoke.parent / ".env.smoke").exists()


@pytest.mark.parametrize(
    ("profile", "recipe"), [("cpu-only", "demo"), ("cpu-engine", "demo-vllm"), ("gpu", "demo-vllm")]
)
def test_a_profile_runs_a_recipe_that_it_can_serve_with_parameters_that_the_form_takes(
    smoke: Path, profile: str, recipe: str
) -> None:
    from flows.form.run_form import RunForm

    done = run_smoke(smoke, "--dry-run", "--profile", profile)
    (start,) = [command for command in printed(done) if "--params" in command]
    assert start[start.index("--profile") + 1] == profile
    parameters = json.loads(start[start.index("--params") + 1])
    assert set(parameters) == {"run", "store"}
    form = RunForm.model_validate(parameters["run"])
    assert form.recipe == form.to_recipe().name == recipe
    assert form.execution == "deployments"


def test_what_smoke_starts_is_deployed_under_that_name(smoke: Path) -> None:
    (start,) = [command for command in printed(run_smoke(smoke, "--dry-run")) if "--params" in command]
    flow, name = start[start.index("run", start.index("deployment")) + 1].split("/")
    entries = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]
    module, function = next(entry["entrypoint"] for entry in entries if entry["name"] == name).rsplit(".", 1)
    assert getattr(importlib.import_module(module), function).name == flow


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--what"], "unknown argument '--what'"), (["--profile", "tpu"], "there are cpu-only, cpu-engine and gpu"),
     (["--port", "x"], "not a port number"), (["--port"], "--port wants a value")],
)  # fmt: skip
def test_a_wrong_argument_is_refused_with_what_there_is(smoke: Path, arguments: list[str], said: str) -> None:
    done = run_smoke(smoke, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (smoke.parents[1] / "calls").exists()


def test_help_names_every_option(smoke: Path) -> None:
    shown = run_smoke(smoke, "--help").stdout
    options = set(re.findall(r"^    (--\w[\w-]*)", smoke.read_text(), re.M)) | {"--profile", "--port", "--help"}
    assert options >= {"--keep", "--dry-run"}
    assert all(option in shown for option in options)


def test_it_makes_passwords_of_its_own_and_removes_everything(smoke: Path) -> None:
    (smoke.parent / ".env").write_text("POSTGRES_PASSWORD=that-of-another-stack\n")
    done = run_smoke(smoke, "--port", "4321")
    assert done.returncode == 0, done.stderr
    assert [call.split()[0] for call in calls_of(smoke)[2:]] == ["build", "up", "run", "exec", "exec", "exec", "down"]
    *lines, mode = (smoke.parents[1] / "calls.env").read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines)
    secrets = [values[name] for name in ("POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY")]
    assert mode == "600"
    assert all(re.fullmatch(r"[0-9a-f]{48}", secret) for secret in secrets)
    assert len(set(secrets)) == 3
    assert values["PREFECT_PORT"] == "4321"
    assert not (smoke.parent / ".env.smoke").exists()
    assert not any(secret in done.stdout + done.stderr + str(calls_of(smoke)) for secret in secrets)


def test_a_stack_that_is_kept_is_not_started_over(smoke: Path) -> None:
    done = run_smoke(smoke, "--keep")
    assert done.returncode == 0, done.stderr
    assert "down" not in [call.split()[0] for call in calls_of(smoke)]
    assert "down --volumes" in done.stdout
    again = run_smoke(smoke)
    assert again.returncode == 1
    assert "an earlier run with --keep" in again.stderr


def test_a_failed_start_shows_the_logs_removes_everything_and_fails(smoke: Path) -> None:
    done = run_smoke(smoke, UP_CODE="1")
    assert done.returncode == 1
    assert [call.split()[0] for call in calls_of(smoke)[2:]] == ["build", "up", "ps", "logs", "down"]
    assert not (smoke.parent / ".env.smoke").exists()


@pytest.mark.parametrize(
    ("version", "said"), [("", "docker has no compose plugin"), ("2.9.0", "Compose 2.9.0 is too old"), ("v5.0.1", "")]
)
def test_compose_must_be_there_and_new_enough(smoke: Path, version: str, said: str) -> None:
    done = run_smoke(smoke, COMPOSE_VERSION=version)
    assert done.returncode == (1 if said else 0)
    assert said in done.stderr


# --- entrypoint.sh ---


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder with a `prefect` and an `ssr` that say what they were called with, and the real Python."""
    for name in ("prefect", "ssr"):
        executable(tmp_path / "bin" / name, '#!/bin/sh\necho "ran $0 $*"\nexit 7\n')
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    return tmp_path / "bin"


def enter(folder: Path, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return run(["bash", str(DOCKER / "entrypoint.sh"), *command], PATH=path, **{"PREFECT_API_URL": "", **env})


@pytest.mark.parametrize("command", [["ssr", "run", "demo"], ["prefect", "server", "start"], ["ssr", "--help"]])
def test_a_command_that_needs_no_server_is_run_at_once(commands: Path, command: list[str]) -> None:
    done = enter(commands, *command)
    assert done.stdout == f"ran {commands / command[0]} {' '.join(command[1:])}\n"
    assert done.returncode == 7, "the command's own exit code"


@pytest.mark.parametrize("command", [["prefect", "worker", "start"], ["ssr", "deploy"]])
def test_a_worker_without_a_server_is_refused(commands: Path, command: list[str]) -> None:
    done = enter(commands, *command)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "set PREFECT_API_URL" in done.stderr


def test_a_worker_waits_until_the_server_answers(commands: Path) -> None:
    asked: list[str] = []

    class Starting(BaseHTTPRequestHandler):
        """A server that is not ready when it is asked first."""

        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(503 if len(asked) == 1 else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Starting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    done = enter(commands, "prefect", "worker", "start", PREFECT_API_URL=f"http://127.0.0.1:{server.server_port}/api")
    server.shutdown()
    assert done.returncode == 7, done.stderr
    assert asked == ["/api/health", "/api/health"]


def test_a_server_that_never_answers_is_named(commands: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    done = enter(commands, "prefect", "worker", "start", PREFECT_API_URL=url, SSR_WAIT_SECONDS="1")
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"{url}/health did not answer within 1 s" in done.stderr


# --- make-bucket.sh ---


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def make_bucket(store: str, url: str) -> subprocess.CompletedProcess[str]:
    keys = {
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "not-to-be-shown",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    path = f"{VENV}{os.pathsep}{os.environ['PATH']}"
    return run(
        ["bash", str(DOCKER / "make-bucket.sh")],
        PATH=path, SSR_STORE=store, AWS_ENDPOINT_URL=url, AWS_MAX_ATTEMPTS="1", SSR_WAIT_SECONDS="0", **keys,
    )  # fmt: skip


def test_the_bucket_of_the_store_is_made_once(endpoint: str) -> None:
    first, second = make_bucket("s3://made/some/prefix", endpoint), make_bucket("s3://made/other", endpoint)
    assert (first.returncode, first.stdout) == (0, "make-bucket: made made\n"), first.stderr
    assert (second.returncode, second.stdout) == (0, "make-bucket: made is there\n"), second.stderr


def test_an_s3_server_that_is_not_there_is_named() -> None:
    done = make_bucket("s3://made/some", f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "Is the server at AWS_ENDPOINT_URL up?" in done.stderr
    assert "not-to-be-shown" not in done.stderr


def test_a_store_that_is_no_bucket_is_refused() -> None:
    done = make_bucket("/data/store", "http://127.0.0.1:1")
    assert done.returncode == 2
    assert "no s3://bucket/prefix" in done.stderr
