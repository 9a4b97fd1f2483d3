"""The judges of a panel, the keys under which their replies are kept, and how opinions become a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tasks.artifacts.digest import digest_of
from tasks.artifacts.paid_rows import RowStore
from tasks.artifacts.store import Store
from tasks.config import EngineConfig, JudgeConfig, JudgeModelConfig, LlmJudgeConfig, ModelConfig
from tasks.engine_kinds import engine_kind
from tasks.judge.replies import STORED, Opinion
from tasks.judge.rubrics import Rubrics
from tasks.judge.rules import ACCEPT, REJECT, UNJUDGED
from tasks.models import model_digest

TABLE = "judgements"


class Judge(NamedTuple):
    """One judge of the panel and the row stores of its replies.

    Attributes:
        space: Digest of what a reply depends on apart from its prompt (weights, engine, sampling); part of row keys.
        rows: Its verdicts.
        reasonings: What it wrote before its verdicts; empty without reasoning.
    """

    model: ModelConfig
    engine: EngineConfig
    space: str
    rows: RowStore
    reasonings: RowStore


class PanelVerdict(NamedTuple):
    """The verdict of a panel on one answer.

    Attributes:
        p_accept: Mean probability of accept; None where it was not measured.
        score: The highest threshold at which the answer is still accepted; None where the panel is undecided.
        reason: A few words, always the same for the same cause.
    """

    verdict: str
    p_accept: float | None
    score: float | None
    reason: str


def panel(store: Store, config: LlmJudgeConfig, engine: EngineConfig, *, origin: str) -> list[Judge]:
    """The judges with their rows.

    Args:
        engine: The recipe's engine, for judges that have none of their own.
        origin: Fingerprint of the step that asks.
    """
    judges = []
    for judge in config.judges:
        runs_it = judge.engine or engine
        sampling = [config.temperature, config.seed, config.reasoning and config.max_reasoning_tokens]
        space = digest_of([_digest(judge, engine), judge.model.dtype, runs_it.answer_identity(), *sampling])[:32]
        spaces = [digest_of([space, what])[:32] for what in (config.verdict_by, "reasoning")]
        rows, reasonings = (RowStore(store, TABLE, one, STORED, origin=origin) for one in spaces)
        judges.append(Judge(judge.model, runs_it, space, rows, reasonings))
    return judges


def outside(*, config: JudgeConfig, engine: EngineConfig, **sections: object) -> dict[str, Any]:  # Any: JSON values
    """What enters the step from outside: the judges' weights and the rubrics' texts."""
    if config.llm is None:
        return {}
    return {
        "judges": [_digest(judge, engine) for judge in config.llm.judges],
        "rubrics": Rubrics(config.llm.rubric, reasoning=config.llm.reasoning).digests(),
    }


def _digest(judge: JudgeModelConfig, engine: EngineConfig) -> str:
    """Digest of the judge's weights. Of a model on a remote server only its name there is known: the digest of that."""
    runs_it = judge.engine or engine
    if engine_kind(runs_it.kind).loads_weights:
        return model_digest(judge.model)
    return digest_of(["served", runs_it.served_model or judge.model.base])


def decide(opinions: Sequence[Opinion], config: LlmJudgeConfig) -> PanelVerdict:
    """One verdict from all opinions on an answer.

    A mean needs every opinion; where one has no verdict, the answer is unjudged. A majority is more than half of all
    opinions, including those without a verdict; where neither side has one, the answer is unjudged.
    """
    values = [opinion.value for opinion in opinions if opinion.value is not None]
    measured = [opinion.p_accept for opinion in opinions if opinion.p_accept is not None]
    p_accept = sum(measured) / len(opinions) if len(measured) == len(opinions) else None
    missing = next((opinion.problem for opinion in opinions if opinion.value is None), None)
    if config.combine == "majority":
        return _majority(values, len(opinions), config.threshold, p_accept, missing)
    if missing is not None:
        return PanelVerdict(UNJUDGED, None, None, missing)
    score = sum(values) / len(values)
    probability = score if len(values) > 1 else p_accept  # a single verdict in words is not a probability
    if score >= config.threshold:
        return PanelVerdict(ACCEPT, probability, score, "the judge accepts")
    return PanelVerdict(REJECT, probability, score, "the judge rejects")


def _majority(
    values: list[float], n_opinions: int, threshold: float, p_accept: float | None, missing: str | None
) -> PanelVerdict:
    needed = n_opinions // 2 + 1
    # The answer is accepted at every threshold that the weakest vote of the majority reaches.
    score = sorted(values, reverse=True)[needed - 1] if len(values) >= needed else 0.0
    n_accept = sum(value >= threshold for value in values)
    if n_accept >= needed:
        return PanelVerdict(ACCEPT, p_accept, score, "most judges accept")
    if len(values) - n_accept >= needed:
        return PanelVerdict(REJECT, p_accept, score, "most judges reject")
    return PanelVerdict(UNJUDGED, p_accept, None, missing or "the judges are split")
