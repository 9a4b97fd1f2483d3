"""Scores and manifests -> report.html, report.md, report.json."""

from tasks.report.step import report
from tasks.report.summary import summary_rows

__all__ = ["report", "summary_rows"]
