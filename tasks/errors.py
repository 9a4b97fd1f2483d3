"""The errors a user can meet. Each message says what, the value, where, and the next thing to do.

The exit code of the `ssr` command is the error's: 2 where the input must change, 1 where the run failed.
"""

from __future__ import annotations


class SsrError(Exception):
    """Anything that this project raises on purpose."""

    exit_code = 1


class ConfigError(SsrError):
    """A recipe, an override or a setting is wrong."""

    exit_code = 2


class DataError(SsrError):
    """A dataset, a table or a model cannot be used as it is."""

    exit_code = 2


class StoreError(SsrError):
    """The store cannot be read or written, or holds something other than what its manifest says."""

    exit_code = 2


class StepError(SsrError):
    """A step failed while it ran; what it finished is kept, and the same command goes on from there."""
