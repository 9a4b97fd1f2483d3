"""What stays of a promoted adapter, whatever is trained later: a copy of its files, and one of its scores.

    <store>/steps/promoted/<digest of the weights>/adapter/...    the adapter itself, some megabytes
    <store>/steps/evaluate/<fingerprint>/...                      its scores, where a run that compares with it looks

A step that is made again by force takes the place of its artifact, on a GPU with other bytes: were that artifact what
is promoted, weights would be served that nobody has compared with anything, and the good ones would be gone. So what
is promoted is a copy under the digest of its weights. Being an artifact, it appears whole or not at all, here and on
S3, and is read like any other: by evaluation, by training that goes on from it, by whoever deploys it. Two workers
that make it at once make the same.

Not covered: when it is made (`flows.promotion.advance`), and when it goes (`flows.runs.gc`).
"""

from __future__ import annotations

import shutil

from tasks.artifacts.digest import digest_of
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import Ref, Store, describe_files
from tasks.errors import StoreError
from tasks.running.step import Planned

PROMOTED = "promoted"  # in place of a step's name


def kept_adapter(weights: str) -> Ref:
    """Where the copy of an adapter with these weights is, or would be."""
    return Ref(step=PROMOTED, fingerprint=weights)


def weights_of(store: Store, adapter: Ref) -> str:
    """A digest of an adapter's weights as they are on the store now."""
    manifest = store.manifest(**adapter)
    files = manifest.files if manifest else []
    return digest_of({entry["name"]: entry["sha256"] for entry in files if entry["name"].endswith(".safetensors")})


def keep_adapter(store: Store, trained: Ref, weights: str) -> Ref:
    """Copy the adapter of a training step, unless its copy is there.

    Args:
        weights: Digest of those that are meant.

    Raises:
        StoreError: The step holds others by now, or nothing.
    """
    ref = kept_adapter(weights)
    if store.verified(**ref) is not None:
        return ref
    source = store.manifest(**trained)
    if source is None or weights_of(store, trained) != weights:
        raise _made_again(store, trained)
    files = [entry for entry in source.files if entry["name"].startswith("adapter/")]
    _copy(store, trained, Manifest(**ref, identity=source.identity, inputs={"trained": trained}, files=files))
    return ref


def keep_scores(store: Store, measured: Planned, adapter: Ref) -> Ref:
    """Copy the scores of an adapter to where those of its copy belong: the same files measure the same.

    A run on the same data would measure the copy again otherwise, to find what is known.
    """
    inputs = measured.inputs | {"adapter": adapter}
    # As `tasks.running.step.Step.plan` makes it.
    identity = measured.identity | {"inputs": {name: ref["fingerprint"] for name, ref in inputs.items()}}
    ref = Ref(step=measured.ref["step"], fingerprint=digest_of(identity))
    source, copied = store.manifest(**measured.ref), store.manifest(**adapter)
    if source is None or copied is None:
        raise _made_again(store, measured.ref)
    if store.verified(**ref) is None:
        digests = source.input_digests | {"adapter": copied.content_digest}
        copy = Manifest(**ref, identity=identity, inputs=inputs, files=source.files, input_digests=digests,
                        counts=source.counts, facts=source.facts)  # fmt: skip
        _copy(store, measured.ref, copy)
    return ref


def _copy(store: Store, source: Ref, copy: Manifest) -> None:
    """Publish files of `source` under another name, if they are those that `copy` says."""
    folder = store.fetch(source)
    with store.staging(copy.step, copy.fingerprint) as out:
        try:
            for entry in copy.files:
                (out / entry["name"]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / entry["name"], out / entry["name"])
        except FileNotFoundError as error:  # another worker has just put others in their place
            raise _made_again(store, source) from error
        if describe_files(out) != copy.files:
            raise _made_again(store, source)
        store.publish(out, copy)


def _made_again(store: Store, ref: Ref) -> StoreError:
    return StoreError(
        f"{store.link(ref)}: made again, or removed, while it was to be promoted. Nothing was promoted: run the same "
        "command again."
    )
