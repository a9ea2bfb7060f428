"""Floor 0: reproducibility. It knows tensors and files, and nothing of images, tasks or trainers."""

from autotimm.repro.cause import ManifestDifference, differences, likely_cause
from autotimm.repro.compare import Difference, first_difference, numbers
from autotimm.repro.digest import config_digest, file_digest, files_digest, state_digest, tensor_digest
from autotimm.repro.ledger import Ledger, read_ledger
from autotimm.repro.manifest import Manifest
from autotimm.repro.sampler import Draw, KeyedBatchSampler
from autotimm.repro.seed import seed_everything
from autotimm.repro.streams import RootSeed, generator, key, reseed, scope

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
