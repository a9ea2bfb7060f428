"""Verify stretches of a run: a few steps from some of its checkpoints, on hardware that need not be that of the run.

Rounding differs from machine to machine, and training amplifies it without bound. From a recorded checkpoint a few
steps stay close together. So stretches are replayed here as the run says, and once more with other thread counts and
orders of summation, which shows how far rounding alone leads; what was recorded must be no farther away.
"""

from autotimm.runs.stretches.stretch_verdict import verify_stretches

__all__ = ["verify_stretches"]
