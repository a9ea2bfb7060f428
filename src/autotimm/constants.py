"""Constants that several packages share. This module imports nothing."""

__all__ = [
    "CACHES",
    "CHECKS",
    "DECODINGS",
    "ENGINES",
    "IGNORE_INDEX",
    "LAUNCHERS",
    "RECIPES",
    "STREAMS",
    "TASKS",
    "VIEWS",
]

STREAMS = ("split", "init", "order", "augment", "step", "eval")
"""The named random streams, in the order in which a run first draws from them; see :mod:`autotimm.repro.streams`."""

TASKS = ("classification", "detection", "instance", "segmentation")
"""The values of ``--task``."""

IGNORE_INDEX = 255
"""The value of unlabeled pixels in segmentation masks. Losses and metrics ignore them."""

DECODINGS = ("reduced", "full")
"""How much of a JPEG is decoded: at the smallest scale that has the pixels the network needs, or all of it."""

CACHES = ("off", "auto", "disk", "ram")
"""Where decoded pictures are kept for later epochs and runs."""

ENGINES = ("lance", "litdata")
"""What packed data sets are held by; the name of each is that of its package and of our extra."""

CHECKS = ("auto", "full", "headers")
"""How image files are checked before training: decoded completely, or no further than their headers."""

RECIPES = ("auto", "plain", "probe")
"""How a network is trained: from a head that is fitted to its features, without one, or no further than that head."""

LAUNCHERS = ("local", "ray")
"""What starts the processes of a study or a verification: this machine, or a Ray cluster."""

VIEWS = ("flip", "multiscale")
"""The ways to look at an image more than once in a prediction: mirrored too, or in three sizes."""
