"""One PostgreSQL and one Prefect server for all tests of the platform; what a test deploys, it names for itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from s3 import ENVIRONMENT
from s3 import moto_server as moto_server  # a fixture
from services import Server, postgres, prefect_server
from stage import DEAD_AFTER_SECONDS, N_ROWS, SECRETS, Runs, Stage, form, write_rows

from flows.deployment.deploy import deploy
from flows.deployment.target import Target


@pytest.fixture(scope="session")
def platform() -> Iterator[Server]:
    """A Prefect server on PostgreSQL, UI included: `api_url`, `ui_url`, `env` for processes, `ask` for its API."""
    with postgres() as database_url, prefect_server(database_url) as server:
        yield server


@pytest.fixture(scope="session")
def stage(
    platform: Server, moto_server: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """A server with everything deployed, and an empty bucket; workers are up to the tests."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    folder = tmp_path_factory.mktemp("stage")
    fs = s3fs.S3FileSystem(
        endpoint_url=moto_server, key="tester", secret="any", use_listings_cache=False, skip_instance_cache=True
    )
    fs.mkdir("platform")
    write_rows(folder / "data", first=0, n_rows=N_ROWS)
    target = Target(store="s3://platform/main", recipe="demo", dead_after_seconds=DEAD_AFTER_SECONDS, run_limit=4)
    with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_API_URL: platform.api_url}):
        for name, value in {**ENVIRONMENT, **SECRETS, "AWS_ENDPOINT_URL": moto_server}.items():
            patch.setenv(name, value)
        deploy(target)
    yield Stage(platform, Runs(platform), moto_server, fs, folder / "data", tiny_model, folder)
    fs.rm("platform", recursive=True)


@pytest.fixture(scope="session")
def undisturbed(stage: Stage) -> str:
    """A run in which every step ran on the pool it is deployed to: CPU steps on one machine, GPU steps on another."""
    with stage.workers("cpu-1"), stage.workers("gpu-1", pool="ssr-gpu"):
        run = stage.runs.start(run=form(stage.data, stage.model, execution="deployments"))
        stage.runs.wait(run)
    return run
