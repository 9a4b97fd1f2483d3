"""Examples -> outputs of the base model and their likelihoods. No row is paid for twice."""

from tasks.generate.likelihood import likelihood
from tasks.generate.rewrite import JudgedOutputs, count_rewrites, rewrite
from tasks.generate.step import count_answers, generate

__all__ = ["JudgedOutputs", "count_answers", "count_rewrites", "generate", "likelihood", "rewrite"]
