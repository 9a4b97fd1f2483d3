"""Adapter -> scores per item: the task by its own metrics, general skill by lm-evaluation-harness."""

from tasks.evaluate.step import evaluate

__all__ = ["evaluate"]
