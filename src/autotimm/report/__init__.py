"""The report of a run: one page for people, made of the files of the run.

It is derived: it can be made again at any time, and no verdict depends on it.
"""

from autotimm.report.compare_page import compare_runs
from autotimm.report.page import REPORT, Report, write_report

__all__ = ["REPORT", "Report", "compare_runs", "write_report"]
