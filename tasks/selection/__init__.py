"""Verdicts -> targets: what each training row teaches, by policy."""

from tasks.selection.step import select

__all__ = ["select"]
