"""Names and numbers that several parts share. Nothing is imported here."""

__all__ = ["IGNORE_INDEX", "STREAMS", "TASKS"]

STREAMS = ("split", "init", "order", "augment", "step", "eval")
"""Every named random stream that decides something of a run, in the order in which a run first draws from it."""

TASKS = ("classification", "detection", "instance", "segmentation")
"""What can be learned, as ``--task`` names it."""

IGNORE_INDEX = 255
"""The value of unknown pixels in masks, which are neither learned from nor measured."""
