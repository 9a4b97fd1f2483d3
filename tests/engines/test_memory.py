"""The client's memory is that of the rows in flight, however many there are.

python tests/engines/test_memory.py URL N_ROWS    # prints the peak memory of a client that asks N_ROWS, in MiB
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tasks.engines.messages import Message, Request, Sampling
from tasks.engines.remote import Connection, RemoteEngine

sys.path.insert(0, str(Path(__file__).parent))
from faulty_server import FaultyServer


class Digits:
    """A prompt reader without a tokenizer, whose libraries would weigh more than what is measured."""

    def ids(self, messages: list[Message]) -> list[int]:
        return [int(digit) for digit in messages[0]["content"]]


def peak_mib(url: str, n_rows: int) -> float:
    prompts = cast(Any, Digits())  # what generate reads of a ChatTokenizer
    engine = RemoteEngine(
        Connection(
            urls=[url], model="base", tokenizer=prompts, context=None, concurrency=256, timeout_seconds=60, is_vllm=True
        )
    )
    assert sum(reply.problem is None for reply in engine.generate(requests(n_rows), Sampling(8))) == n_rows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def requests(n: int) -> Iterator[Request]:
    for i in range(n):
        yield Request(f"key-{i}", [{"role": "user", "content": str(i)}], seed=i)


@pytest.mark.slow
def test_five_times_the_rows_take_no_more_memory() -> None:
    peaks = []
    for n_rows in (20_000, 100_000):
        with FaultyServer() as server:
            command = [sys.executable, __file__, server.url, str(n_rows)]
            env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
            peaks.append(float(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout))
            assert server.paid.total() == n_rows
    few, many = peaks
    assert many - few < 40, f"{few:.0f} MiB for 20,000 rows, {many:.0f} MiB for 100,000"


if __name__ == "__main__":
    sys.stdout.write(str(peak_mib(sys.argv[1], int(sys.argv[2]))))
