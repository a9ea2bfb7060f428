"""Confirm a cause: replay a run with one factor at a time set back, until it has the bits of the other run.

``partial_replay`` replays up to the line that differs, ``operators`` records the operators of one step, and ``confirm``
judges.
"""

from autotimm.runs.explain_difference.confirm import confirm_difference, confirm_replay

__all__ = ["confirm_difference", "confirm_replay"]
