"""What papers report, for orientation. None of it was measured by this project; the report says so beside each."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """One figure of a paper; numbers as printed there, None where it gives none."""

    figure: str
    base: str | None
    sft: str | None
    ssr: str | None
    source: str


PUBLISHED = (
    Published(
        "average relative change on MMLU, TruthfulQA, GSM8K, HellaSwag, trained on MultiDoc2Dial",
        "0 %", "-16.7 %", "-2.3 %", "arXiv 2409.04787, table 6",
    ),
    Published("modified recall on Natural Questions", "49.3", "71.2", "74.7", "arXiv 2409.04787, table 3"),
    Published("modified recall on MultiDoc2Dial", None, None, "65.6", "arXiv 2409.04787, table 3"),
)  # fmt: skip
