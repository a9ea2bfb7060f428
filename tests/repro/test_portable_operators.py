"""Operators with the same bits everywhere: what they compute, and that no order of sums changes it."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kstest

import warm
from autotimm.errors import UsageError
from autotimm.repro import portable_functions as functions
from autotimm.repro.exact_sums import convolution, convolution_gradients, matmul, sum_over
from autotimm.repro.portable_operators import portable_operators

# Trains a small network of all kinds of layers, and prints a digest of its weights.
PROGRAM = """
import sys, torch
from torch import nn
from torch.nn import functional as F
from autotimm.records.digest import state_digest
from autotimm.repro.portable_operators import portable_operators

torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
images, targets = torch.rand(8, 3, 33, 33), torch.randint(4, (8,))
with portable_operators():
    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.GELU(), nn.Conv2d(16, 16, 5, groups=16), nn.SiLU(),
              nn.Conv2d(16, 32, 3, groups=4), nn.GroupNorm(4, 32), nn.AvgPool2d(3, 2, 1), nn.Flatten(2),
              nn.Linear(25, 24), nn.TransformerEncoderLayer(24, 4, 40, 0.1, F.gelu, batch_first=True))
    network = nn.Sequential(*layers[:9], nn.LayerNorm(25), *layers[9:], nn.Flatten(1), nn.Linear(32 * 24, 4))
    for parameter in network.parameters():
        nn.init.trunc_normal_(parameter, std=0.1)
    for optimizer in (torch.optim.AdamW(network.parameters(), 1e-3), torch.optim.SGD(network.parameters(), 0.1, 0.9)):
        for step in range(2):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images), targets, label_smoothing=0.1)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
