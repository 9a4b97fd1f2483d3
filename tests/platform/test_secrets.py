"""What nobody may find, anywhere. Runs after the tests that leave something to search."""

from __future__ import annotations

import pytest
from searching import everything_on, leaks
from stage import Stage

pytestmark = pytest.mark.slow


def test_no_secret_of_the_environment_is_anywhere(stage: Stage, undisturbed: str) -> None:
    """Runs last: searches all that the tests before it left."""
    found = dict(everything_on(stage))
    assert len(found["logs 0"]) > 1000
    assert any(b"rows_generated" in content for content in found.values())
    # What is searched is there: a cell of a compressed table, and the log of a worker.
    assert any(b"What is 3 plus 3?" in content for name, content in found.items() if name.endswith(".parquet decoded"))
    assert any(undisturbed.encode() in content for name, content in found.items() if name.endswith("-cpu-1.log"))
    assert leaks(found) == []
