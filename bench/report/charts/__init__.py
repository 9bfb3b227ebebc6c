"""The charts of the page, as Vega-Lite specifications made with Altair, which is imported when a chart is made."""

from bench.report.bars import Bar, BarGroup

__all__ = ["Bar", "BarGroup"]  # drawn by the page of the kernels
