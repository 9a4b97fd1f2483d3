"""Scores -> the decision whether an adapter is promoted."""

from tasks.promotion.step import promote

__all__ = ["promote"]
