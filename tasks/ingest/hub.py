"""Datasets of the Hugging Face Hub, streamed. No code from a dataset is ever run."""

from __future__ import annotations

from collections.abc import Iterator

from tasks.config import SourceConfig
from tasks.errors import DataError
from tasks.readers.registry import RawRecord


def revision_digest(source: SourceConfig, *, key: str) -> str:
    """The commit of the dataset's revision; offline, the revision that the recipe pins.

    Raises:
        DataError: The dataset cannot be found, or it is not pinned and the Hub is offline.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        if source.revision is None:
            raise DataError(
                f"{source.hub}: HF_HUB_OFFLINE is set, and the dataset is not pinned. Set {key}.revision to a commit."
            )
        return source.revision
    try:
        return str(HfApi().dataset_info(str(source.hub), revision=source.revision).sha)
    except Exception as error:  # the client raises errors of its own, of the HTTP library and of the OS
        raise _unusable(source, key, error) from error


def hub_records(source: SourceConfig, revision: str, *, key: str) -> Iterator[RawRecord]:
    """The rows of one split at a revision. Offline, they come from the local cache of `datasets`.

    Raises:
        DataError: The dataset, its configuration or its split cannot be read.
    """
    from datasets import load_dataset
    from huggingface_hub import constants

    try:
        rows = load_dataset(
            str(source.hub), source.hub_config, split=source.hub_split, revision=revision,
            streaming=not constants.HF_HUB_OFFLINE,
        )  # fmt: skip
        for number, row in enumerate(rows, 1):
            yield RawRecord(f"{source.hub}[{source.hub_split}]", f"row {number}", row)
    except Exception as error:  # as in `revision_digest`
        raise _unusable(source, key, error) from error


def _unusable(source: SourceConfig, key: str, error: Exception) -> DataError:
    return DataError(
        f"{source.hub}: cannot be read from the Hub (revision {source.revision or 'main'}, configuration "
        f"{source.hub_config or 'default'}, split {source.hub_split}): {type(error).__name__}: {error}. Check "
        f"{key}.hub, .hub_config, .hub_split and .revision; HF_TOKEN opens a private dataset."
    )
