"""`make bench`: what is claimed of speed and memory, measured as ratios within one run.

Each measurement runs in a process of its own, so that peak memory is its own. Results are printed and written to
`benchmarks.json` in the folder given as the first argument (default: build/benchmarks).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from select_rows import measure_select
from vllm_steps import measure_evaluate, measure_generate

from tasks.engines.vllm_server import find_python
from tasks.errors import ConfigError

MEASUREMENTS = {"select": measure_select}
ON_VLLM = {"generate on vLLM": measure_generate, "evaluate on vLLM": measure_evaluate}


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, measure in (MEASUREMENTS | _on_vllm()).items():
        found[name] = measure(folder)
        sys.stdout.write(f"{name}: {json.dumps(found[name], indent=2)}\n")
    (folder / "benchmarks.json").write_text(json.dumps(found, indent=2) + "\n")


def _on_vllm() -> dict[str, Callable[[Path], dict[str, Any]]]:  # Any: JSON values
    try:
        find_python()
    except ConfigError as error:
        sys.stdout.write(f"without vLLM: {error}\n")
        return {}
    return ON_VLLM


if __name__ == "__main__":
    sys.exit(main())
