"""What is left to read after a run: a summary on disk and a table on the screen."""

from foveal.report.summary import summary_table, versions, write_summary

__all__ = ["summary_table", "versions", "write_summary"]
