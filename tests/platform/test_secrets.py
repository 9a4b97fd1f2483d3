"""What nobody may find, anywhere. Runs after the tests that leave something to search."""

from __future__ import annotations

import pytest
from stage import SECRETS, Stage

pytestmark = pytest.mark.slow


def test_no_secret_of_the_environment_is_anywhere(stage: Stage, undisturbed: str) -> None:
    """Runs last: searches all that the tests before it left."""
    found = {name: stage.fs.cat_file(name) for name in stage.fs.find("platform")}
    found |= {str(path): path.read_bytes() for path in stage.folder.rglob("*") if path.is_file()}
    found["server log"] = stage.server.log.read_bytes()
    for what in ("flow_runs", "task_runs", "logs", "artifacts", "deployments", "work_pools", "flows"):
        for page in range(20):
            entries = stage.server.ask(f"/{what}/filter", {"limit": 200, "offset": 200 * page})
            found[f"{what} {page}"] = repr(entries).encode()
            if len(entries) < 200:
                break
    assert len(found["logs 0"]) > 1000
    assert any(b"rows_generated" in content for content in found.values())
    leaks = [
        (name, variable) for name, content in found.items() for variable, s in SECRETS.items() if s.encode() in content
    ]
    assert leaks == []
