"""The select step: verdicts -> targets. The policies that it applies are declared in `tasks.policies`."""

from tasks.selection.step import select

__all__ = ["select"]
