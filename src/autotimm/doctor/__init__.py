"""Checks of this machine before training: versions, switches, and operators without a deterministic implementation.

The modules are loaded lazily: with incompatible versions of torch and torchvision, importing torchvision fails, and the
doctor must still be able to report that.

Example:
    >>> from autotimm import ImageClassifier
    >>> from autotimm.doctor import preflight
    >>> preflight(ImageClassifier("test_resnet", num_classes=3, pretrained=False), image_size=64, batch_size=2)
    []
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names are those of __init__.pyi
