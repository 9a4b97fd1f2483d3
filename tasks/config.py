"""The recipe of a run: one frozen section per step, checked before anything is read or a GPU is touched.

Field descriptions are the labels of the form in the Prefect UI. A field marked `runtime` changes how fast a step runs
or where, never what it writes, and so stays out of the step's fingerprint.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.config import JsonDict

from tasks.errors import ConfigError
from tasks.text import abstains

_RUNTIME: JsonDict = {"runtime": True}

Task = Literal["grounded_qa", "open", "number", "multiple_choice"]
Reader = Literal["auto", "rows", "squad2", "md2d", "nq", "musique", "gsm8k", "lab"]
Policy = Literal["gold", "ssr", "s3ft", "self_only", "rewrite_all", "random_mix", "min_nll"]


class Section(BaseModel):
    """A part of the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def identity(self) -> dict[str, Any]:
        """The fields that change what a step writes, as JSON values."""
        found: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("runtime"):
                continue
            value = getattr(self, name)
            if isinstance(value, Section):
                found[name] = value.identity()
            elif isinstance(value, tuple):
                found[name] = [v.identity() if isinstance(v, Section) else v for v in value]
            else:
                found[name] = value
        return found


class ModelConfig(Section):
    """The model that is fine-tuned, and that answers first."""

    base: str = Field(
        default="lab", description="`lab`, a folder, or a Hub id such as mistralai/Mistral-7B-Instruct-v0.2"
    )
    revision: str | None = Field(default=None, description="Hub revision; a commit id pins it")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: bfloat16 on a GPU that has it, float32 on a CPU"
    )


_SERVED = ("concurrency", "timeout_seconds")
_READ_BY = {
    "transformers": ("batch_tokens",),
    "openai": ("urls", "served_model", "api_key_env", *_SERVED),
    "vllm": (
        "python", "tensor_parallel", "data_parallel", "memory_share", "max_context", "quantization", "extra_args",
        "start_timeout_seconds", *_SERVED,
    ),
}  # fmt: skip


class EngineConfig(Section):
    """What runs a model: in this process, on a vLLM server that the project starts, or on servers that are there.

    A field that the chosen kind does not read is refused. What only decides speed or place is no part of a row's key:
    floating-point equality is not promised for servers, a row once written is never generated again.
    """

    kind: Literal["transformers", "vllm", "openai"] = Field(
        default="transformers",
        description="transformers: in process; vllm: a server of our own; openai: servers at `urls`",
    )
    batch_tokens: int = Field(default=16_384, gt=0, description="transformers: padded tokens a batch")
    urls: tuple[str, ...] = Field(
        default=(),
        description="openai: base URLs such as http://host:8000/v1, used by load",
        json_schema_extra=_RUNTIME,
    )
    served_model: str | None = Field(default=None, description="openai: the model's name there; null: the first listed")
    api_key_env: str | None = Field(
        default=None, description="openai: the environment variable that holds the key", json_schema_extra=_RUNTIME
    )
    python: str | None = Field(
        default=None, description="vllm: Python of its environment; null: SSR_VLLM_PYTHON, else that of `make engine`",
        json_schema_extra=_RUNTIME,
    )  # fmt: skip
    tensor_parallel: int = Field(
        default=1, gt=0, description="vllm: GPUs that share a model", json_schema_extra=_RUNTIME
    )
    data_parallel: int = Field(default=1, gt=0, description="vllm: copies of the model", json_schema_extra=_RUNTIME)
    memory_share: float = Field(
        default=0.9, gt=0, le=1, description="vllm: share of the GPU's memory it may take", json_schema_extra=_RUNTIME
    )
    max_context: int | None = Field(default=None, gt=0, description="vllm: longest prompt with its answer, in tokens")
    quantization: str | None = Field(default=None, description="vllm: such as fp8, awq or bitsandbytes")
    extra_args: tuple[str, ...] = Field(default=(), description="vllm: more flags of its server, word by word")
    concurrency: int = Field(
        default=512, gt=0, description="vllm, openai: rows in flight at a time", json_schema_extra=_RUNTIME
    )
    timeout_seconds: float = Field(
        default=600, gt=0, description="vllm, openai: longest wait for an answer", json_schema_extra=_RUNTIME
    )
    start_timeout_seconds: float = Field(
        default=1200, gt=0, description="vllm: longest wait for the server to be ready", json_schema_extra=_RUNTIME
    )

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:  # Any: YAML values, checked after this
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _only_what_the_kind_reads(self) -> EngineConfig:
        for name, field in type(self).model_fields.items():
            if name not in {"kind", *_READ_BY[self.kind]} and getattr(self, name) != field.default:
                raise ValueError(f"{name} has no effect with kind {self.kind}. Remove it.")
        if self.kind == "openai" and not self.urls:
            raise ValueError("kind openai needs `urls`")
        return self


