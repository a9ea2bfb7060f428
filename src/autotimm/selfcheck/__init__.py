"""Is this set-up reproducible, the user's own code included? Short trainings that vary one thing each are compared.

What must not matter (workers, validation, hash seed, a killed process) has to leave the same ledger, line by line. What
must matter (the seed of a stream) has to change what it is there for and nothing else. Each training runs in a process
of its own or in one that several share, see :mod:`autotimm.selfcheck.variations`.

Example:
    >>> from autotimm.selfcheck import selfcheck
    >>> report = selfcheck(model="my_models.MyTask")  # doctest: +SKIP
    >>> report.passed  # doctest: +SKIP
    True
"""

from autotimm.selfcheck.check import selfcheck
from autotimm.selfcheck.verdicts import Report, Result

__all__ = ["Report", "Result", "selfcheck"]
