"""The options of ``fit``: one list for the command line, YAML, Python and the docs. Nothing here imports torch."""

from autotimm.config.aliases import meant
from autotimm.config.arguments import (
    Argument,
    argument_option,
    options_at,
    recorded_argument,
    silent_arguments,
    silent_names,
)
from autotimm.config.fit_config import COMMAND_LINE, FitConfig, defaults, options
from autotimm.config.option import Option
from autotimm.config.yaml import NESTED_KEYS, read_yaml, write_scalar

__all__ = [
    "Argument",
    "COMMAND_LINE",
    "NESTED_KEYS",
    "FitConfig",
    "Option",
    "argument_option",
    "defaults",
    "meant",
    "options",
    "options_at",
    "read_yaml",
    "recorded_argument",
    "silent_arguments",
    "silent_names",
    "write_scalar",
]
