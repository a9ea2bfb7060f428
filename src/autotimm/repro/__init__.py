"""Reproducibility: seeds and named random streams; and, by name, the records of a run and their comparison.

The names of :mod:`autotimm.records` are loaded on first use: what draws random numbers stands below what keeps records.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from autotimm.repro.sampler import Draw, KeyedBatchSampler
from autotimm.repro.seed import seed_everything
from autotimm.repro.streams import RootSeed, generator, key, reseed, scope

if TYPE_CHECKING:
    from autotimm.records.causes import ManifestDifference, differences, likely_cause
    from autotimm.records.digest import config_digest, file_digest, files_digest, state_digest, tensor_digest
    from autotimm.records.ledger import Ledger, read_ledger
    from autotimm.records.ledger_diff import Difference, first_difference, numbers
    from autotimm.records.manifest import Manifest

_HOME = {
    "Difference": "ledger_diff",
    "Ledger": "ledger",
    "Manifest": "manifest",
    "ManifestDifference": "causes",
    "config_digest": "digest",
    "differences": "causes",
    "file_digest": "digest",
    "files_digest": "digest",
    "first_difference": "ledger_diff",
    "likely_cause": "causes",
    "numbers": "ledger_diff",
    "read_ledger": "ledger",
    "state_digest": "digest",
    "tensor_digest": "digest",
}

__all__ = [
    "Difference",
    "Draw",
    "KeyedBatchSampler",
    "Ledger",
    "Manifest",
    "ManifestDifference",
    "RootSeed",
    "config_digest",
    "differences",
    "file_digest",
    "files_digest",
    "first_difference",
    "generator",
    "key",
    "likely_cause",
    "numbers",
    "read_ledger",
    "reseed",
    "scope",
    "seed_everything",
    "state_digest",
    "tensor_digest",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    value = getattr(import_module(f"autotimm.records.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
