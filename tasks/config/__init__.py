"""The recipe of a run: one frozen section per step, checked before anything is read or a GPU is touched.

`recipe` is the whole, with what must fit between sections; `reading` makes one of a file. Field descriptions are the
labels of the form in the Prefect UI.
"""

from tasks.config.data import DataConfig, FieldsConfig, ReaderName, SourceConfig, UnanswerableConfig
from tasks.config.evaluate import EvaluateConfig, PromotionConfig, ReportConfig
from tasks.config.generate import GenerateConfig, RewriteConfig
from tasks.config.judge import AbstentionConfig, AuditConfig, JudgeConfig, JudgeModelConfig, LlmJudgeConfig
from tasks.config.model import EngineConfig, ModelConfig
from tasks.config.reading import Override, load_recipe, parse_recipe
from tasks.config.recipe import ExecutionConfig, RunConfig
from tasks.config.section import Section
from tasks.config.train import ArmConfig, PolicyName, SelectConfig, TrainConfig
from tasks.readers.registry import Task

__all__ = [
    "AbstentionConfig", "ArmConfig", "AuditConfig", "DataConfig", "EngineConfig", "EvaluateConfig", "ExecutionConfig",
    "FieldsConfig", "GenerateConfig", "JudgeConfig", "JudgeModelConfig", "LlmJudgeConfig", "ModelConfig", "Override",
    "PolicyName", "PromotionConfig", "ReaderName", "ReportConfig", "RewriteConfig", "RunConfig", "Section",
    "SelectConfig", "SourceConfig", "Task", "TrainConfig", "UnanswerableConfig", "load_recipe", "parse_recipe",
]  # fmt: skip
