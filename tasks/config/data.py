"""Section `data`: the sources of examples, their columns and tasks, and which rows are held out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic.config import JsonDict

from tasks.config.section import RUNTIME, Section
from tasks.readers.registry import READERS, Task, reader_names, reader_of


def _list_readers(schema: JsonDict) -> None:
    schema["enum"] = [*reader_names()]


# A declared reader, by name. The choices are in the JSON schema, so that forms show a select.
ReaderName = Annotated[
    str, AfterValidator(lambda name: reader_of(name) and name), Field(json_schema_extra=_list_readers)
]
_READERS = "; ".join(f"{one.name}: {one.title} ({one.files})" for _, one in sorted(READERS.items()))


class FieldsConfig(Section):
    """The column for each part of a row. Dots reach into nested columns."""

    question: str = Field(default="question", description="Column with the question or instruction")
    answer: str = Field(default="answer", description="Column with the gold answer: a text, or a list of them")
    document: str | None = Field(default=None, description="Column with the document that contains the answer")
    messages: str | None = Field(default=None, description="Column with a chat; replaces question and document")
    incorrect: str | None = Field(default=None, description="Column with answers known to be wrong")
    answerable: str | None = Field(default=None, description="Column that is false where the document has no answer")
    group: str | None = Field(default=None, description="Column that names what a row belongs to, such as its document")


class UnanswerableConfig(Section):
    """Make unanswerable questions for a dataset without any: a question beside a document without its answer."""

    share: float = Field(default=0.4, gt=0, lt=1, description="Share of unanswerable rows after building")
    seed: int = Field(default=0, description="Seed of the draw")


class SourceConfig(Section):
    """A source of examples."""

    name: str = Field(default="data", pattern=r"^[a-z0-9][a-z0-9_-]*$", description="Short name, shown in the report")
    path: str | None = Field(
        default=None, description="File, folder, glob or s3:// of JSONL, JSON, CSV or Parquet",
        json_schema_extra=RUNTIME,  # the digest of the content is part of the fingerprint instead
    )  # fmt: skip
    hub: str | None = Field(default=None, description="Dataset id on the Hugging Face Hub")
    hub_config: str | None = Field(default=None, description="Configuration of the Hub dataset")
    hub_split: str = Field(default="train", description="Split of the Hub dataset")
    revision: str | None = Field(default=None, description="Hub revision; a commit id pins it")
    reader: ReaderName = Field(default="auto", description=f"Format of the rows. auto: as rows; {_READERS}")
    documents: str | None = Field(default=None, json_schema_extra=RUNTIME)
    """MultiDoc2Dial: the documents file"""
    fields: FieldsConfig = Field(default=FieldsConfig(), title="Columns", description="Which column holds what")
    task: Task = Field(default="open", description="What a row asks for; decides prompt, rules and metrics")
    split: Literal["auto", "train", "test"] = "auto"
    """auto: by content hash, `test_share` of the rows are held out"""
    domain: Literal["in", "out"] = Field(default="in", description="out: a test of transfer, never trained on")
    prompt: str | None = Field(default=None, description="Prompt template: a shipped name or a file; default by task")
    limit: int | None = Field(default=None, gt=0, description="Keep so many rows, chosen by content hash")
    unanswerable: UnanswerableConfig | None = Field(default=None, description="Build unanswerable questions")

    @model_validator(mode="after")
    def _one_origin(self) -> SourceConfig:
        if reader_of(self.reader).draws:
            return self
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either `path` or `hub`")
        if self.domain == "out" and self.split == "train":
            raise ValueError("an out-of-domain source is for testing: split must be test")
        return self


class DataConfig(Section):
    """The sources of examples, and which examples are held out."""

    sources: tuple[SourceConfig, ...] = Field(
        default=(SourceConfig(name="lab", reader="lab", task="grounded_qa"),), min_length=1, description="Datasets"
    )
    test_share: float = Field(default=0.2, gt=0, lt=1, description="Share held out where `split` is auto")
    refusal: str = "I cannot find this in the document."
    """Gold answer of an unanswerable question"""
    max_prompt_chars: int = Field(default=24_000, gt=0, description="Longer prompts are dropped and counted")
    lab_rows: int = Field(default=1600, gt=0, description="Lab only: training rows to draw")
    seed: int = Field(default=0, description="Lab only: seed of the draw")

    @model_validator(mode="after")
    def _lab_only(self) -> DataConfig:
        if not any(reader_of(source.reader).draws for source in self.sources):
            self.refuse_unread(["lab_rows", "seed"], "without a source whose reader is lab")
        return self
