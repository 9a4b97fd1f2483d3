"""Select on 1,000,000 rows beside a bare pyarrow read, join and write of the same tables.

python tests/benchmarks/select_rows.py {ours,bare} FOLDER    # one side, as `measure_select` starts it
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.artifacts.digest import digest_of
from tasks.artifacts.store import Manifest, Ref, Store, describe_files, open_store
from tasks.config import SelectConfig
from tasks.running.step import Planned
from tasks.selection import select
from tasks.tables import schema

N_ROWS = 1_000_000
_TEXT = "The home of {i} is in Oslo, and the text says so in its second sentence, not far from the beginning."


def measure_select(folder: Path, n_rows: int = N_ROWS) -> dict[str, Any]:  # Any: JSON values
    """Seconds and peak memory of both sides, the median of three runs each, and their ratio."""
    prepare(open_store(str(folder / "store")), n_rows)
    sides: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
    for _ in range(3):
        for side, measured in sides.items():
            command = [sys.executable, __file__, side, str(folder)]
            measured.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    middle = {side: sorted(m, key=lambda one: one["seconds"])[1] for side, m in sides.items()}
    ratio = middle["ours"]["seconds"] / middle["bare"]["seconds"]
    return {"rows": n_rows, **middle, "time_ratio": round(ratio, 2)}


def prepare(store: Store, n_rows: int) -> dict[str, Ref]:
    """Examples, outputs and verdicts of so many rows, three quarters of them accepted."""
    tables = {
        "examples": ("ingest", schema.EXAMPLES), "outputs": ("generate", schema.OUTPUTS),
        "verdicts": ("judge", schema.VERDICTS),
    }  # fmt: skip
    refs = {name: Ref(step=step, fingerprint=digest_of([name, n_rows])) for name, (step, _) in tables.items()}
    for name, (_, expected) in tables.items():
        if store.manifest(**refs[name]):
            continue
        with store.staging(**refs[name]) as out:
            with schema.TableWriter(out / f"{name}.parquet", expected) as writer:
                for start in range(0, n_rows, 50_000):
                    writer.write([_row(name, i) for i in range(start, min(start + 50_000, n_rows))])
            counts = {"rows.train": n_rows}
            store.publish(out, Manifest(**refs[name], identity={}, inputs={}, files=describe_files(out), counts=counts))
    return refs


def _row(name: str, i: int) -> dict[str, object]:
    example_id = f"{i:032x}"
    if name == "examples":
        prompt = {
            "role": "user",
            "content": f"Some document about {i}. " + _TEXT.format(i=i) * 3 + "\nQuestion: where?",
        }
        return {
            "example_id": example_id, "source": "bench", "split": "train", "domain": "in", "task": "open",
            "messages": [prompt], "question": "where?", "document": None, "golds": [_TEXT.format(i=i)],
            "incorrect": [], "answerable": None, "group": None,
        }  # fmt: skip
    grain = {"example_id": example_id, "kind": "answer", "sample_index": 0}
    if name == "outputs":
        return grain | {
            "row_key": example_id, "text": _TEXT.format(i=i + 1), "finish_reason": "stop", "n_prompt_tokens": 90,
            "n_output_tokens": 20, "problem": None, "retryable": None,
        }  # fmt: skip
    verdict = "accept" if i % 4 else "reject"
    return grain | {
        "verdict": verdict,
        "decided_by": "exact_match",
        "reason": "says what the gold says",
        "p_accept": None,
    }


def run_ours(store: Store, refs: dict[str, Ref]) -> None:
    planned = [Planned(step=select, label="", ref=ref, identity={}, sections={}, inputs={}) for ref in refs.values()]
    inputs = dict(zip(refs, planned, strict=True))
    select.plan(config=SelectConfig(policy="ssr"), **inputs).execute(store, force=True)


def run_bare(store: Store, refs: dict[str, Ref], out: Path) -> None:
    """What a script would do: whole tables, a hash join, one write."""
    read = {
        name: pq.read_table(store.fetch(ref) / f"{name}.parquet", columns=columns)
        for (name, ref), columns in zip(
            refs.items(),
            (["example_id", "messages", "golds"], ["example_id", "text"], ["example_id", "verdict", "reason"]),
            strict=True,
        )
    }
    messages = read["examples"].select(["example_id", "messages", "golds"])
    joined = read["outputs"].join(read["verdicts"], "example_id")
    place = pc.index_in(messages.column("example_id"), joined.column("example_id").combine_chunks())
    joined = joined.take(place)
    own = pc.equal(joined.column("verdict"), "accept")
    target = pc.if_else(own, joined.column("text"), pc.list_element(messages.column("golds"), 0))
    table = pa.table(
        {"example_id": messages.column("example_id"), "messages": messages.column("messages"), "target": target}
    )
    pq.write_table(table, out, compression="zstd")


def main() -> None:
    side, folder = sys.argv[1], Path(sys.argv[2])
    store = open_store(str(folder / "store"))
    refs = prepare(store, N_ROWS)
    started = time.monotonic()
    if side == "ours":
        run_ours(store, refs)
    else:
        run_bare(store, refs, folder / "bare.parquet")
    seconds = time.monotonic() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(json.dumps({"seconds": round(seconds, 2), "peak_mb": round(peak_mb)}))


if __name__ == "__main__":
    main()
