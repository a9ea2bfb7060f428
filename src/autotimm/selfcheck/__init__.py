"""Check that a setup is reproducible, including the user's own code, by short trainings that vary one thing each.

Variations that must not matter (workers, validation, hash seed, a killed process) must leave the same ledger, line by
line. Another seed of a random stream must change what the stream decides, and nothing else. Trainings run in several
processes, see :mod:`autotimm.selfcheck.processes`.

Example:
    >>> from autotimm.selfcheck import selfcheck
    >>> report = selfcheck(model="my_models.MyTask")  # doctest: +SKIP
    >>> report.passed  # doctest: +SKIP
    True
"""

from autotimm.selfcheck.check import selfcheck
from autotimm.selfcheck.verdicts import Report, Result

__all__ = ["Report", "Result", "selfcheck"]
