"""Runs a module in a process that takes its CPU for a GPU: accelerate shards a model over nothing else.

    python cpu_as_gpu.py -m MODULE [ARGUMENT ...]

All that is changed is the kind of device that accelerate notes. Sharding, communication (gloo), gathering and
checkpoints are those that a GPU gets.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType

as_it_is = PartialState.__init__


def as_an_accelerator(state: PartialState, *args: Any, **kwargs: Any) -> None:
    """Of the kinds that accelerate shards over, it takes one whose libraries it does not load."""
    as_it_is(state, *args, **kwargs)
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_HPU


if __name__ == "__main__":
    PartialState.__init__ = as_an_accelerator
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
