"""What base and arms are measured on, when an adapter is promoted, and what the report shows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.config.section import RUNTIME, Section


class EvaluateConfig(Section):
    """What the base and all arms are measured on, under identical settings."""

    benchmarks: tuple[str, ...] = ("mmlu", "truthfulqa_mc2", "gsm8k", "hellaswag")
    """lm-evaluation-harness tasks, `lab`, or YAML files of your own"""
    limit: int | None = Field(default=None, gt=0, description="Items a task; a group such as mmlu has many; null: all")
    num_fewshot: int | None = Field(default=None, ge=0, description="Few-shot examples; null: each task's default")
    chat_template: bool = Field(default=True, description="Put benchmark prompts through the chat template")
    max_new_tokens: int = Field(default=256, gt=0, description="Longest answer to a task question")
    max_task_rows: int | None = Field(default=None, gt=0, description="Rows of each task test split; null: all")
    drift_rows: int = Field(default=200, ge=0, description="Test prompts on which drift is measured; 0: none")
    benchmark_batch_size: int = Field(default=16, gt=0, json_schema_extra=RUNTIME)
    """Items a batch in lm-evaluation-harness; fewer need less memory"""
    seed: int = Field(default=1234, description="Seed of few-shot draws")
    max_failed_share: float = Field(default=0.05, ge=0, le=1, json_schema_extra=RUNTIME)
    """Share of the rows of a part (a task, the drift) that may have no answer; above it the step fails"""


class ReportConfig(Section):
    """What the report shows."""

    title: str = Field(default="Selective Self-Rehearsal", description="Heading")
    n_examples: int = Field(default=4, ge=0, description="Examples of each kind of output and verdict")
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Level of the intervals")
    margin: float = Field(default=0.01, gt=0, lt=1)
    """Mean loss on benchmarks up to which an arm is non-inferior"""
    n_bootstrap: int = Field(default=2000, ge=200, description="Bootstrap draws")
    seed: int = Field(default=0, description="Seed of the bootstrap")


class PromotionConfig(Section):
    """Which arm's adapter may replace the promoted one. It does so only if tests show that it is no worse."""

    arm: str = Field(description="The arm whose adapter may be promoted")
    benchmark_margin: float = Field(default=0.02, gt=0, lt=1)
    """Promote only if a larger loss is ruled out on every benchmark, against the base"""
    task_margin: float = Field(default=0.01, gt=0, lt=1)
    """Promote only if a larger loss is ruled out on the task, against base and promoted adapter"""
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Level of each one-sided bound")
    max_unscored_share: float = Field(default=0.05, ge=0, lt=1)
    """With a larger share of items without a score, a check is not passed"""
    train_on: Literal["all", "new"] = "all"
    """all: a fresh adapter on all rows; new: go on from the promoted one, on the rows it has not seen"""
    n_bootstrap: int = Field(default=2000, ge=200, description="Bootstrap draws")
    seed: int = Field(default=0, description="Seed of the bootstrap")
