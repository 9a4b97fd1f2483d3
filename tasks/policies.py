"""The target policies: what each training row teaches the model. A policy is declared here, once.

A policy is a function of candidates: a table with one row per training example, whose columns are those of `CANDIDATE`.
`@target_policy` enters it into `POLICIES`, from which recipes, the form of a run, the select step and the report take
it. What a declaration lacks is an error at import. Whoever adds a policy edits this file and no other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from tasks.tables.aligned import accepted

# The columns of a candidate: those of the answer, then those of the tables that a policy may declare to read.
_OF_THE_ANSWER = {
    "example_id": pa.string(),
    "text": pa.string(),  # the answer that stands for the example; null: it has none, or it failed
    "verdict": pa.string(),
    "verdict_reason": pa.string(),
}
_OF_TABLES = {
    "rewrites": {
        "rewrite_text": pa.string(),  # null: no rewrite was asked for, or it failed
        "rewrite_verdict": pa.string(),
        "rewrite_verdict_reason": pa.string(),
    },
    "likelihoods": {
        "base_nll": pa.float64(),  # of the answer, in nats a token; null: not measured, or failed
        "gold_base_nll": pa.float64(),
    },
    "draw": {"drawn": pa.bool_()},  # one of as many answers as were accepted, drawn blindly among all answers
}
CANDIDATE = pa.schema(_OF_THE_ANSWER | _OF_TABLES["rewrites"] | _OF_TABLES["likelihoods"] | _OF_TABLES["draw"])
_INPUTS = {"rewrites": ("rewrites", "rewrite_verdicts"), "likelihoods": ("likelihoods",)}  # of the select step


class TargetChoice(NamedTuple):
    """What a policy decides for each candidate.

    Attributes:
        target_type: Which text is the target: self (the answer), rewrite or gold.
        reason: Why, for a person to read.
        kept: Whether the row is trained on; None: all are.
    """

    target_type: pa.ChunkedArray
    reason: pa.ChunkedArray
    kept: pa.ChunkedArray | None = None


Choose = Callable[[pa.Table], TargetChoice]


@dataclass(frozen=True)
class TargetPolicy:
    """A target policy, as it is declared.

    Attributes:
        name: As recipes write it.
        title: As people call it; reports show it.
        colour: The colour of its arms in the report's charts, as #rrggbb.
        description: What it teaches, in one line without a full stop.
        reads: What it reads beside examples, outputs and verdicts: rewrites, likelihoods, draw (the column `drawn`).
        rewrites_all: Whether it reads a rewrite of every gold, and not only of those without an accepted answer.
        ranks_answers: Whether it chooses among several accepted answers to an example.

    Raises:
        TypeError: A part of the declaration is missing or malformed; the message says which.
    """

    name: str
    choose: Choose
    title: str
    colour: str
    description: str
    reads: Collection[str]
    rewrites_all: bool
    ranks_answers: bool

    def __post_init__(self) -> None:
        forms = {"name": r"[a-z][a-z0-9_]*", "title": r"\w[\w -]*", "colour": r"#[0-9a-f]{6}", "description": r".*[^.]"}
        for field, form in forms.items():
            if not re.fullmatch(form, getattr(self, field)):
                raise TypeError(
                    f"target policy {self.name}: {field}={getattr(self, field)!r} does not match {form}. Change it."
                )
        if unknown := set(self.reads) - set(_OF_TABLES):
            raise TypeError(
                f"target policy {self.name}: reads={sorted(unknown)}: no such table. Known: {', '.join(_OF_TABLES)}."
            )

    @property
    def columns(self) -> list[str]:
        """The columns of a candidate that its function is given."""
        return [*_OF_THE_ANSWER, *(name for table in _OF_TABLES if table in self.reads for name in _OF_TABLES[table])]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of the select step that it reads beside examples, outputs and verdicts."""
        return tuple(name for table, names in _INPUTS.items() if table in self.reads for name in names)

    @property
    def arm_name(self) -> str:
        """The name of an arm that differs from others in its policy: sft for the title SFT, min_nll for min NLL."""
        return self.title.lower().replace(" ", "_")


POLICIES: dict[str, TargetPolicy] = {}


def target_policy(
    name: str, *, title: str, colour: str, description: str, reads: Collection[str] = (), rewrites_all: bool = False,
    ranks_answers: bool = False,
) -> Callable[[Choose], Choose]:  # fmt: skip
    """Declare the function below as a target policy. The parameters are the attributes of `TargetPolicy`.

    Raises:
        TypeError: As `TargetPolicy`, or another policy has this name, title or colour.
    """

    def declare(choose: Choose) -> Choose:
        policy = TargetPolicy(name, choose, title, colour, description, reads, rewrites_all, ranks_answers)
        for other in POLICIES.values():
            for field in ("name", "title", "colour"):
                if getattr(other, field) == getattr(policy, field):
                    raise TypeError(f"target policy {name}: policy {other.name} has the same {field}. Choose another.")
        POLICIES[name] = policy
        return choose

    return declare


