"""Sections `judge` and `abstention`: the rules, the panel of language models, its audit, and refusals."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tasks.config.model import EngineConfig, ModelConfig
from tasks.config.section import RUNTIME, Section


class JudgeModelConfig(Section):
    """One judge of the panel."""

    model: ModelConfig = Field(title="Judge model")
    """The judge. On a remote server, `base` may be a name that only the server knows"""
    engine: EngineConfig | None = Field(default=None, description="Engine of this judge; null: the recipe's engine")


class AuditConfig(Section):
    """Probes of known truth, which the LLM judges along with the answers. They measure how precise its accept is."""

    n_probes: int = Field(default=200, ge=0, description="Probes, half of them acceptable; 0: no audit")
    min_precision: float | None = Field(default=None, gt=0, le=1)
    """Least share of acceptable ones among the accepted probes; null: only shown"""
    below: Literal["stop", "gold"] = "stop"
    """Below min_precision. stop: the step fails; gold: train on gold where the LLM accepts"""
    seed: int = Field(default=0, description="Seed of the draw")

    @model_validator(mode="after")
    def _only_what_is_read(self) -> AuditConfig:
        if self.n_probes == 0:
            self.refuse_unread(["min_precision", "below", "seed"], "with n_probes 0")
        if self.min_precision is None:
            self.refuse_unread(["below"], "without min_precision")
        return self


class LlmJudgeConfig(Section):
    """The language models that judge what no rule decides."""

    judges: tuple[JudgeModelConfig, ...] = Field(min_length=1, description="The panel: one judge or several")
    rubric: str | None = Field(default=None, description="Rubric: a shipped name or a file; null: by task")
    verdict_by: Literal["choice", "text"] = "choice"
    """choice: one of two words, with its probability; text: read from free text"""
    reasoning: bool = Field(default=False, description="Let a judge reason before its verdict")
    max_reasoning_tokens: int = Field(default=512, gt=0, description="Longest reasoning")
    repeats: int = Field(default=1, gt=0, description="Times each judge is asked; more than one needs a temperature")
    temperature: float = Field(default=0.0, ge=0)
    """Temperature of the reasoning, or of a verdict in free text"""
    combine: Literal["mean", "majority"] = "mean"
    """Several opinions: the mean of their probabilities, or the majority of verdicts"""
    threshold: float = Field(default=0.5, gt=0, le=1, description="Accept from this probability of accept on")
    seed: int = Field(default=0, description="Seed of sampling")
    max_unjudged_share: float = Field(default=0.05, ge=0, le=1, json_schema_extra=RUNTIME)
    """The step fails when the LLM leaves more than this of its rows undecided"""
    audit: AuditConfig = Field(default=AuditConfig(), title="Audit", description="Measures the verdicts on probes")

    @property
    def n_opinions(self) -> int:
        """Number of verdicts on each answer."""
        return len(self.judges) * self.repeats

    @model_validator(mode="after")
    def _only_what_is_read(self) -> LlmJudgeConfig:
        for name, why in self._unread().items():
            self.refuse_unread([name], why)
        if any(judge in self.judges[:i] for i, judge in enumerate(self.judges)):
            raise ValueError("two judges are the same and would reply the same. For several samples, set repeats.")
        return self

    def _unread(self) -> dict[str, str]:
        """Fields without effect, with the reason."""
        unread: dict[str, str] = {}
        if not self.reasoning:
            unread["max_reasoning_tokens"] = "without reasoning"
        if self.n_opinions == 1:
            unread["combine"] = "with one opinion"
        if self.verdict_by == "text" and (self.n_opinions == 1 or self.combine == "majority"):
            unread["threshold"] = "where verdicts are read from text"
        if self.temperature == 0:
            unread["repeats"] = "with temperature 0: each reply would be the same"
            unread["seed"] = "with temperature 0"
        if self.verdict_by == "choice" and not self.reasoning:
            unread["temperature"] = "where probabilities are read and nothing is sampled"
        return unread


class JudgeConfig(Section):
    """Which of the base model's answers count as acceptable: rules first, then language models."""

    contains_gold: bool = True
    """Accept an answer that contains a gold answer, without a known wrong one or a negation beside it"""
    max_extra_words: int = Field(default=40, ge=0)
    """Most words beyond the gold in an answer that contains_gold accepts"""
    min_token_recall: float | None = Field(default=None, gt=0, le=1)
    """Accept at this token recall of a gold answer; null: leave undecided"""
    undecided: Literal["unjudged", "reject"] = "unjudged"
    """Verdict on an answer that no rule decides, without an LLM"""
    llm: LlmJudgeConfig | None = Field(default=None, title="LLM")
    """Judges what no rule decides; null: rules alone"""

    @model_validator(mode="after")
    def _one_decides(self) -> JudgeConfig:
        if self.llm is not None:
            self.refuse_unread(["undecided"], "with llm, which decides what no rule does")
        return self


class AbstentionConfig(Section):
    """What counts as a refusal, for the judge and for the metrics. Usual English wording needs no phrases."""

    phrases: tuple[str, ...] = Field(default=(), description="Further wording that marks a refusal, in any language")
