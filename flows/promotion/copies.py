"""Copies of a promoted adapter and of its scores, which stay whatever is trained later.

    <store>/steps/promoted/<digest of the weights>/adapter/...    the adapter itself, some megabytes
    <store>/steps/evaluate/<fingerprint>/...                      its scores, where a run that compares with it looks

A forced train step replaces its artifact, on a GPU with other bytes. If that artifact were the promoted adapter,
weights would be served that were never compared with anything, and the good ones would be lost. So the promoted
adapter is a copy under the digest of its weights. The copy is an artifact: it appears whole or not at all, here and on
S3, and is read like any other, by evaluation, by training that goes on from it, and by whoever deploys it. Two workers
that make it at once make the same bytes.

Not covered: when a copy is made (`flows.promotion.advance`), and when it is removed (`flows.runs.gc`).
"""

from __future__ import annotations

import shutil

from tasks.artifacts.digest import digest_of
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import Ref, Store, describe_files
from tasks.errors import StoreError
from tasks.running.step import Planned

PROMOTED = "promoted"  # stands where other artifacts have the name of their step


def copy_of(weights: str) -> Ref:
    """The artifact that the copy of an adapter with these weights is, or will be."""
    return Ref(step=PROMOTED, fingerprint=weights)


def copy_adapter(store: Store, trained: Ref, weights: str) -> Ref:
    """Copy the adapter of a train step, unless its copy exists and is intact.

    Args:
        weights: Digest of the weights that the adapter must have.

    Raises:
        StoreError: The artifact has other weights by now, or is gone.
    """
    ref = copy_of(weights)
    if store.verified(**ref) is not None:
        return ref
    source = store.manifest(**trained)
    if source is None or source.weights_digest != weights:
        raise _made_again(store, trained)
    files = [entry for entry in source.files if entry["name"].startswith("adapter/")]
    _copy(store, trained, Manifest(**ref, identity=source.identity, inputs={"trained": trained}, files=files))
    return ref


def copy_scores(store: Store, measured: Planned, adapter: Ref) -> Ref:
    """Copy the scores of an adapter to where those of its copy belong: equal files have equal scores.

    Without this, the next run on the same data would evaluate the copy again.
    """
    inputs = measured.inputs | {"adapter": adapter}
    # The identity that `tasks.running.step.Step.plan` gives to the evaluation of the copy.
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
    """Publish the files of `source` that `copy` lists, if they are the ones that it lists."""
    folder = store.fetch(source)
    with store.staging(copy.step, copy.fingerprint) as out:
        try:
            for entry in copy.files:
                (out / entry["name"]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / entry["name"], out / entry["name"])
        except FileNotFoundError as error:  # another worker has just replaced the artifact
            raise _made_again(store, source) from error
        if describe_files(out) != copy.files:
            raise _made_again(store, source)
        store.publish(out, copy)


def _made_again(store: Store, ref: Ref) -> StoreError:
    return StoreError(
        f"{store.link(ref)}: another run replaced or removed it during the promotion. Nothing was promoted: run the "
        "same command again."
    )
