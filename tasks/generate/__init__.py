"""Examples -> outputs: the base model answers every training prompt, and no row is ever paid for twice."""

from tasks.generate.step import count_missing, generate

__all__ = ["count_missing", "generate"]
