"""Optimizers of timm and torch, recipes that choose their settings, and schedules that resume exactly."""

from autotimm.optim.build_optimizer import build_optimizer
from autotimm.optim.optimizers import admit_optimizer, find_optimizer
from autotimm.optim.recipe import OptimizerOptions, Recipe, choose_recipe, family
from autotimm.optim.schedule import SCHEDULES, ProgressLR, build_schedulers, factor

__all__ = [
    "SCHEDULES",
    "OptimizerOptions",
    "ProgressLR",
    "Recipe",
    "admit_optimizer",
    "build_optimizer",
    "build_schedulers",
    "choose_recipe",
    "factor",
    "family",
    "find_optimizer",
]
