"""The report: findings and records as a self-contained page, a Markdown file and a JSON file. It computes nothing.

Public: ``render`` (the three files), ``terminal_tables`` (own and published records), ``terminal_table`` (findings).
"""

from bench.report.page import render
from bench.report.terminal import terminal_table, terminal_tables

__all__ = ["render", "terminal_table", "terminal_tables"]
