"""What could go wrong on this machine, before it does: versions, switches, and operators without a repeatable kernel.

Its parts are loaded late: where torch and torchvision do not fit each other, whatever imports torchvision fails, and
the doctor must still be able to say so.

Example:
    >>> from autotimm import ImageClassifier
    >>> from autotimm.doctor import preflight
    >>> preflight(ImageClassifier("test_resnet", num_classes=3, pretrained=False), image_size=64, batch_size=2)
    []
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autotimm.doctor.documented import Operator
    from autotimm.doctor.finding import Finding
    from autotimm.doctor.real import judge
    from autotimm.doctor.trace import preflight

__all__ = ["Finding", "Operator", "judge", "preflight"]

_HOME = {
    "Finding": "autotimm.doctor.finding",
    "Operator": "autotimm.doctor.documented",
    "judge": "autotimm.doctor.real",
    "preflight": "autotimm.doctor.trace",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"autotimm.doctor has no `{name}`.", name=name, obj=None)
    return getattr(import_module(_HOME[name]), name)
