"""The model that is fine-tuned, and what runs models (`tasks.engine_kinds` declares the kinds of engines)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic.config import JsonDict

from tasks.config.section import RUNTIME, Section
from tasks.engine_kinds import DEFAULT_KIND, check_fields, described, engine_kind, engine_kinds
from tasks.errors import ConfigError


class ModelConfig(Section):
    """The model that is fine-tuned, and that answers first."""

    base: str = Field(
        default="lab", description="`lab`, a folder, or a Hub id such as mistralai/Mistral-7B-Instruct-v0.2"
    )
    revision: str | None = Field(default=None, description="Hub revision; a commit id pins it")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: bfloat16 on a GPU that has it, float32 on a CPU"
    )


def _list_kinds(schema: JsonDict) -> None:
    """Show the kinds as a choice in the JSON schema."""
    schema["enum"] = [kind.name for kind in engine_kinds()]


class EngineConfig(Section):
    """What runs a model: in this process, on a vLLM server that the project starts, or on servers that are there.

    A field that the chosen kind does not read is refused. What only decides speed or place is no part of a row's key:
    floating-point equality is not promised for servers, a row once written is never generated again.
    """

    kind: str = Field(default=DEFAULT_KIND, description=described(), json_schema_extra=_list_kinds)
    batch_tokens: int = Field(default=16_384, gt=0, description="transformers: padded tokens a batch")
    urls: tuple[str, ...] = Field(
        default=(),
        description="openai: base URLs such as http://host:8000/v1, used by load",
        json_schema_extra=RUNTIME,
    )
    served_model: str | None = Field(
        default=None, description="openai: the model's name there; null: model.base, or the only one there"
    )
    api_key_env: str | None = Field(
        default=None, description="openai: the environment variable that holds the key", json_schema_extra=RUNTIME
    )
    python: str | None = Field(
        default=None, description="vllm: Python of its environment; null: SSR_VLLM_PYTHON, else that of `make engine`",
        json_schema_extra=RUNTIME,
    )  # fmt: skip
    tensor_parallel: int = Field(
        default=1, gt=0, description="vllm: GPUs that share a model", json_schema_extra=RUNTIME
    )
    data_parallel: int = Field(default=1, gt=0, description="vllm: copies of the model", json_schema_extra=RUNTIME)
    memory_share: float = Field(
        default=0.9, gt=0, le=1, description="vllm: share of the GPU's memory it may take", json_schema_extra=RUNTIME
    )
    max_context: int | None = Field(default=None, gt=0, description="vllm: longest prompt with its answer, in tokens")
    quantization: str | None = Field(default=None, description="vllm: such as fp8, awq or bitsandbytes")
    extra_args: tuple[str, ...] = Field(default=(), description="vllm: more flags of its server, word by word")
    concurrency: int = Field(
        default=512, gt=0, description="vllm, openai: rows in flight at a time", json_schema_extra=RUNTIME
    )
    timeout_seconds: float = Field(
        default=600, gt=0, description="vllm, openai: longest wait for an answer", json_schema_extra=RUNTIME
    )
    start_timeout_seconds: float = Field(
        default=1200, gt=0, description="vllm: longest wait for the server to be ready", json_schema_extra=RUNTIME
    )

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
        """Addresses are shown in recipes, reports and errors; one with more than a place in it works nowhere, too.

        Raises:
            ConfigError: And no ValueError, to which pydantic would add the value.
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
        for name, field in type(self).model_fields.items():
            if name not in {"kind", *kind.reads} and getattr(self, name) != field.default:
                raise ValueError(f"{name} has no effect with kind {self.kind}. Remove it.")
            if name in kind.needs and getattr(self, name) == field.default:
                raise ValueError(f"kind {self.kind} needs `{name}`")
        return self


check_fields(set(EngineConfig.model_fields) - {"kind"})
