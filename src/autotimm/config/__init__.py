"""The options of ``fit``: one list for the command line, YAML, Python and the docs. Nothing here imports torch."""

from autotimm.config.arguments import (
    Argument,
    argument_of,
    argument_option,
    decided_by_recipe,
    names_of_recipe,
    options_at,
    recorded_argument,
    silent_arguments,
    silent_names,
)
from autotimm.config.fit_config import COMMAND_LINE, NETWORK_OPTIONS, FitConfig, defaults, options
from autotimm.config.option import Option, meant
from autotimm.config.record import read_yaml
from autotimm.config.yaml import NESTED_KEYS, write_scalar

__all__ = [
    "Argument",
    "COMMAND_LINE",
    "NESTED_KEYS",
    "NETWORK_OPTIONS",
    "FitConfig",
    "Option",
    "argument_of",
    "argument_option",
    "decided_by_recipe",
    "defaults",
    "meant",
    "names_of_recipe",
    "options",
    "options_at",
    "read_yaml",
    "recorded_argument",
    "silent_arguments",
    "silent_names",
    "write_scalar",
]
