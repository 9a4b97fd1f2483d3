"""Files, S3, the Hub or the lab -> examples: one table whatever the source looks like.

Read `step.py` first: it is the whole step in order. Not covered: anything a model says about an example.
"""

from tasks.ingest.step import ingest

__all__ = ["ingest"]
