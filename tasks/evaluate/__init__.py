"""Adapter -> scores per item: the task by its own metrics, general skill by lm-evaluation-harness."""

from tasks.evaluate.benchmarks import check_benchmarks
from tasks.evaluate.measure_step import measure
from tasks.evaluate.step import evaluate

__all__ = ["check_benchmarks", "evaluate", "measure"]
