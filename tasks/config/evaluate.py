"""What is measured, which adapter is promoted for it, and what the report shows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.config.section import RUNTIME, Section


class EvaluateConfig(Section):
    """What base and arms are measured on, under identical settings."""

    benchmarks: tuple[str, ...] = Field(
        default=("mmlu", "truthfulqa_mc2", "gsm8k", "hellaswag"),
        description="lm-evaluation-harness tasks, `lab`, or YAML files of your own",
    )
    limit: int | None = Field(default=None, gt=0, description="Items a task; a group such as mmlu has many; null: all")
    num_fewshot: int | None = Field(default=None, ge=0, description="Shots; null: each task's default")
    chat_template: bool = Field(default=True, description="Put benchmark prompts through the chat template")
    max_new_tokens: int = Field(default=256, gt=0, description="Longest answer to a task question")
    max_task_rows: int | None = Field(default=None, gt=0, description="Rows of each task test split; null: all")
    drift_rows: int = Field(default=200, ge=0, description="Test prompts on which drift is measured; 0: none")
    benchmark_batch_size: int = Field(
        default=16, gt=0, description="Items a batch in lm-evaluation-harness; fewer need less memory",
        json_schema_extra=RUNTIME,
    )  # fmt: skip
    seed: int = Field(default=1234, description="Seed of few-shot draws")
    max_failed_share: float = Field(
        default=0.05, ge=0, le=1,
        description="The step fails when more rows than this of a task, or of the drift, have no answer",
        json_schema_extra=RUNTIME,
    )  # fmt: skip


class ReportConfig(Section):
    """What the report shows."""

    title: str = Field(default="Selective Self-Rehearsal", description="Heading")
    n_examples: int = Field(default=4, ge=0, description="Examples of each kind")
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Level of the intervals")
    margin: float = Field(default=0.01, gt=0, lt=1, description="Mean loss on benchmarks that still counts as none")
    n_bootstrap: int = Field(default=2000, ge=200, description="Bootstrap draws")
    seed: int = Field(default=0, description="Seed of the bootstrap")


class PromotionConfig(Section):
    """When a run's adapter takes the place of the one that is promoted now: only where it is shown to be no worse."""

    arm: str = Field(description="The arm whose adapter may be promoted")
    benchmark_margin: float = Field(
        default=0.02, gt=0, lt=1, description="Loss against the base that is ruled out on every benchmark"
    )
    task_margin: float = Field(
        default=0.01, gt=0, lt=1,
        description="Loss that is ruled out on the task, against the base and the adapter promoted now",
    )  # fmt: skip
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Level of each one-sided bound")
    max_unscored_share: float = Field(
        default=0.05, ge=0, lt=1, description="With more items than this without a score, nothing is taken as shown"
    )
    train_on: Literal["all", "new"] = Field(
        default="all",
        description="all: a fresh adapter on all rows; new: go on from the promoted one, on the rows it has not seen",
    )
    n_bootstrap: int = Field(default=2000, ge=200, description="Bootstrap draws")
    seed: int = Field(default=0, description="Seed of the bootstrap")
