"""Examples -> outputs of the base model and their likelihoods: no row is ever paid for twice."""

from tasks.generate.likelihood import likelihood
from tasks.generate.paid import Needed
from tasks.generate.rewrite import Judged, count_rewrites, rewrite
from tasks.generate.step import count_missing, generate

__all__ = ["Judged", "Needed", "count_missing", "count_rewrites", "generate", "likelihood", "rewrite"]
