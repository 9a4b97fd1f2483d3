"""The `train` section, and the arms: a target policy each, with the training options that it sets for itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from tasks.config.section import RUNTIME, Section
from tasks.policies import POLICIES, explained


def _known(name: str) -> str:
    if name not in POLICIES:
        raise ValueError(f"no such policy. Known: {', '.join(POLICIES)}")
    return name


# The name of a target policy. The choices stand in the JSON schema, so that forms show a select.
PolicyName = Annotated[str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": list(POLICIES)})]


class TrainConfig(Section):
    """LoRA fine-tuning. Defaults follow the literature (arXiv 2405.09673: alpha = 2r, all linear layers)."""

    learning_rate: float = Field(default=2e-4, gt=0, description="Peak learning rate")
    epochs: float = Field(default=2.0, gt=0, description="Passes over the training rows")
    batch_size: int = Field(default=16, gt=0, description="Rows per optimiser step, over all devices")
    micro_batch_size: int = Field(default=4, gt=0, json_schema_extra=RUNTIME)
    """Rows per forward pass on a GPU; gradients of a batch are accumulated"""
    lora_rank: int = Field(default=16, gt=0, description="LoRA rank r")
    lora_alpha: int = Field(default=32, gt=0, description="LoRA alpha")
    lora_dropout: float = Field(default=0.05, ge=0, lt=1, description="LoRA dropout")
    target_modules: str = Field(default="all-linear", description="`all-linear`, or names separated by commas")
    max_length: int = Field(default=4096, gt=0, description="Longer rows are dropped and counted")
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """Learning-rate schedule"""
    warmup_share: float = Field(default=0.05, ge=0, lt=1, description="Share of steps that warm up")
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradient clipping")
    seed: int = Field(default=0, description="Seed of initialisation, order and dropout")
    packing: bool = False
    """Pack rows into sequences of max_length; batch_size then counts sequences"""
    gradient_checkpointing: bool = Field(default=True, json_schema_extra=RUNTIME)
    """Trade a third more time for several times less memory"""
    load_in_4bit: bool = Field(default=False, description="QLoRA; needs CUDA and bitsandbytes")
    sharding: Literal["none", "fsdp"] = "none"
    """fsdp: split the model over the machine's GPUs, for one that does not fit on a GPU"""
    checkpoint_steps: int = Field(default=100, gt=0, description="Steps between checkpoints", json_schema_extra=RUNTIME)

    @model_validator(mode="after")
    def _sharded_in_full_precision(self) -> TrainConfig:
        if self.load_in_4bit and self.sharding != "none":
            raise ValueError(
                "load_in_4bit cannot be combined with sharding. A 4-bit model that fits on one GPU needs no sharding."
            )
        return self


class SelectConfig(Section):
    """The part of an arm that decides its targets. Arms that agree in it share one table of targets."""

    policy: PolicyName
    seed: int = 0

    def reads(self) -> tuple[str, ...]:
        """The inputs of the select step that the policy needs beside examples, outputs and verdicts.

        An arm is given no other table. Otherwise another arm's policy would change its fingerprint and train it again.
        """
        return POLICIES[self.policy].inputs


class ArmConfig(Section):
    """One thing to compare: a target policy and how it is trained."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", description="Short name, shown in the report")
    policy: PolicyName = Field(description=f"What each training row teaches. {explained()}")
    # Each field below but the last is a training option that an arm may set for itself: it is called as the field of
    # TrainConfig whose value it replaces, with or without `train_` in front. None leaves that value.
    learning_rate: float | None = Field(default=None, gt=0, description="Overrides train.learning_rate")
    epochs: float | None = Field(default=None, gt=0, description="Overrides train.epochs")
    train_seed: int | None = Field(default=None, description="Overrides train.seed")
    select_seed: int = Field(default=0, description="Seed of policies that draw")

    def select_config(self) -> SelectConfig:
        """What decides this arm's targets."""
        return SelectConfig(policy=self.policy, seed=self.select_seed)

    def train_config(self, train: TrainConfig) -> TrainConfig:
        """The training section with this arm's overrides."""
        own = {option: getattr(self, field) for option, field in self.options().items()}
        return train.model_copy(update={option: value for option, value in own.items() if value is not None})

    @classmethod
    def options(cls) -> dict[str, str]:
        """The training options that an arm may set for itself: fields of `train`, each with the arm's field for it.

        Raises:
            TypeError: A field of the arm is called like no field of `train` that changes what is learned.
        """
        found, learned = {}, TrainConfig().identity()
        for field in cls.model_fields:
            if field in ("name", "policy", "select_seed"):
                continue
            option = field if field in learned else field.removeprefix("train_")
            if option not in learned:
                raise TypeError(
                    f"{cls.__name__}.{field}: no field of TrainConfig that changes what is learned is called so. An "
                    "arm's option is called as the field whose value it replaces."
                )
            found[option] = field
        return found


ArmConfig.options()  # fails at import where a field of an arm would have no effect