print(state_digest(network.state_dict()), torch.backends.cpu.get_cpu_capability())
"""


def result_of(threads, **variables):
    # torch and MKL read these variables at their first operator, not when they are imported.
    done = warm.run(["-c", PROGRAM, threads], env=variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_instruction_sets_and_threads_change_no_bit():
    ours, _ = result_of(1)
    assert result_of(2, ATEN_CPU_CAPABILITY="default", MKL_CBWR="COMPATIBLE") == [ours, "DEFAULT"]


@pytest.mark.slow
@pytest.mark.skipif("AVX512" not in torch.backends.cpu.get_cpu_capability(), reason="needs wider instructions")
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_avx2_and_avx512_give_the_same_bits(threads):
    ours = result_of(threads)
    assert ours[1] == "AVX512"
    assert result_of(3, ATEN_CPU_CAPABILITY="avx2", MKL_CBWR="AVX2") == [ours[0], "AVX2"]


def test_functions_are_as_accurate_as_float32():
    x = torch.linspace(-30, 30, 4001, dtype=torch.float64)
    assert ((functions.exp(x) - x.exp()) / x.exp()).abs().max() < 1e-12
    assert (functions.erfc(x) - x.erfc()).abs().max() < 1e-9
    assert (functions.erf(x) - x.erf()).abs().max() < 1e-9
    positive = x.exp()
    torch.testing.assert_close(functions.log(positive), x, rtol=1e-13, atol=1e-13)
    inside = x / 30.001
    torch.testing.assert_close(functions.erfinv(inside), inside.erfinv(), rtol=1e-6, atol=0)
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0])
    assert torch.equal(functions.exp(special)[1:], special.exp().double()[1:])
    assert functions.exp(special)[0].isnan()
    assert functions.log(special)[1:].tolist()[::2] == [math.inf, -math.inf]


def test_normal_numbers_come_from_integers():
    numbers = functions.normal(torch.empty(100_000), torch.Generator().manual_seed(0))
    torch.testing.assert_close(numbers.mean().item(), 0.0, atol=0.01, rtol=0)
    torch.testing.assert_close((numbers**4).mean().item(), 3.0, atol=0.1, rtol=0)
    whole = functions.uniform(torch.empty(3), torch.Generator().manual_seed(0)) * 2**53
    assert (
        whole.tolist()
        == torch.empty(3, dtype=torch.int64).random_(0, 2**53, generator=torch.Generator().manual_seed(0)).tolist()
    )


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_order_of_sums_changes_no_bit(scale):
    stream = torch.Generator().manual_seed(0)
    a = torch.randn(7, 5000, generator=stream) * torch.logspace(-6, 6, 5000) * scale
    b = torch.randn(5000, 9, generator=stream)
    order = torch.randperm(5000, generator=stream)
    assert torch.equal(sum_over(a, [1]), sum_over(a[:, order], [1]))
    assert torch.equal(matmul(a, b), matmul(a[:, order], b[order]))
    halves = sum_over(a[:, :2500], [1]) + sum_over(a[:, 2500:], [1])
    torch.testing.assert_close(sum_over(a, [1]), halves, rtol=1e-9, atol=scale * 1e-3)
    exact = a.double() @ b.double()
    assert (matmul(a, b) - exact).abs().max() < 1e-4 * exact.abs().max()


def test_sums_of_nothing_and_of_what_is_not_finite():
    assert sum_over(torch.zeros(0, 3), [0]).tolist() == [0.0] * 3
    assert matmul(torch.zeros(2, 0), torch.zeros(0, 3)).tolist() == [[0.0] * 3] * 2
    assert not sum_over(torch.tensor([1.0, math.inf]), [0]).isfinite()
    assert sum_over(torch.tensor([1.0, math.nan]), [0]).isnan()
    assert matmul(torch.zeros(2, 2), torch.ones(2, 2)).tolist() == [[0.0] * 2] * 2


@pytest.mark.parametrize(
    ("channels", "out", "kernel", "stride", "padding", "dilation", "groups"),
    [(8, 8, 3, 2, 1, 1, 8), (8, 8, 5, 1, 4, 2, 8), (8, 12, 3, 2, 1, 1, 4), (8, 12, 3, 1, 0, 2, 1)],
)
def test_convolutions_are_those_of_torch(channels, out, kernel, stride, padding, dilation, groups):
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 13, 11, generator=stream, dtype=torch.float64)
    weight = torch.randn(out, channels // groups, kernel, kernel, generator=stream, dtype=torch.float64)
    settings = [stride] * 2, [padding] * 2, [dilation] * 2
    expected = F.conv2d(x, weight, None, *settings, groups)
    gradient = torch.randn(expected.shape, generator=stream, dtype=torch.float64)
    torch.testing.assert_close(convolution(x, weight, *settings, groups), expected, rtol=1e-4, atol=1e-4)
    reference = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, *settings, False, [0, 0], groups, [True, True, False]
    )
    found = convolution_gradients(gradient, x, weight, *settings, groups, [True, True])
    for ours, theirs in zip(found, reference, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


TARGETS = torch.tensor([1, 2, 3, 0])
FILTER = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1))
OPERATORS = {
    "gelu": F.gelu, "gelu tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu, "sigmoid": torch.sigmoid,
    "tanh": torch.tanh, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "relu6": F.relu6,
    "softmax": lambda x: x.softmax(1), "log_softmax": lambda x: x.log_softmax(1), "mean": lambda x: x.mean((2, 3)),
    "variance": lambda x: x.var(1), "deviation": lambda x: x.std((0, 2)), "norm": lambda x: F.normalize(x, dim=1),
    "average pool": lambda x: F.avg_pool2d(x, 3, 2, 1), "max pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "ceil": lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False),
    "pool without padding": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "global pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "binary": lambda x: F.binary_cross_entropy_with_logits(x, (x.detach() > 0).float()),
    "cross-entropy": lambda x: F.cross_entropy(x.flatten(1), TARGETS),
    "weighted": lambda x: F.cross_entropy(x.flatten(1), TARGETS, torch.arange(486.0) + 1, label_smoothing=0.1),
    "soft": lambda x: F.cross_entropy(x.flatten(1), (x.detach() * 2).flatten(1).softmax(1)),
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 0.5, x + 1),
    "batch norm": lambda x: F.batch_norm(x, None, None, torch.arange(6.0), torch.ones(6), True),
    "batch norm in evaluation": lambda x: F.batch_norm(x, torch.ones(6), torch.full((6,), 2.0)),
    "layer norm": lambda x: F.layer_norm(x, (9,), torch.arange(9.0), torch.ones(9)),
    "group norm": lambda x: F.group_norm(x, 3, torch.arange(6.0), torch.ones(6)),
    "powers": lambda x: x.abs() ** 0.25 + (x.abs() + 1) ** torch.linspace(-3, 3, 9),
    "cumulated sums": lambda x: x.cumsum(2),
    "scattered sums": lambda x: torch.zeros(4, 6, 9, 3).scatter_add(3, torch.arange(9).expand(4, 6, 9, 9) % 3, x),
    "bilinear": lambda x: F.interpolate(x, size=(13, 30), mode="bilinear"),
    "bilinear with corners": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
    "bilinear to smaller": lambda x: F.interpolate(x, scale_factor=0.7, mode="bilinear"),
    "nearest": lambda x: F.interpolate(x, size=(13, 30)),
    "nearest by a factor": lambda x: F.interpolate(x, scale_factor=2),
    "transposed": lambda x: F.conv_transpose2d(x, FILTER, torch.arange(8.0), 2, 1, 1, 2),
    "transposed for each channel": lambda x: F.conv_transpose2d(x, FILTER[:, :1], None, 2, groups=6),
    "sum of numbers": lambda x: x.nansum((2, 3)),
    "einsum": lambda x: torch.einsum("nchw,nchv->ncwv", x, x),
}  # fmt: skip


def gradients(function, *, portable, inference=False):
    x = torch.randn(4, 6, 9, 9, generator=torch.Generator().manual_seed(0)).mul_(2)
    with portable_operators(portable):
        if inference:
            with torch.inference_mode():
                return function(x)
        x.requires_grad_()
        output = function(x)
        # Weighted, since the gradient of what is normalized would be zero.
        (output * torch.linspace(-1, 2, output.numel()).view(output.shape)).sum().backward()
    return output, x.grad


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_compute_what_torch_computes(name):
    expected = gradients(OPERATORS[name], portable=False)
    found = gradients(OPERATORS[name], portable=True)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4 * theirs.abs().max().item())
    assert torch.equal(gradients(OPERATORS[name], portable=True, inference=True), found[0])


def test_powers_of_any_number():
    base = torch.tensor([-2.0, -2.0, -2.0, 0.0, 0.0, 0.0, 3.0])
    exponent = torch.tensor([3.0, 2.0, 0.5, 0.0, 2.0, -1.0, -1.5])
    with portable_operators():
        found = base**exponent
    torch.testing.assert_close(found, base**exponent, equal_nan=True)


def test_mixed_images_are_drawn_from_the_beta_distribution():
    beta, shares = torch.distributions.Beta(torch.tensor([0.2]), torch.tensor([0.2])), torch.tensor([0.2, 0.0, 0.8])
    torch.manual_seed(0)
    with portable_operators():
        drawn = [beta.sample().item() for _ in range(500)]
        chosen = [torch.multinomial(shares, 1).item() for _ in range(500)]
    assert kstest(drawn, "beta", (0.2, 0.2)).pvalue > 0.01
    assert chosen.count(0) == pytest.approx(100, abs=30)
    assert 1 not in chosen


def test_running_statistics_are_those_of_torch():
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    layers = [torch.nn.BatchNorm2d(3) for _ in range(2)]
    layers[0](x)
    with portable_operators():
        layers[1](x)
    torch.testing.assert_close(dict(layers[1].state_dict()), dict(layers[0].state_dict()))


def test_an_unknown_operator_is_refused_by_its_name():
    with portable_operators(), pytest.raises(UsageError, match=r"Got aten.cumprod.default instead"):
        torch.ones(3).cumprod(0)
    with portable_operators(), pytest.raises(UsageError, match=r"Got aten.cos.default instead"):
        torch.arange(3).cos()
    with portable_operators():
        assert torch.ones(3, dtype=torch.int64).cumsum(0).tolist() == [1, 2, 3]  # whole numbers have one result


def test_within_itself_it_does_nothing():
    with portable_operators():
        with portable_operators():
            inner = torch.tensor([1e8, 1.0, -1e8]).sum()
        assert torch.equal(inner, torch.tensor([1e8, 1.0, -1e8]).sum())
    assert torch.nn.functional.gelu(torch.ones(1)).dtype == torch.float32


def test_powers_are_products_and_roots():
    x = torch.tensor([4.0, 9.0])
    with portable_operators():
        assert [(x**power).tolist() for power in (0.5, 1, 2, 3)] == [[2, 3], [4, 9], [16, 81], [64, 729]]
        assert (2 ** torch.tensor([1.0, 3.0])).tolist() == [2, 8]
        assert (x**1.5).tolist() == pytest.approx([8, 27])
        assert (x ** torch.tensor([0.0, -1.0])).tolist() == pytest.approx([1, 1 / 9])
