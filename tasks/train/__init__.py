"""Targets -> LoRA adapter, with TRL and PEFT, in a process of its own."""

from tasks.train.step import train

__all__ = ["train"]
