"""Sections `generate` and `rewrite`: what the base model writes."""

from __future__ import annotations

from pydantic import Field, model_validator

from tasks.config.section import RUNTIME, Section


class GenerateConfig(Section):
    """How the base model answers the training prompts."""

    max_new_tokens: int = Field(default=256, gt=0, description="Longest answer")
    temperature: float = Field(default=0.0, ge=0, description="0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Nucleus sampling")
    n_samples: int = Field(default=1, gt=0, description="Answers per prompt; more than one needs a temperature")
    seed: int = Field(default=0, description="Seed of sampling")
    max_failed_share: float = Field(default=0.05, ge=0, le=1, json_schema_extra=RUNTIME)
    """The step fails when more rows than this have no output; so does that of likelihoods"""

    @model_validator(mode="after")
    def _samples_differ(self) -> GenerateConfig:
        if self.n_samples > 1 and self.temperature == 0:
            raise ValueError("n_samples > 1 with temperature 0 would give the same answer each time")
        return self


class RewriteConfig(Section):
    """How the base model rewrites gold answers, for the policies that teach rewrites."""

    template: str = Field(default="rewrite.v1", description="Prompt template: a shipped name or a file")
    max_new_tokens: int = Field(default=256, gt=0, description="Longest rewrite")
    temperature: float = Field(default=0.0, ge=0, description="0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Nucleus sampling")
    seed: int = Field(default=0, description="Seed of sampling")
    max_failed_share: float = Field(default=0.05, ge=0, le=1, json_schema_extra=RUNTIME)
    """The step fails when more of its rows than this have no output"""
