"""Credentials of the store in a Prefect block, which runs name. So parameters and manifests never hold credentials.

`ssr deploy --store-access NAME` fills the block from the deployer's environment, and a flow calls `use_access` before
it opens the store. Not covered: roles of machines and pods, which need no block.
"""

from __future__ import annotations

import os

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from tasks.errors import ConfigError

_VARIABLES = {
    "endpoint_url": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),  # S3 libraries disagree about which of them they read
    "access_key_id": ("AWS_ACCESS_KEY_ID",),
    "secret_access_key": ("AWS_SECRET_ACCESS_KEY",),
    "session_token": ("AWS_SESSION_TOKEN",),
}


class S3Access(Block):
    """Endpoint and credentials of an S3 store, as a Prefect block."""

    _block_type_name = "S3 access"
    _block_type_slug = "s3-access"
    _description = "Endpoint and credentials of the store of Selective Self-Rehearsal."

    endpoint_url: str | None = Field(default=None, description="Address of an S3 other than Amazon's")
    region: str | None = Field(default=None, description="Region of the bucket")
    access_key_id: SecretStr = Field(default=..., description="Access key")
    secret_access_key: SecretStr = Field(default=..., description="Secret of the access key")
    session_token: SecretStr | None = Field(default=None, description="Token of temporary credentials")

    @classmethod
    def from_environment(cls) -> S3Access:
        """The endpoint and credentials in the AWS_* variables of this process.

        Raises:
            ConfigError: The access key or its secret is missing.
        """
        found = {name: _first(variables) for name, variables in _VARIABLES.items()}
        if missing := [_VARIABLES[name][0] for name in ("access_key_id", "secret_access_key") if not found[name]]:
            raise ConfigError(
                f"--store-access fills its block from the environment, where {' and '.join(missing)} is missing. "
                "Set the AWS_* variables that reach the store, and deploy again."
            )
        return cls.model_validate(found)

    def to_environment(self) -> dict[str, str | None]:
        """The variables that S3 libraries read. A variable whose value is None must not be set."""
        values: dict[str, str | None] = {}
        for name, variables in _VARIABLES.items():
            value = getattr(self, name)
            plain = value.get_secret_value() if isinstance(value, SecretStr) else value
            values |= dict.fromkeys(variables, plain)
        return values


def _first(variables: tuple[str, ...]) -> str | None:
    return next((value for name in variables if (value := os.environ.get(name))), None)


def use_access(name: str) -> None:
    """Set the credentials of the block with this name for this process and its children; "" leaves them as they are.

    Call it before a store is opened: an open file system keeps the credentials that it was opened with.

    Raises:
        ConfigError: There is no such block on the server.
    """
    # A worker passes variables that it lacks on as empty ones, and libraries take an empty region for a region.
    _set({variable: os.environ.get(variable) for variables in _VARIABLES.values() for variable in variables})
    if name:
        _set(_load(name).to_environment())


def _set(values: dict[str, str | None]) -> None:
    for variable, value in values.items():
        if value:
            os.environ[variable] = value
        else:
            os.environ.pop(variable, None)


def _load(name: str) -> S3Access:
    try:
        return S3Access.load(name)  # type: ignore[return-value]  # an awaitable only where a loop runs
    except ValueError as error:
        raise ConfigError(
            f"store access {name!r}: the server has no S3 access block of that name. Set the AWS_* variables that "
            f"reach the store, then: ssr deploy --store-access {name} (or fill one in the UI: Blocks, S3 access)."
        ) from error
