"""Floor 0: reproducibility. It knows tensors and files, and nothing of images, tasks or trainers."""

from autotimm.repro.digest import config_digest, file_digest, files_digest, state_digest, tensor_digest
from autotimm.repro.sampler import Draw, KeyedBatchSampler
from autotimm.repro.seed import seed_everything
from autotimm.repro.streams import generator, key, reseed, scope

__all__ = [
    "Draw",
    "KeyedBatchSampler",
    "config_digest",
    "file_digest",
    "files_digest",
    "generator",
    "key",
    "reseed",
    "scope",
    "seed_everything",
    "state_digest",
    "tensor_digest",
]
