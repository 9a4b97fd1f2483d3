"""Files, S3, the Hub or the lab -> the table of examples, whatever the source looks like.

`step.py` is the whole step in order. The formats of datasets are in `tasks.readers`.
"""

from tasks.ingest.step import ingest

__all__ = ["ingest"]