def title_of(policy: str) -> str:
    """What people call a policy: SFT for gold."""
    return POLICIES[policy].title


def explained() -> str:
    """What each policy teaches, a sentence each, for those who choose one."""
    return " ".join(f"{policy.name}: {policy.description}." for policy in POLICIES.values())


def has_output(answers: pa.Table) -> pa.ChunkedArray:
    """Whether each answer can be trained on: it did not fail, and is not empty."""
    return pc.fill_null(pc.not_equal(answers.column("text"), ""), False)


def _rewrite_accepted(candidates: pa.Table) -> pa.ChunkedArray:
    return pc.fill_null(pc.equal(candidates.column("rewrite_verdict"), "accept"), False)


def _answer_reason(candidates: pa.Table) -> pa.ChunkedArray:
    verdict, reason = candidates.column("verdict"), candidates.column("verdict_reason")
    return pc.fill_null(pc.binary_join_element_wise(verdict, reason, ": "), "no output")


def _rewrite_reason(candidates: pa.Table) -> pa.ChunkedArray:
    verdict, reason = candidates.column("rewrite_verdict"), candidates.column("rewrite_verdict_reason")
    said = pc.binary_join_element_wise("rewrite ", verdict, "")
    return pc.fill_null(pc.binary_join_element_wise(said, reason, ": "), "no rewrite")


def _same(value: str, candidates: pa.Table) -> pa.ChunkedArray:
    return pa.chunked_array([pa.repeat(value, candidates.num_rows)])


@target_policy(
    "gold", title="SFT", colour="#d97706",
    description="the gold label everywhere, which is plain supervised fine-tuning",
)  # fmt: skip
def _gold(candidates: pa.Table) -> TargetChoice:
    return TargetChoice(_same("gold", candidates), _same("policy gold", candidates))


@target_policy(
    "ssr", title="SSR", colour="#3b82f6",
    description="the model's own answer where it was accepted, else the gold (arXiv 2409.04787)",
)  # fmt: skip
def _ssr(candidates: pa.Table) -> TargetChoice:
    return TargetChoice(pc.if_else(accepted(candidates), "self", "gold"), _answer_reason(candidates))


@target_policy(
    "s3ft", title="S3FT", colour="#a06ee1", reads=["rewrites"],
    description="as ssr, but the model's own rewrite of the gold, where accepted, goes before the gold "
    "(arXiv 2502.08130)",
)  # fmt: skip
def _s3ft(candidates: pa.Table) -> TargetChoice:
    own, rewritten = accepted(candidates), _rewrite_accepted(candidates)
    both = pc.binary_join_element_wise(_answer_reason(candidates), _rewrite_reason(candidates), "; ")
    return TargetChoice(
        pc.if_else(own, "self", pc.if_else(rewritten, "rewrite", "gold")),
        pc.if_else(own, _answer_reason(candidates), both),
    )


@target_policy(
    "self_only", title="self only", colour="#10a37f",
    description="the model's own answer, judged or not; rows without one are left out. A control",
)  # fmt: skip
def _self_only(candidates: pa.Table) -> TargetChoice:
    return TargetChoice(_same("self", candidates), _same("policy self_only", candidates), kept=has_output(candidates))


@target_policy(
    "rewrite_all", title="rewrite all", colour="#d6458b", reads=["rewrites"], rewrites_all=True,
    description="the model's own rewrite of the gold where it was accepted, else the gold (arXiv 2402.13669)",
)  # fmt: skip
def _rewrite_all(candidates: pa.Table) -> TargetChoice:
    return TargetChoice(pc.if_else(_rewrite_accepted(candidates), "rewrite", "gold"), _rewrite_reason(candidates))


@target_policy(
    "random_mix", title="random mix", colour="#8b8f98", reads=["draw"],
    description="as many own answers as ssr, drawn blindly among all. The control for the judge's part in ssr",
)  # fmt: skip
def _random_mix(candidates: pa.Table) -> TargetChoice:
    drawn = candidates.column("drawn")
    return TargetChoice(pc.if_else(drawn, "self", "gold"), pc.if_else(drawn, "drawn", "not drawn"))


@target_policy(
    "min_nll", title="min NLL", colour="#0ea5b7", reads=["likelihoods"], ranks_answers=True,
    description="as ssr, but of several accepted answers the one most probable under the base model (arXiv 2501.14315)",
)  # fmt: skip
def _min_nll(candidates: pa.Table) -> TargetChoice:
    # The likelihoods have ranked the answers before: a candidate has the best of them.
    own, reason = accepted(candidates), _answer_reason(candidates)
    measured = pc.if_else(pc.is_valid(candidates.column("base_nll")), "lowest base_nll", "base_nll unknown")
    ranked = pc.binary_join_element_wise(reason, measured, "; ")
    return TargetChoice(pc.if_else(own, "self", "gold"), pc.if_else(own, ranked, reason))
