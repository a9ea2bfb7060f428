"""Look at data before training: what is broken, suspicious or repeated, and what to do about it."""

from autotimm.inspection.data_finding import Case, Finding
from autotimm.inspection.inspection import Inspection, inspect_config, inspect_data

__all__ = ["Case", "Finding", "Inspection", "inspect_config", "inspect_data"]
