"""The public names of the report, see `autotimm/__init__.pyi`."""

from .compare_page import compare_runs as compare_runs
from .page import write_report as write_report
from .written_page import REPORT as REPORT
from .written_page import Report as Report
