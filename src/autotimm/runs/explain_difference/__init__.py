"""Confirming a cause: a run is made again with one factor at a time set back, until the other's bits come back.

:mod:`~autotimm.runs.explain_difference.partial_replay` says what can be set back, :mod:`~autotimm.runs.explain_difference.partial_replay` replays up to the line that
differs, :mod:`~autotimm.runs.explain_difference.operators` records the operators of one step, :mod:`~autotimm.runs.explain_difference.confirm` judges.
"""

from autotimm.runs.explain_difference.confirm import confirm_difference, confirm_replay

__all__ = ["confirm_difference", "confirm_replay"]
