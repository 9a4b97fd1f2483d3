"""The sections on what was trained on, and how it went: verdicts, targets, losses, examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tasks.report.blocks import Block, Cell, Chart, Paragraph, SideBySide, Table, row
from tasks.report.section_audit import audit_blocks
from tasks.wording import MISSING, count, interval, level, listed, percent, setting

if TYPE_CHECKING:
    from tasks.report.findings import Findings
    from tasks.report.verdicts_and_targets import Example


def judge_and_targets(found: Findings) -> Iterator[Block]:
    """Acceptance rates, the mix of targets of each arm, the reasons of verdicts and targets, and the judge's audit."""
    from tasks.report import charts

    judged = found.judged
    rows = [
        row(of.kind, of.answerable, Cell(percent(of.rate.value), interval(of.rate.low, of.rate.high, sign=False)),
            percent(of.coverage), count(of.accept), count(of.reject), count(of.unjudged))
        for of in judged.acceptance
    ]  # fmt: skip
    yield Table(
        ["Output", "Examples", "Acceptance rate", "Coverage", "Accept", "Reject", "Unjudged"], rows,
        "Acceptance rate: the share of judged outputs that were accepted, with Wilson's "
        f"{level(found.confidence)} interval. Coverage: the share of outputs that were judged. For an unjudged output, "
        "the gold answer is trained on. With a rate near 0 % SSR is SFT, with one near 100 % it teaches nothing.",
    )  # fmt: skip
    if svg := charts.target_mix(judged.mixes):
        yield Chart(svg, "Whose words each arm was trained on. Arms that differ in training alone share a bar (+n).")
    mix_rows = [
        row(
            listed(mix.arms),
            *(Cell(count(n), percent(n / mix.n_rows) if mix.n_rows else "") for n in mix.counts.values()),
        )
        for mix in judged.mixes
    ]
    yield Table(["Arms", "Self", "Rewrite", "Gold"], mix_rows, "Training rows by the kind of their target.", prose=True)
    reasons = [row(r.kind, r.verdict, r.decided_by or MISSING, r.reason, count(r.n)) for r in judged.reasons]
    is_cut = judged.n_reasons > len(reasons)
    more = f" The {len(reasons)} most frequent of {judged.n_reasons:,}." if is_cut else ""
    yield Table(
        ["Output", "Verdict", "Decided by", "Reason", "Outputs"], reasons,
        f"Which rule or judge decided, and why.{more}", folded="Reasons of the verdicts", prose=True,
    )  # fmt: skip
    choices = [row(listed(mix.arms), kind, why, count(n)) for mix in judged.mixes for kind, why, n in mix.reasons]
    yield Table(
        ["Arms", "Target", "Reason", "Rows"], choices, "Why each target was chosen.", folded="Reasons of the targets",
        prose=True,
    )  # fmt: skip
    yield from audit_blocks(found)


def training(found: Findings) -> Iterator[Block]:
    """Loss curves, and the settings of every arm with its first and last loss."""
    from tasks.report import charts

    if svg := charts.loss_curves(found.curves, found.measured.arms):
        yield Chart(
            svg, "Training loss. Own outputs start lower, because the base already finds them probable; a lower loss "
            "does not mean a better model. A gap in a line is a loss that was not finite.",
        )  # fmt: skip
    arms = {arm.name: arm for arm in found.measured.arms}
    rows = []
    for curve in found.curves:
        ends = [curve.losses[0], curve.losses[-1]] if curve.losses else [None, None]
        arm = arms[curve.arm]
        settings = [setting(arm.training[option]) for option in found.measured.options]
        losses = [MISSING if loss is None else f"{loss:.3f}" for loss in ends]
        rows.append(row(curve.arm, *settings, count(curve.n_steps), *losses))
    options = [option.replace("_", " ").capitalize() for option in found.measured.options]
    about = "The training settings of each arm, and the two ends of its loss curve."
    yield Table(["Arm", *options, "Steps", "First loss", "Last loss"], rows, about)


def examples(found: Findings) -> Iterator[Block]:
    """The first examples of each verdict; nothing where `report.n_examples` is 0."""
    if found.judged.examples:
        yield Paragraph(
            "The first examples of each verdict in the order of their ids, so nobody chose them. Long texts are cut in "
            "the middle. A target is the answer that an arm was trained on."
        )
    yield from (_example(one) for one in found.judged.examples)


def _example(example: Example) -> SideBySide:
    decided = f"{example.verdict} by {example.decided_by}" if example.decided_by else example.verdict
    certain = "" if example.p_accept is None else f" (P(accept) {example.p_accept:.2f})"
    output = f"no output: {example.problem}" if example.output is None else example.output
    targets = [(f"target of {listed(t.arms)}", f"{t.target}\n[{t.target_type}: {t.reason}]") for t in example.targets]
    texts = [
        ("prompt", example.prompt), ("gold", "\n".join(example.golds)), (f"own {example.kind}", output),
        ("verdict", f"{decided}{certain}: {example.reason}"), *targets,
    ]  # fmt: skip
    return SideBySide(f"{example.verdict} · {example.kind} · {example.example_id[:12]}", texts)
