"""Studies: train one or two configurations with several seeds, and report the spread and their difference.

Example:
    >>> from autotimm.studies.statistics import summarize
    >>> summarize([0.80, 0.82, 0.84]).max
    0.84
"""

from autotimm.studies.run_study import Study, study, study_configs

__all__ = ["Study", "study", "study_configs"]