class FieldsConfig(Section):
    """Which column of a table holds what. Dots reach into nested columns."""

    question: str = Field(default="question", description="Column with the question or instruction")
    answer: str = Field(default="answer", description="Column with the gold answer: a text, or a list of them")
    document: str | None = Field(default=None, description="Column with the document the answer stands in")
    messages: str | None = Field(default=None, description="Column with a chat; replaces question and document")
    incorrect: str | None = Field(default=None, description="Column with answers known to be wrong")
    answerable: str | None = Field(default=None, description="Column that is false where the document has no answer")
    group: str | None = Field(default=None, description="Column that names what a row belongs to, such as its document")


class UnanswerableConfig(Section):
    """Make unanswerable questions for a dataset without any: a question beside a document without its answer."""

    share: float = Field(default=0.4, gt=0, lt=1, description="Share of unanswerable rows after building")
    seed: int = Field(default=0, description="Seed of the draw")


class SourceConfig(Section):
    """One place that examples come from."""

    name: str = Field(default="data", pattern=r"^[a-z0-9][a-z0-9_-]*$", description="Short name, shown in the report")
    path: str | None = Field(
        default=None, description="File, folder, glob or s3:// of JSONL, JSON, CSV or Parquet",
        json_schema_extra=_RUNTIME,  # the content's digest stands for it, wherever it lies
    )  # fmt: skip
    hub: str | None = Field(default=None, description="Dataset id on the Hugging Face Hub")
    hub_config: str | None = Field(default=None, description="Configuration of the Hub dataset")
    hub_split: str = Field(default="train", description="Split of the Hub dataset")
    revision: str | None = Field(default=None, description="Hub revision; a commit id pins it")
    reader: Reader = Field(default="auto", description="Format of the rows; auto: a plain table")
    documents: str | None = Field(
        default=None, description="MultiDoc2Dial: the documents file", json_schema_extra=_RUNTIME
    )
    fields: FieldsConfig = Field(default=FieldsConfig(), title="Columns", description="Which column holds what")
    task: Task = Field(default="open", description="What a row asks for; decides prompt, rules and metrics")
    split: Literal["auto", "train", "test"] = Field(
        default="auto", description="auto: by content hash, `test_share` of the rows are held out"
    )
    domain: Literal["in", "out"] = Field(default="in", description="out: a test of transfer, never trained on")
    prompt: str | None = Field(default=None, description="Prompt template: a shipped name or a file; default by task")
    limit: int | None = Field(default=None, gt=0, description="Keep so many rows, chosen by content hash")
    unanswerable: UnanswerableConfig | None = Field(default=None, description="Build unanswerable questions")

    @model_validator(mode="after")
    def _one_origin(self) -> SourceConfig:
        if self.reader == "lab":
            return self
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either `path` or `hub`")
        if self.domain == "out" and self.split == "train":
            raise ValueError("an out-of-domain source is for testing: split must be test")
        return self


