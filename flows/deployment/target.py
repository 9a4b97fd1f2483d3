"""The settings of `ssr deploy`, and `deployments/prefect.yaml` filled in with them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from prefect.settings import get_current_settings
from prefect.utilities.dockerutils import parse_image_tag
from prefect.utilities.templating import apply_values, find_placeholders

from flows.form.run_form import form_of
from flows.rehearsal import STEPS
from flows.runs.recipes import shipped
from tasks.config import load_recipe
from tasks.errors import ConfigError

Infra = Literal["process", "docker", "kubernetes", "ecs"]
Outcome = Literal["created", "updated", "unchanged", "kept"]
Json = dict[str, Any]  # Any: JSON values

FOLDER = Path(__file__).parents[2] / "deployments"
_STORE, _RECIPE = ".ssr", "nightly"
_SHORTEST_HEARTBEAT_SECONDS = 30  # Prefect's own limit
_HEARTBEATS = 3  # with fewer in a window, live runs are marked crashed


class Change(NamedTuple):
    """One thing on the server, and what was done with it. `kept`: people have changed it, and it stays so."""

    what: str
    name: str
    outcome: Outcome


@dataclass(frozen=True)
class Target:
    """The settings of a deployment. None means: as it is on the server, or a default on a new one.

    Attributes:
        store: URI of the store as workers see it.
        store_access: Name of the block with the store's credentials; "" if workers have their own.
        image: Image of the CPU pool's containers; the commit is its tag if it has none. For containers only, like
            gpu_image.
        recipe: What the schedules run: a shipped recipe, or a YAML file. It replaces what people have filled in.
        gpu_limit: Steps on the GPU pool at a time.
        run_limit: Runs of the pipeline at a time; more wait.
        dead_after_seconds: A run whose heartbeat stops for so long is marked crashed.
    """

    infra: Infra = "process"
    store: str | None = None
    store_access: str | None = None
    image: str | None = None
    gpu_image: str | None = None
    recipe: str | None = None
    gpu_limit: int | None = None
    run_limit: int | None = None
    dead_after_seconds: int = 540

    def given(self) -> set[str]:
        """The names of the parameters of a run that are set here, and replace those on the server."""
        named = {"run": self.recipe, "store": self.store, "store_access": self.store_access}
        return {name for name, value in named.items() if value is not None}

    def heartbeat_seconds(self) -> int:
        """Seconds between two heartbeats of a run: Prefect's setting, or shorter to suit `dead_after_seconds`.

        Raises:
            ConfigError: `dead_after_seconds` is too short for the setting, or for the shortest heartbeat.
        """
        settings = get_current_settings().flows
        chosen = settings.heartbeat_frequency if "heartbeat_frequency" in settings.model_fields_set else None
        longest = self.dead_after_seconds // _HEARTBEATS
        heartbeat = chosen or min(180, longest)
        if max(heartbeat, _SHORTEST_HEARTBEAT_SECONDS) > longest:
            least = _HEARTBEATS * max(heartbeat, _SHORTEST_HEARTBEAT_SECONDS)
            source = f"PREFECT_FLOWS_HEARTBEAT_FREQUENCY={chosen}" if chosen else "a heartbeat of at least 30 s"
            raise ConfigError(
                f"--dead-after-seconds {self.dead_after_seconds}: live runs would be marked crashed. With {source} "
                f"give {least} or more: {_HEARTBEATS} heartbeats."
            )
        return heartbeat


def fill_in(target: Target) -> Json:
    """The content of `prefect.yaml` for this target, with a deployment for every step.

    A key whose value the target leaves open is left out.

    Raises:
        ConfigError: Two settings contradict each other, or the file names a value that does not exist.
    """
    path = FOLDER / "prefect.yaml"
    content: Json = yaml.safe_load(path.read_text())
    form = _form(target.recipe or _RECIPE)
    values = _values(target) | {"recipe": form["recipe"]}
    if unknown := {found.full_match for found in find_placeholders(content)} - {f"{{{{ {name} }}}}" for name in values}:
        raise ConfigError(f"{path}: no value for {', '.join(sorted(unknown))}. Known: {', '.join(values)}.")
    filled = apply_values(content, {name: value for name, value in values.items() if value is not None})
    template, pools = filled.pop("step"), filled.pop("pools")
    filled["deployments"] += [
        {**template, "entrypoint": f"flows.steps.{name}", "work_pool": pools[step.pool]} for name, step in STEPS.items()
    ]
    for entry in filled["deployments"]:
        for one in (entry, *entry.get("schedules", [])):
            if "run" in one.get("parameters", {}):
                one["parameters"]["run"] |= form
    return filled


def _form(recipe: str) -> Json:
    """The fields of the run form for a recipe: its name, or the content of a file, which workers do not see."""
    if recipe in shipped():
        return {"recipe": recipe}
    if Path(recipe).suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"--recipe {recipe}: no such recipe. Shipped: {', '.join(shipped())}; or give a YAML file of your own."
        )
    return form_of(load_recipe(Path(recipe), []))


def _values(target: Target) -> dict[str, str | int | None]:
    contained = target.infra != "process"
    given = [f"--{name.replace('_', '-')}" for name in ("image", "gpu_image") if getattr(target, name)]
    if given and not contained:
        raise ConfigError(f"{given[0]} has no effect with --infra process. Remove it, or give another --infra.")
    return {
        "store": store_for_workers(target),
        "store_access": target.store_access,
        "image": _tagged(target.image or "ssr-flow", "") if contained else None,
        "gpu_image": _tagged(target.gpu_image or "ssr-gpu-worker", "-cuda") if contained else None,
        "version": _commit() or metadata.version("selective-self-rehearsal"),
        "heartbeat_seconds": str(target.heartbeat_seconds()),
        "run_limit": target.run_limit or 1,
    }


def store_for_workers(target: Target) -> str:
    """The address of the store for workers: a folder becomes an absolute path.

    Raises:
        ConfigError: The workers are containers, and the store is a folder of this machine.
    """
    store = target.store or _STORE
    if "://" in store:
        return store
    if target.infra != "process":
        raise ConfigError(
            f"--store {store}: containers do not see a folder of this machine. Give one that every worker "
            "reaches, such as s3://bucket/prefix."
        )
    return str(Path(store).expanduser().absolute())  # a worker runs each flow in a folder of its own


def _tagged(image: str, variant: str) -> str:
    name, tag = parse_image_tag(image)
    if tag == "latest":
        raise ConfigError(
            f"image {image}: the tag latest does not say what ran. Give the tag of a commit, or none for this commit."
        )
    if tag:
        return image
    if not (commit := _commit()):
        raise ConfigError(f"image {image}: this is no git checkout, so give the tag yourself: {name}:COMMIT")
    return f"{name}:{commit}{variant}"


def _commit() -> str | None:
    if commit := os.environ.get("SSR_COMMIT"):  # in an image, where there is no checkout
        return commit
    command = ["git", "-C", str(FOLDER), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # from PATH
    except (OSError, subprocess.CalledProcessError):
        return None
