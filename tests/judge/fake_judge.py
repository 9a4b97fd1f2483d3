"""A judge for tests: an engine that reads the prompt of a rubric and answers by a rule of the test's own; and the judge
step over toy tables."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import toy

from tasks.artifacts.store import Store
from tasks.config import AbstentionConfig, EngineConfig, JudgeConfig
from tasks.engines import Reply, Request, Sampling
from tasks.judge import judge
from tasks.running.step import Planned


class Asked(NamedTuple):
    """What the judge is shown."""

    question: str
    golds: list[str]
    candidate: str
    model: str
    seed: int


Says = Callable[[Asked], "float | str | Reply | None"]


def read(prompt: str, model: str, seed: int) -> Asked:
    def fenced(tag: str) -> list[str]:
        return re.findall(rf"<{tag}>\n(.*?)\n</{tag}>", prompt, flags=re.DOTALL)

    return Asked(fenced("question")[0], fenced("gold"), fenced("candidate")[0], model, seed)


@dataclass
class FakeJudge:
    """Stands in for `open_engine`.

    Attributes:
        says: P(accept), a reply's text, or a whole reply.
        prompts: Messages of every request that was answered.
    """

    says: Says
    prompts: list[list[Any]] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)
    n_opened: int = 0

    @contextmanager
    def open(self, model: Any, config: Any, *, work: Any, adapter: Any = None) -> Iterator[Any]:
        self.n_opened += 1
        yield _Session(self, model.base)


@dataclass
class _Session:
    judge: FakeJudge
    model: str

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, *, done: Container[str] = ()
    ) -> Iterator[Reply]:
        for request in requests:
            if request.key in done:
                continue
            self.judge.prompts.append(request.messages)
            self.judge.samplings.append(sampling)
            yield self._reply(request, sampling)

    def _reply(self, request: Request, sampling: Sampling) -> Reply:
        said = self.judge.says(read(request.messages[0]["content"], self.model, request.seed))
        if isinstance(said, Reply):
            return said._replace(key=request.key)
        if isinstance(said, str) or said is None:
            return Reply(request.key, said or "", "stop", 10, 3)
        text = "accept" if said >= 0.5 else "reject"
        if not sampling.choices:
            return Reply(request.key, text, "stop", 10, 3)
        log = {"accept": math.log(max(said, 1e-9)), "reject": math.log(max(1 - said, 1e-9))}
        return Reply(request.key, text, "stop", 10, 1, choice_logprobs=log)


def plan(
    store: Store, examples: list[toy.Row], outputs: list[toy.Row], llm: dict[str, Any] | None = None, **config: Any
) -> Planned:
    """The step in this process, so that what a test replaces is replaced there, too."""
    if llm is not None:
        config["llm"] = {"judges": [{"model": {"base": "judge"}}], "audit": {"n_probes": 0}} | llm
    return dataclasses.replace(judge, launcher=None).plan(
        config=JudgeConfig.model_validate(config), engine=EngineConfig(), abstention=AbstentionConfig(),
        examples=toy.put(store, "examples", examples), outputs=toy.put(store, "outputs", outputs),
    )  # fmt: skip


def verdicts(store: Store, planned: Planned, *, force: bool = False) -> list[toy.Row]:
    path = store.fetch(planned.execute(store, force=force)) / "verdicts.parquet"
    return pq.read_table(path).to_pylist()
