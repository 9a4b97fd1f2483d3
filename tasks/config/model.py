"""The model that is fine-tuned, and what runs models (`tasks.engine_kinds` declares the kinds of engines)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic.config import JsonDict

from tasks.config.section import RUNTIME, Section
from tasks.engine_kinds import DEFAULT_KIND, check_fields, described, engine_kind, engine_kinds
from tasks.errors import ConfigError


class ModelConfig(Section):
    """The model that answers the training prompts and is then fine-tuned."""

    base: str = "lab"
    """`lab`, a folder, or a Hub id such as mistralai/Mistral-7B-Instruct-v0.2"""
    revision: str | None = Field(default=None, description="Hub revision; a commit id pins it")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on a GPU that has it, float32 on a CPU"""


def _list_kinds(schema: JsonDict) -> None:
    """Show the kinds as a choice in the JSON schema."""
    schema["enum"] = [kind.name for kind in engine_kinds()]


class EngineConfig(Section):
    """What runs a model.

    A field that the chosen kind does not read is refused. Fields that decide only speed or place are no part of a row's
    key: servers do not promise equal bits, and a row that was generated once is not generated again.
    """

    kind: str = Field(default=DEFAULT_KIND, description=described(), json_schema_extra=_list_kinds)
    batch_tokens: int = Field(default=16_384, gt=0, description="transformers: most tokens in a batch, with padding")
    urls: tuple[str, ...] = Field(default=(), json_schema_extra=RUNTIME)
    """openai: base URLs such as http://host:8000/v1; the least loaded one is asked"""
    served_model: str | None = None
    """openai: the model's name on the servers; null: model.base, or their only model"""
    api_key_env: str | None = Field(default=None, json_schema_extra=RUNTIME)
    """openai: the environment variable that holds the API key"""
    python: str | None = Field(default=None, json_schema_extra=RUNTIME)
    """vllm: Python of its environment; null: SSR_VLLM_PYTHON, or that of `make engine`"""
    tensor_parallel: int = Field(default=1, gt=0, json_schema_extra=RUNTIME)
    """vllm: GPUs that share a model"""
    data_parallel: int = Field(default=1, gt=0, description="vllm: copies of the model", json_schema_extra=RUNTIME)
    memory_share: float = Field(default=0.9, gt=0, le=1, json_schema_extra=RUNTIME)
    """vllm: share of a GPU's memory that it may use"""
    max_context: int | None = Field(default=None, gt=0, description="vllm: longest prompt with its answer, in tokens")
    quantization: str | None = None
    """vllm: quantization of the weights, such as fp8, awq or bitsandbytes"""
    extra_args: tuple[str, ...] = Field(default=(), description="vllm: more flags of its server, one word each")
    concurrency: int = Field(default=512, gt=0, json_schema_extra=RUNTIME)
    """vllm, openai: rows in flight at a time"""
    timeout_seconds: float = Field(default=600, gt=0, json_schema_extra=RUNTIME)
    """vllm, openai: longest wait for an answer"""
    start_timeout_seconds: float = Field(default=1200, gt=0, json_schema_extra=RUNTIME)
    """vllm: longest wait for the server to be ready"""

    def answer_identity(self) -> dict[str, Any]:  # Any: JSON values
        """The fields that an answer depends on, which batching is not one of: a row that was paid for stays usable."""
        return {name: value for name, value in self.identity().items() if name != "batch_tokens"}

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:  # Any: YAML values, checked after this
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("kind")
    @classmethod
    def _kind_is_declared(cls, value: str) -> str:
        return engine_kind(value).name

    @field_validator("urls", mode="before")
    @classmethod
    def _no_secret_in_an_address(cls, value: Any) -> Any:  # Any: YAML values, checked after this
        """Refuse an address that holds a user, a password or a query: recipes, reports and errors show addresses.

        Raises:
            ConfigError: Not a ValueError, because pydantic would add the value to its message.
        """
        for number, url in enumerate(value if isinstance(value, list | tuple) else [value], 1):
            if any(mark in str(url) for mark in "@?#"):
                raise ConfigError(
                    f"engine.urls: address {number} holds more than http://host:port/v1, and recipes are public. Leave "
                    "user, password and query out; engine.api_key_env names the environment variable of a key."
                )
        return value

    @model_validator(mode="after")
    def _only_what_the_kind_reads(self) -> EngineConfig:
        kind = engine_kind(self.kind)
        unread = [name for name in type(self).model_fields if name not in {"kind", *kind.reads}]
        self.refuse_unread(unread, f"with kind {self.kind}")
        for name in kind.needs:
            if getattr(self, name) == type(self).model_fields[name].default:
                raise ValueError(f"kind {self.kind} needs `{name}`")
        return self


check_fields(set(EngineConfig.model_fields) - {"kind"})
