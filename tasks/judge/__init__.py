"""Outputs -> verdicts: which of the model's own answers are good enough to train on."""

from tasks.judge.step import judge

__all__ = ["judge"]
