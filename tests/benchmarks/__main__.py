"""`make bench`: what is claimed of speed and memory, measured as ratios within one run.

Each measurement runs in a process of its own, so that peak memory is its own. Results are printed and written to
`benchmarks.json` in the folder given as the first argument (default: build/benchmarks).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from select_rows import measure_select

MEASUREMENTS = {"select": measure_select}


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, measure in MEASUREMENTS.items():
        found[name] = measure(folder)
        sys.stdout.write(f"{name}: {json.dumps(found[name], indent=2)}\n")
    (folder / "benchmarks.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
