"""Reproducibility: seeds, named random streams, the sampler built on them, and the records of a run.

Seeding alone is not enough: a different number of workers, an extra metric or a restart changes the result, since a
global generator hands out its numbers in the order in which code asks for them. Here, every random number that can
reach the weights is a function of the root seed, the name of a stream and a position in it:

- :mod:`autotimm.repro.streams` computes such numbers (:func:`key`, :func:`generator`) and puts code that reads a global
  generator on a stream (:func:`reseed`, :func:`scope`).
- :mod:`autotimm.repro.sampler` draws the order of the samples from a stream (:class:`KeyedBatchSampler`), by a
  permutation that is computed position by position (:mod:`autotimm.repro.permutation`).
- :mod:`autotimm.repro.seed` seeds the global generators and chooses deterministic kernels (:func:`seed_everything`).

The other names come from :mod:`autotimm.records` (ledger, manifest, digests, comparison). They are imported on first
use, since that package lies a layer above this one.
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

# The module of autotimm.records that defines each name.
_RECORDS_MODULE = {
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
    if name not in _RECORDS_MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    value = getattr(import_module(f"autotimm.records.{_RECORDS_MODULE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
