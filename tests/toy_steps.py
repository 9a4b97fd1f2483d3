"""Runs one step of the pipeline on toy inputs, in a process that may kill itself half-way."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
from pathlib import Path

from tasks import asking
from tasks.artifacts import paid_rows
from tasks.artifacts.store import open_store
from tasks.config import (
    AbstentionConfig,
    DataConfig,
    EngineConfig,
    GenerateConfig,
    JudgeConfig,
    ModelConfig,
    RewriteConfig,
    SelectConfig,
    SourceConfig,
    TrainConfig,
)
from tasks.generate import generate, likelihood, rewrite
from tasks.ingest import ingest
from tasks.judge import judge
from tasks.running import progress
from tasks.running.step import Planned, Step
from tasks.selection import select
from tasks.train import train


def planned(model: Path, n_rows: int) -> dict[str, Planned]:
    """The steps from ingest to train over rows of the lab, and those that only some policies need."""
    source = SourceConfig(name="lab", reader="lab", task="grounded_qa")
    base = ModelConfig(base=str(model))
    examples = here(ingest).plan(config=DataConfig(sources=(source,), lab_rows=n_rows))
    config = GenerateConfig(max_new_tokens=4)
    engine = EngineConfig(batch_tokens=600)
    outputs = here(generate).plan(model=base, engine=engine, config=config, examples=examples)
    verdicts = here(judge).plan(
        config=JudgeConfig(), engine=engine, abstention=AbstentionConfig(), examples=examples, outputs=outputs
    )
    targets = here(select).plan(
        config=SelectConfig(policy="gold"), examples=examples, outputs=outputs, verdicts=verdicts
    )
    training = TrainConfig(epochs=1, batch_size=4, micro_batch_size=4, lora_rank=4, max_length=256, checkpoint_steps=3)
    adapter = here(train).plan(model=base, config=training, targets=targets)
    tables = {"examples": examples, "outputs": outputs, "verdicts": verdicts}
    rewriting = RewriteConfig(max_new_tokens=4)
    rewrites = here(rewrite).plan(model=base, engine=engine, config=rewriting, **tables)
    likelihoods = here(likelihood).plan(model=base, engine=engine, config=config, **tables)
    return {
        "ingest": examples, "generate": outputs, "judge": verdicts, "select": targets, "train": adapter,
        "rewrite": rewrites, "likelihood": likelihoods,
    }  # fmt: skip


def chain_to(name: str, steps: dict[str, Planned]) -> list[Planned]:
    """A step with all that it needs, in the order to run them."""
    needed = {steps[name].ref["fingerprint"]}
    for one in reversed(steps.values()):
        if one.ref["fingerprint"] in needed:
            needed |= {ref["fingerprint"] for ref in one.inputs.values()}
    return [one for one in steps.values() if one.ref["fingerprint"] in needed]


def here(step: Step) -> Step:
    """The step without a process of its own, so that a kill of this process is a kill of its body."""
    return dataclasses.replace(step, launcher=None)


class KillAfter:
    """A listener that ends this process the hard way."""

    def __init__(self, label: str, n_calls: int) -> None:
        self.label, self.left = label, n_calls

    def progress(self, label: str, done: int, total: int, detail: str) -> None:
        if label == self.label:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def started(self, label: str) -> None: ...
    def finished(self, label: str, counts: dict[str, int], seconds: float) -> None: ...
    def reused(self, label: str, counts: dict[str, int]) -> None: ...


# A process that has imported these is forked for each run: to import them takes seconds.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    ["torch", "transformers", "datasets", "accelerate", "peft", "trl.trainer.sft_trainer"]
)


def run_until(store: Path | str, model: Path, step: str, *, kill_after: int = 0, n_rows: int = 60) -> int:
    """Run the steps up to `step` in a process of their own; its exit code (-9 when it was killed).

    Args:
        kill_after: The process kills itself after so many calls that report progress of the step; 0: never.
    """
    arguments = (dict(os.environ), str(store), model, step, kill_after, n_rows)
    process = _PROCESSES.Process(target=_run_until, args=arguments)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _run_until(env: dict[str, str], store: str, model: Path, step: str, kill_after: int, n_rows: int) -> None:
    os.environ |= env
    paid_rows.PART_SECONDS = 0  # a part after every row
    asking.PROGRESS_SECONDS = -1  # and a progress report
    if kill_after:
        progress.listen(KillAfter(step, kill_after))
    opened = open_store(store)
    for one in chain_to(step, planned(model, n_rows)):
        one.execute(opened)
