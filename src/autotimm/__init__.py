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

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys() and "torch" not in sys.modules:
    # How often threads that wait for others look whether these are done, before they sleep; read when torch is loaded,
    # and no bit depends on it. Of itself libgomp looks for milliseconds: where other programs want the cores too, a
    # thread that looks keeps the one that it waits for from running.
    os.environ["GOMP_SPINCOUNT"] = "3000"

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
