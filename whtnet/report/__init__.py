"""The report: one page that shows all results, from the measurements in ``results/``."""

from whtnet.report.page import ReportError, build_report

__all__ = ["ReportError", "build_report"]
