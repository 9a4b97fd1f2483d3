"""A whole recipe: its sections, and the checks that concern several of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from tasks.config.data import DataConfig
from tasks.config.evaluate import EvaluateConfig, PromotionConfig, ReportConfig
from tasks.config.generate import GenerateConfig, RewriteConfig
from tasks.config.judge import AbstentionConfig, JudgeConfig
from tasks.config.model import EngineConfig, ModelConfig
from tasks.config.section import RUNTIME, Section
from tasks.config.train import ArmConfig, TrainConfig
from tasks.measures.refusals import refuses
from tasks.policies import POLICIES


class ExecutionConfig(Section):
    """Where and how wide the steps run."""

    workers: int = Field(default=1, gt=0, json_schema_extra=RUNTIME)
    """Steps that may run at once; with a GPU and steps inline, always one"""
    threads: int | None = Field(default=None, gt=0, json_schema_extra=RUNTIME)
    """CPU threads a step; null: all"""
    steps: Literal["inline", "deployments"] = Field(default="inline", json_schema_extra=RUNTIME)
    """inline: all on the machine of the run; deployments: each step on the work pool it is deployed to"""

    @model_validator(mode="before")
    @classmethod
    def _steps_alone(cls, value: Any) -> Any:  # Any: YAML values, checked after this
        return {"steps": value} if isinstance(value, str) else value


class RunConfig(Section):
    """A whole run: one recipe file."""

    name: str = Field(default="run", pattern=r"^[a-z0-9][a-z0-9_-]*$", description="Name of the run")
    model: ModelConfig = Field(default=ModelConfig(), title="Model", description="The model that is fine-tuned")
    engine: EngineConfig = Field(default=EngineConfig(), title="Engine", description="What runs models")
    data: DataConfig = Field(default=DataConfig(), title="Data", description="Where examples come from")
    generate: GenerateConfig = Field(default=GenerateConfig(), title="Generate", description="The base model's answers")
    rewrite: RewriteConfig = Field(default=RewriteConfig(), title="Rewrite")
    """The base model's rewrites of the golds"""
    judge: JudgeConfig = Field(default=JudgeConfig(), title="Judge", description="Which answers are acceptable")
    abstention: AbstentionConfig = Field(default=AbstentionConfig(), title="Abstention")
    """What a refusal looks like"""
    train: TrainConfig = Field(default=TrainConfig(), title="Train", description="LoRA fine-tuning")
    arms: tuple[ArmConfig, ...] = Field(
        default=(ArmConfig(name="sft", policy="gold"), ArmConfig(name="ssr", policy="ssr")),
        min_length=1, title="Arms", description="What is compared",
    )  # fmt: skip
    evaluate: EvaluateConfig = Field(default=EvaluateConfig(), title="Evaluate", description="What is measured")
    promotion: PromotionConfig | None = Field(default=None, title="Promotion")
    """Which adapter `current` points to; null: nothing is promoted"""
    report: ReportConfig = Field(default=ReportConfig(), title="Report", description="What the report shows")
    execution: ExecutionConfig = Field(default=ExecutionConfig(), title="Execution", description="How wide steps run")

    @model_validator(mode="after")
    def _distinct_names(self) -> RunConfig:
        for what, names in (("arms", [a.name for a in self.arms]), ("sources", [s.name for s in self.data.sources])):
            if repeated := sorted({n for n in names if names.count(n) > 1}):
                raise ValueError(f"{what} share a name: {', '.join(repeated)}")
        if "base" in {arm.name for arm in self.arms}:
            raise ValueError("an arm cannot be called base: the model without an adapter is")
        return self

    @model_validator(mode="after")
    def _only_what_the_policies_read(self) -> RunConfig:
        if not self.reads("rewrites"):
            readers = " or ".join(policy.name for policy in POLICIES.values() if "rewrites" in policy.reads)
            why = f"without an arm of policy {readers}"
            self.rewrite.refuse_unread(RewriteConfig.model_fields, why, place="rewrite.")
        ranking = [arm for arm in self.arms if POLICIES[arm.policy].ranks_answers]
        if ranking and self.generate.n_samples == 1:
            raise ValueError(
                f"arm {ranking[0].name}: policy {ranking[0].policy} chooses among several answers, and there is one. "
                "Set generate.n_samples and generate.temperature."
            )
        return self

    @model_validator(mode="after")
    def _promotion_can_be_shown(self) -> RunConfig:
        if self.promotion is None:
            return self
        names = [arm.name for arm in self.arms]
        if self.promotion.arm not in names:
            raise ValueError(f"promotion.arm={self.promotion.arm!r}: no such arm. There are: {', '.join(names)}")
        if not self.evaluate.benchmarks:
            raise ValueError("promotion: without evaluate.benchmarks it cannot be shown that nothing was forgotten")
        if self.promotion.train_on == "new" and len(names) > 1:
            raise ValueError(
                f"promotion.train_on=new: every arm would go on from the same adapter. Keep {self.promotion.arm} alone"
            )
        return self

    @model_validator(mode="after")
    def _refusal_is_recognised(self) -> RunConfig:
        if refuses(self.data.refusal, self.abstention.phrases) is not True:
            raise ValueError(
                f"data.refusal={self.data.refusal!r} is not recognised as a refusal: right refusals would be scored as "
                "wrong answers. Add a phrase of it to abstention.phrases."
            )
        return self

    def reads(self, table: str) -> bool:
        """Whether the policy of some arm reads this table beside examples, outputs and verdicts."""
        return any(table in arm.select_config().reads() for arm in self.arms)

    def rewrites_all(self) -> bool:
        """Whether every gold is rewritten, or only those of examples without an accepted answer."""
        return any(POLICIES[arm.policy].rewrites_all for arm in self.arms)
