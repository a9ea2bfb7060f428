"""Confirming a cause: a run is made again with one factor at a time set back, until the other's bits come back.

:mod:`~autotimm.confirm.factors` says what can be set back, :mod:`~autotimm.confirm.play` replays up to the line that
differs, :mod:`~autotimm.confirm.operators` records the operators of one step, :mod:`~autotimm.confirm.cause` judges.
"""

from autotimm.confirm.cause import confirm_difference, confirm_replay

__all__ = ["confirm_difference", "confirm_replay"]
