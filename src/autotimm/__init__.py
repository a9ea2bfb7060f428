"""autotimm: train vision models on timm backbones with PyTorch Lightning, in runs that can be verified bit for bit.

Every public name is loaded on first use, so that ``import autotimm`` costs milliseconds and the command line can
answer ``--help`` without loading torch.

Example:
    >>> import autotimm
    >>> autotimm.seed_everything(42)
    42
"""

import os
import sys

import lazy_loader

if "torch" not in sys.modules:
    # Read once, when torch is loaded; no bit depends on it. Threads that wait for others would spin, and where more
    # programs want the cores, one that spins keeps the one that it waits for from running.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_load, __dir__, _public = lazy_loader.attach_stub(__name__, __file__)  # the names are those of __init__.pyi
# Parts that people reach as `autotimm.testing.check_task` after a plain `import autotimm`.
_PARTS = {"config", "data", "errors", "losses", "metrics", "models", "optim", "repro", "tasks", "testing", "types"}

__version__ = "0.3.0"
__all__ = [name for name in _public if name not in _PARTS]  # `import *` must not replace modules like `types`


def __getattr__(name: str) -> object:
    if name not in _public:
        from autotimm.errors import nearest  # lazy: costs as much time as all the rest of this file

        raise AttributeError(f"autotimm has no `{name}`. {nearest(name, __dir__())}".rstrip(), name=name, obj=None)
    return _load(name)
