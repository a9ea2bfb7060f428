"""A row of a linear layer with few outputs has the same bits wherever it stands in its batch."""

import pytest
import torch
from torch.nn import functional as F

from autotimm.models.layers.deterministic import rows_alone


def rows(count: int, inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count * inputs + outputs)
    shapes = (count, inputs), (outputs, inputs), (outputs,)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


@pytest.mark.parametrize("outputs", [1, 2, 3, 5, 10, 15, 16, 17, 100])
@pytest.mark.parametrize("inputs", [64, 100, 1000])
@pytest.mark.parametrize("count", [4, 16, 50])
def test_the_order_of_a_batch_changes_no_bit(count: int, inputs: int, outputs: int) -> None:
    values, weight, bias = rows(count, inputs, outputs)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    with rows_alone(values):
        whole, mixed = F.linear(values, weight, bias), F.linear(values[order], weight, bias)
    assert torch.equal(mixed, whole[order])
    assert torch.allclose(whole, F.linear(values, weight, bias), rtol=1e-4, atol=1e-4)


def test_rows_of_any_shape() -> None:
    values, weight, bias = rows(24, 64, 3)
    with rows_alone(values):
        expected = F.linear(values, weight, bias)
        assert torch.equal(F.linear(values.reshape(2, 3, 4, 64), weight, bias), expected.reshape(2, 3, 4, 3))
        assert torch.equal(F.linear(values[5], weight, bias), expected[5])
        assert torch.equal(F.linear(values, weight), torch.cat([F.linear(row, weight) for row in values.split(1)]))
        assert F.linear(values[:0], weight, bias).shape == (0, 3)
        assert torch.equal(torch.nn.Linear(64, 3)(values[:0]), torch.empty(0, 3))