class DataConfig(Section):
    """Where examples come from and which of them train."""

    sources: tuple[SourceConfig, ...] = Field(
        default=(SourceConfig(name="lab", reader="lab", task="grounded_qa"),), min_length=1, description="Datasets"
    )
    test_share: float = Field(default=0.2, gt=0, lt=1, description="Share held out where `split` is auto")
    refusal: str = Field(
        default="I cannot find this in the document.", description="Gold answer of an unanswerable question"
    )
    max_prompt_chars: int = Field(default=24_000, gt=0, description="Longer prompts are dropped and counted")
    lab_rows: int = Field(default=1600, gt=0, description="Lab only: training rows to draw")
    seed: int = Field(default=0, description="Lab only: seed of the draw")

    @model_validator(mode="after")
    def _lab_only(self) -> DataConfig:
        if any(source.reader == "lab" for source in self.sources):
            return self
        for name in ("lab_rows", "seed"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect without a source whose reader is lab. Remove it.")
        return self


class GenerateConfig(Section):
    """How the base model answers the training prompts."""

    max_new_tokens: int = Field(default=256, gt=0, description="Longest answer")
    temperature: float = Field(default=0.0, ge=0, description="0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Nucleus sampling")
    n_samples: int = Field(default=1, gt=0, description="Answers per prompt; more than one needs a temperature")
    seed: int = Field(default=0, description="Seed of sampling")
    max_failed_share: float = Field(
        default=0.05, ge=0, le=1, description="The step fails when more rows than this have no output",
        json_schema_extra=_RUNTIME,
    )  # fmt: skip

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
    max_failed_share: float = Field(
        default=0.05, ge=0, le=1, description="The step fails when more of its rows than this have no output",
        json_schema_extra=_RUNTIME,
    )  # fmt: skip


class JudgeModelConfig(Section):
    """One judge of the panel."""

    model: ModelConfig = Field(
        title="Judge model", description="Judges. On a server elsewhere, `base` may be a name that only it knows"
    )
    engine: EngineConfig | None = Field(default=None, description="What runs it; null: the recipe's engine")


class AuditConfig(Section):
    """Probes of known truth that the LLM judges along with the answers: what its `accept` is worth."""

    n_probes: int = Field(default=200, ge=0, description="Probes, half of them acceptable; 0: no audit")
    min_precision: float | None = Field(
        default=None, gt=0, le=1, description="Least share of right ones among the accepted probes; null: only shown"
    )
    below: Literal["stop", "gold"] = Field(
        default="stop",
        description="Below min_precision. stop: the step fails; gold: train on gold where the LLM accepts",
    )
    seed: int = Field(default=0, description="Seed of the draw")

    @model_validator(mode="after")
    def _only_what_is_read(self) -> AuditConfig:
        unread = ["min_precision", "below", "seed"] if self.n_probes == 0 else []
        if self.min_precision is None:
            unread.append("below")
        for name in unread:
            if getattr(self, name) != type(self).model_fields[name].default:
                why = "with n_probes 0" if self.n_probes == 0 else "without min_precision"
                raise ValueError(f"{name} has no effect {why}. Remove it.")
        return self


class LlmJudgeConfig(Section):
    """The language models that judge what no rule decides."""

    judges: tuple[JudgeModelConfig, ...] = Field(min_length=1, description="The panel: one judge or several")
    rubric: str | None = Field(default=None, description="Rubric: a shipped name or a file; null: by task")
    verdict_by: Literal["choice", "text"] = Field(
        default="choice", description="choice: one of two words, with its probability; text: read from free text"
    )
    reasoning: bool = Field(default=False, description="Let a judge reason before its verdict")
    max_reasoning_tokens: int = Field(default=512, gt=0, description="Longest reasoning")
    repeats: int = Field(default=1, gt=0, description="Times each judge is asked; more than one needs a temperature")
    temperature: float = Field(default=0.0, ge=0, description="Of the reasoning, or of a verdict in free text")
    combine: Literal["mean", "majority"] = Field(
        default="mean", description="Several opinions: the mean of their probabilities, or the majority of verdicts"
    )
    threshold: float = Field(default=0.5, gt=0, le=1, description="Accept from this probability of accept on")
    seed: int = Field(default=0, description="Seed of sampling")
    max_unjudged_share: float = Field(
        default=0.05, ge=0, le=1, description="The step fails when the LLM leaves more than this of its rows undecided",
        json_schema_extra=_RUNTIME,
    )  # fmt: skip
    audit: AuditConfig = Field(default=AuditConfig(), title="Audit", description="What the verdicts are worth")

    @property
    def n_opinions(self) -> int:
        """Verdicts on each answer."""
        return len(self.judges) * self.repeats

    @model_validator(mode="after")
    def _only_what_is_read(self) -> LlmJudgeConfig:
        for name, why in self._unread().items():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect {why}. Remove it.")
        if any(judge in self.judges[:i] for i, judge in enumerate(self.judges)):
            raise ValueError("two judges are the same and would say the same. For several samples, set repeats.")
        return self

    def _unread(self) -> dict[str, str]:
        """Fields that nothing reads, with the reason."""
        unread: dict[str, str] = {}
        if not self.reasoning:
            unread["max_reasoning_tokens"] = "without reasoning"
        if self.n_opinions == 1:
            unread["combine"] = "with one opinion"
        if self.verdict_by == "text" and (self.n_opinions == 1 or self.combine == "majority"):
            unread["threshold"] = "where verdicts are read from text"
        if self.temperature == 0:
            unread["repeats"] = "with temperature 0: each would say the same"
            unread["seed"] = "with temperature 0"
        if self.verdict_by == "choice" and not self.reasoning:
            unread["temperature"] = "where probabilities are read and nothing is sampled"
        return unread


class JudgeConfig(Section):
    """Which of the base model's answers count as acceptable: rules first, then language models."""

    contains_gold: bool = Field(
        default=True, description="Accept an answer that contains a gold answer, word for word, and no known wrong one"
    )
    max_extra_words: int = Field(default=40, ge=0, description="Longest answer, in words beyond the gold, that may")
    min_token_recall: float | None = Field(
        default=None, gt=0, le=1, description="Accept at this token recall of a gold answer; null: leave undecided"
    )
    undecided: Literal["unjudged", "reject"] = Field(
        default="unjudged", description="What becomes of an answer that no rule decides, without an LLM"
    )
    llm: LlmJudgeConfig | None = Field(
        default=None, title="LLM", description="Judges what no rule decides; null: rules alone"
    )

    @model_validator(mode="after")
    def _one_decides(self) -> JudgeConfig:
        if self.llm is not None and self.undecided != "unjudged":
            raise ValueError("undecided has no effect with llm, which decides what no rule does. Remove it.")
        return self


class AbstentionConfig(Section):
    """What a refusal looks like, to the judge and to the metrics alike."""

    phrases: tuple[str, ...] = Field(
        default=(
            "cannot find", "can't find", "could not find", "does not say", "doesn't say", "not stated", "not mentioned",
            "does not mention", "doesn't mention", "does not contain", "doesn't contain", "does not provide",
            "doesn't provide", "unanswerable", "cannot answer", "can't answer", "not enough information",
            "no information", "i don't know", "i do not know", "cannot be determined", "is not in the",
        ),
        min_length=1, description="Phrases that mark an answer as a refusal",
    )  # fmt: skip


class TrainConfig(Section):
    """LoRA fine-tuning. Defaults follow the literature (arXiv 2405.09673: alpha = 2r, all linear layers)."""

    learning_rate: float = Field(default=2e-4, gt=0, description="Peak learning rate")
    epochs: float = Field(default=2.0, gt=0, description="Passes over the training rows")
    batch_size: int = Field(default=16, gt=0, description="Rows an optimiser step, over all devices")
    micro_batch_size: int = Field(default=16, gt=0, description="Rows a forward pass; the rest is accumulated")
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
    packing: bool = Field(default=False, description="Pack rows into full sequences")
    gradient_checkpointing: bool = Field(default=False, description="Trade time for memory")
    load_in_4bit: bool = Field(default=False, description="QLoRA; needs CUDA and bitsandbytes")
    checkpoint_steps: int = Field(
        default=100, gt=0, description="Steps between checkpoints", json_schema_extra=_RUNTIME
    )


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


class EvaluateConfig(Section):
    """What base and arms are measured on, under identical settings."""

    benchmarks: tuple[str, ...] = Field(
        default=("mmlu", "truthfulqa_mc2", "gsm8k", "hellaswag"),
        description="lm-evaluation-harness tasks, `lab`, or YAML files of your own",
    )
    limit: int | None = Field(default=None, gt=0, description="Items a benchmark; null: all")
    num_fewshot: int | None = Field(default=None, ge=0, description="Shots; null: each task's default")
    chat_template: bool = Field(default=True, description="Put benchmark prompts through the chat template")
    max_new_tokens: int = Field(default=256, gt=0, description="Longest answer to a task question")
    max_task_rows: int | None = Field(default=None, gt=0, description="Rows of each task test split; null: all")
    benchmark_batch_size: int = Field(default=64, gt=0, description="Items a batch in lm-evaluation-harness")
    seed: int = Field(default=1234, description="Seed of few-shot draws")


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


class ExecutionConfig(Section):
    """Where and how wide the steps run."""

    workers: int = Field(
        default=1, gt=0, description="Steps that may run at once; on one GPU, one", json_schema_extra=_RUNTIME
    )
    threads: int | None = Field(
        default=None, gt=0, description="CPU threads a step; null: all", json_schema_extra=_RUNTIME
    )
    steps: Literal["inline", "deployments"] = Field(
        default="inline",
        description="inline: all on the machine of the run; deployments: each step on the work pool it is deployed to",
        json_schema_extra=_RUNTIME,
    )

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
    rewrite: RewriteConfig = Field(
        default=RewriteConfig(), title="Rewrite", description="The base model's rewrites of the golds"
    )
    judge: JudgeConfig = Field(default=JudgeConfig(), title="Judge", description="Which answers are acceptable")
    abstention: AbstentionConfig = Field(
        default=AbstentionConfig(), title="Abstention", description="What a refusal looks like"
    )
    train: TrainConfig = Field(default=TrainConfig(), title="Train", description="LoRA fine-tuning")
    arms: tuple[ArmConfig, ...] = Field(
        default=(ArmConfig(name="sft", policy="gold"), ArmConfig(name="ssr", policy="ssr")),
        min_length=1, title="Arms", description="What is compared",
    )  # fmt: skip
    evaluate: EvaluateConfig = Field(default=EvaluateConfig(), title="Evaluate", description="What is measured")
    promotion: PromotionConfig | None = Field(
        default=None, title="Promotion", description="Which adapter `current` points to; null: nothing is promoted"
    )
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
            for name, field in RewriteConfig.model_fields.items():
                if getattr(self.rewrite, name) != field.default:
                    raise ValueError(
                        f"rewrite.{name} has no effect without an arm of policy s3ft or rewrite_all. Remove it."
                    )
        choosing = [arm.name for arm in self.arms if arm.policy == "min_nll"]
        if choosing and self.generate.n_samples == 1:
            raise ValueError(
                f"arm {choosing[0]}: policy min_nll chooses among several answers; with one it is ssr. "
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
        if not abstains(self.data.refusal, self.abstention.phrases):
            raise ValueError(
                f"data.refusal={self.data.refusal!r} holds no phrase of abstention.phrases: right refusals would be "
                "scored as wrong answers. Add a phrase of it."
            )
        return self

    def reads(self, table: str) -> bool:
        """Whether the policy of some arm reads this table beside examples, outputs and verdicts."""
        return any(table in arm.select_config().reads() for arm in self.arms)

    def rewrites_all(self) -> bool:
        """Whether every gold is rewritten, or only those of examples without an accepted answer."""
        return any(arm.policy == "rewrite_all" for arm in self.arms)


Override = Annotated[str, "a.b=c"]


def load_recipe(path: Path, overrides: Iterable[Override] = ()) -> RunConfig:
    """Read a recipe file and apply `--set` overrides.

    Raises:
        ConfigError: The file is missing or not YAML, or a key or value is wrong; the message names the nearest
            right key.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe. `ssr recipes` lists the shipped ones.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of sections, found {type(raw).__name__}")
    raw.setdefault("name", path.stem)
    for override in overrides:
        _apply(raw, override)
    return parse_recipe(raw, where=str(path))


def parse_recipe(raw: dict[str, Any], *, where: str) -> RunConfig:  # Any: YAML values, checked here
    """Check a recipe given as plain values."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {_explain(problem)}" for problem in error.errors())) from error


def _apply(raw: dict[str, Any], override: Override) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: write it as section.key=value")
    *parents, last = key.split(".")
    node: Any = raw  # Any: walks through YAML values
    for parent in parents:
        node = node[_index(node, parent, override)] if isinstance(node, list) else node.setdefault(parent, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {override}: {parent} is a value, it has nothing below it")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: not a YAML value: {error}") from error
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    else:
        node[last] = value


def _index(node: list[Any], key: str, override: Override) -> int:
    if not key.isdigit() or int(key) >= len(node):
        raise ConfigError(f"--set {override}: {key} is not a place in a list of {len(node)}")
    return int(key)


def _explain(problem: Any) -> str:  # Any: pydantic's ErrorDetails, whose context is untyped
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"][:-1])
        nearest = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known here: {', '.join(known)}"
        return f"unknown key {place!r}: {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    shown = repr(problem["input"])
    return f"{place or 'recipe'}: {message}" + (f" (found {shown})" if len(shown) < 80 else "")


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for part in location:
        if isinstance(part, int):
            continue
        annotation: Any = model.model_fields[part].annotation  # Any: a typing construct
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)
