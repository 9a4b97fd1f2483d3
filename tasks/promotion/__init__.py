"""Scores -> the decision whether an adapter takes the place of the one that is promoted now."""

from tasks.promotion.step import promote

__all__ = ["promote"]
