"""Training, and the arms: a target policy each, with what it changes of the training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tasks.config.section import RUNTIME, Section

Policy = Literal["gold", "ssr", "s3ft", "self_only", "rewrite_all", "random_mix", "min_nll"]


class TrainConfig(Section):
    """LoRA fine-tuning. Defaults follow the literature (arXiv 2405.09673: alpha = 2r, all linear layers)."""

    learning_rate: float = Field(default=2e-4, gt=0, description="Peak learning rate")
    epochs: float = Field(default=2.0, gt=0, description="Passes over the training rows")
    batch_size: int = Field(default=16, gt=0, description="Rows an optimiser step, over all devices")
    micro_batch_size: int = Field(
        default=4, gt=0, description="Rows a forward pass on a GPU; the rest is accumulated", json_schema_extra=RUNTIME
    )
    lora_rank: int = Field(default=16, gt=0, description="LoRA rank r")
    lora_alpha: int = Field(default=32, gt=0, description="LoRA alpha")
    lora_dropout: float = Field(default=0.05, ge=0, lt=1, description="LoRA dropout")
    target_modules: str = Field(default="all-linear", description="`all-linear`, or names separated by commas")
    max_length: int = Field(default=4096, gt=0, description="Longer rows are dropped and counted")
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = Field(default="cosine", description="Schedule")
    warmup_share: float = Field(default=0.05, ge=0, lt=1, description="Share of steps that warm up")
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradient clipping")
    seed: int = Field(default=0, description="Seed of initialisation, order and dropout")
    packing: bool = Field(
        default=False, description="Pack rows into sequences of max_length; batch_size then counts sequences"
    )
    gradient_checkpointing: bool = Field(
        default=True, description="Trade a third more time for several times less memory", json_schema_extra=RUNTIME
    )
    load_in_4bit: bool = Field(default=False, description="QLoRA; needs CUDA and bitsandbytes")
    sharding: Literal["none", "fsdp"] = Field(
        default="none", description="fsdp: split the model over the machine's GPUs, for one that does not fit on a GPU"
    )
    checkpoint_steps: int = Field(default=100, gt=0, description="Steps between checkpoints", json_schema_extra=RUNTIME)

    @model_validator(mode="after")
    def _sharded_in_full_precision(self) -> TrainConfig:
        if self.load_in_4bit and self.sharding != "none":
            raise ValueError(
                "load_in_4bit and sharding do not go together. A 4-bit model that fits on one GPU needs none."
            )
        return self


_READ_BY_POLICY: dict[Policy, tuple[str, ...]] = {
    "s3ft": ("rewrites", "rewrite_verdicts"), "rewrite_all": ("rewrites", "rewrite_verdicts"),
    "min_nll": ("likelihoods",),
}  # fmt: skip


class SelectConfig(Section):
    """The part of an arm that decides its targets; two arms that share it share their targets."""

    policy: Policy
    seed: int = 0

    def reads(self) -> tuple[str, ...]:
        """The tables that the policy needs beside examples, outputs and verdicts.

        No arm is given more: otherwise adding another arm would change its fingerprint, and train it again.
        """
        return _READ_BY_POLICY.get(self.policy, ())


class ArmConfig(Section):
    """One thing to compare: a target policy and how it is trained."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", description="Short name, shown in the report")
    policy: Policy = Field(description="How the training target of each row is chosen")
    learning_rate: float | None = Field(default=None, gt=0, description="Overrides train.learning_rate")
    epochs: float | None = Field(default=None, gt=0, description="Overrides train.epochs")
    train_seed: int | None = Field(default=None, description="Overrides train.seed")
    select_seed: int = Field(default=0, description="Seed of policies that draw")

    def select_config(self) -> SelectConfig:
        """What decides this arm's targets."""
        return SelectConfig(policy=self.policy, seed=self.select_seed)

    def train_config(self, train: TrainConfig) -> TrainConfig:
        """The training section with this arm's overrides."""
        changes = {"learning_rate": self.learning_rate, "epochs": self.epochs, "seed": self.train_seed}
        return train.model_copy(update={key: value for key, value in changes.items() if value is not None})
