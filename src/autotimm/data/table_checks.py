"""The former place of :func:`autotimm.data.splits.own_sides`."""

from autotimm.data.splits import own_sides

__all__ = ["own_sides"]
