"""The options of ``fit``: one list for the command line, YAML, Python and the docs. Nothing here imports torch."""

from autotimm.config.aliases import meant
from autotimm.config.fit_config import COMMAND_LINE, FitConfig, defaults, options
from autotimm.config.option import Option
from autotimm.config.yaml import NESTED_KEYS, read_yaml, write_scalar

__all__ = [
    "COMMAND_LINE",
    "NESTED_KEYS",
    "FitConfig",
    "Option",
    "defaults",
    "meant",
    "options",
    "read_yaml",
    "write_scalar",
]
