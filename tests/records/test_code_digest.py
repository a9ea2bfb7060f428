"""Digests of code are those of what somebody wrote or gave, on every processor."""

import torch
from torchvision.transforms import v2

from autotimm.records.code_digest import code_digest


def test_what_a_library_computes_from_its_arguments_does_not_count() -> None:
    """`torch.log` has other last bits with AVX2 than with AVX-512."""
    crop, other = v2.RandomResizedCrop(32), v2.RandomResizedCrop(32)
    other._log_ratio = torch.nextafter(other._log_ratio, torch.ones(()))
    assert not torch.equal(crop._log_ratio, other._log_ratio)
    assert code_digest(v2.Compose([crop])) == code_digest(v2.Compose([other]))
    assert code_digest(crop) != code_digest(v2.RandomResizedCrop(32, ratio=(0.5, 2.0)))


def test_the_tensors_of_ones_own_class_count() -> None:
    class Shift(v2.Transform):
        def __init__(self, by: float) -> None:
            super().__init__()
            self._by = torch.tensor(by)

    assert code_digest(Shift(1.0)) == code_digest(Shift(1.0)) != code_digest(Shift(2.0))


def test_the_weights_of_a_librarys_module_count() -> None:
    layer, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert code_digest(layer) != code_digest(other)
    other.load_state_dict(layer.state_dict())
    assert code_digest(layer) == code_digest(other)
