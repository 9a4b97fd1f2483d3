"""Dataset readers: each turns the rows of one format into raw examples, and is declared once, with `@reader`.

A new reader is one new module in this folder, which is found by itself. `registry.py` says what a declaration holds.
Not here: how files are found and decoded (`tasks.ingest`).
"""

from importlib import import_module
from pkgutil import iter_modules

from tasks.readers.registry import (
    AUTO,
    TASKS,
    Dropped,
    Message,
    RawExample,
    RawRecord,
    Reader,
    ReaderInput,
    Task,
    reader,
    reader_names,
    reader_of,
)

__all__ = [
    "AUTO",
    "TASKS",
    "Dropped",
    "Message",
    "RawExample",
    "RawRecord",
    "Reader",
    "ReaderInput",
    "Task",
    "reader",
    "reader_names",
    "reader_of",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
