"""One PostgreSQL and one Prefect server for all tests of the platform; what a test deploys, it names for itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from services import Server, postgres, prefect_server


@pytest.fixture(scope="session")
def platform() -> Iterator[Server]:
    """A Prefect server on PostgreSQL, UI included: `api_url`, `ui_url`, `env` for processes, `ask` for its API."""
    with postgres() as database_url, prefect_server(database_url) as server:
        yield server
