"""The sections on what was trained on, and how it went: verdicts, targets, losses, examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tasks.report.blocks import Block, Cell, Chart, Paragraph, SideBySide, Table
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
        [
            Cell(row.kind), Cell(row.answerable),
            Cell(percent(row.rate.value), interval(row.rate.low, row.rate.high, sign=False)),
            Cell(percent(row.coverage)), Cell(count(row.accept)), Cell(count(row.reject)), Cell(count(row.unjudged)),
        ]
        for row in judged.acceptance
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
        [Cell(listed(mix.arms)), *(Cell(count(mix.counts[kind]), _part(mix.counts, kind)) for kind in mix.counts)]
        for mix in judged.mixes
    ]
    yield Table(["Arms", "Self", "Rewrite", "Gold"], mix_rows, "Training rows by the kind of their target.", prose=True)
    reason_rows = [
        [Cell(r.kind), Cell(r.verdict), Cell(r.decided_by or MISSING), Cell(r.reason), Cell(count(r.n))]
        for r in judged.reasons
    ]
    more = (
        f" The {len(judged.reasons)} most frequent of {judged.n_reasons:,}."
        if judged.n_reasons > len(reason_rows)
        else ""
    )
    yield Table(
        ["Output", "Verdict", "Decided by", "Reason", "Outputs"], reason_rows,
        f"Which rule or judge decided, and why.{more}", folded="Reasons of the verdicts",
        prose=True,
    )  # fmt: skip
    choices = [
        [Cell(listed(mix.arms)), Cell(kind), Cell(why), Cell(count(n))]
        for mix in judged.mixes
        for kind, why, n in mix.reasons
    ]
    yield Table(
        ["Arms", "Target", "Reason", "Rows"],
        choices,
        "Why each target was chosen.",
        folded="Reasons of the targets",
        prose=True,
    )
    yield from audit_blocks(found)


def _part(counts: dict[str, int], kind: str) -> str:
    total = sum(counts.values())
    return percent(counts[kind] / total) if total else ""


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
        rows.append([Cell(curve.arm), *(Cell(text) for text in (*settings, count(curve.n_steps), *losses))])
    options = [option.replace("_", " ").capitalize() for option in found.measured.options]
    yield Table(
        ["Arm", *options, "Steps", "First loss", "Last loss"],
        rows,
        "The training settings of each arm, and the two ends of its loss curve.",
    )


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
