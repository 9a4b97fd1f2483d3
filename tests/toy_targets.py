"""A table of targets as `select` would leave it, for tests of training."""

from __future__ import annotations

import toy

from tasks.artifacts.digest import digest_of
from tasks.artifacts.store import Manifest, Ref, Store, describe_files
from tasks.running.step import Planned
from tasks.tables import schema


def put(store: Store, names: str) -> Planned:
    """A row for each letter, in a store, as the input of a step."""
    rows = [
        {
            "example_id": name, "messages": [{"role": "user", "content": f"Q {name}?"}], "target": f"answer {name}",
            "target_type": "gold", "reason": "toy", "base_nll": None,
        }
        for name in names
    ]  # fmt: skip
    ref = Ref(step="select", fingerprint=digest_of(["targets", names]))
    with store.staging(**ref) as out:
        with schema.TableWriter(out / "targets.parquet", schema.TARGETS) as writer:
            writer.write(rows)
        store.publish(out, Manifest(**ref, identity={}, inputs={}, files=describe_files(out)))
    return toy.as_input(ref)
