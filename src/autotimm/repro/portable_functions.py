"""Functions and random numbers of elementary operations alone, whose bits no instruction set changes.

IEEE 754 fixes the bits of a single addition, multiplication, division and square root. It does not fix those of an
exponential: vectorized ones differ in the last bits between AVX2 and AVX-512. The functions here are polynomials, one
operation of torch after the other, in float64; their relative error is below 1e-9, that of float32 being 6e-8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["erf", "erfc", "erfinv", "exp", "log", "normal", "uniform"]

_EXP = [1 / math.factorial(power) for power in range(12)]
_LN2_HIGH, _LN2_LOW = 0.693147180369123816490, 1.90821492927058770002e-10  # the first has 33 bits, as in fdlibm
_LARGEST = 700.0  # exp of it is finite
# log(erfc(z) / t) + z**2 for t = 2 / (2 + z) and 0 <= z <= 9.2, in 2.4348 t - 1.4348: a Chebyshev fit with 50 digits.
_ERFC = [
    -0.5504449788251572, 0.5625855375862844, 0.014069881392264467, -0.02827607406901511, -0.0007354606677520549,
    0.0034301749502571137, -0.00031147414178449816, -0.00047805576890659114, 0.00014063510625051046,
    5.2825600482698616e-05, -3.667519557304651e-05, -1.732374327790986e-06, 6.5029420202637555e-06,
    -4.7615325660141673e-07, -6.303978363406785e-07,
]  # fmt: skip
_ERFC_LAST, _ERFC_SLOPE, _ERFC_START = 9.2, 2.4347826086956523, -1.4347826086956523
# M. Giles, "Approximating the erfinv function", GPU Computing Gems, 2012.
_CENTRAL = [
    1.50140941, 0.246640727, -0.00417768164, -0.00125372503, 0.00021858087, -4.39150654e-06, -3.5233877e-06,
    3.43273939e-07, 2.81022636e-08,
]  # fmt: skip
_TAIL = [
    2.83297682, 1.00167406, 0.00943887047, -0.0076224613, 0.00573950773, -0.00367342844, 0.00134934322,
    0.000100950558, -0.000200214257,
]  # fmt: skip


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Evaluate by Horner's rule; a product and a sum at a time, which no compiler fuses."""
    result = torch.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result.mul_(x).add_(coefficient)
    return result


def exp(x: Tensor) -> Tensor:
    """The exponential, in float64; 0 below -700.

    Example:
        >>> exp(torch.tensor([0.0, -800.0])).tolist()
        [1.0, 0.0]
    """
    x = x.double()
    halvings = torch.round(x.clamp(-_LARGEST, _LARGEST).mul_(1 / math.log(2)))
    rest = x.clamp(-_LARGEST, _LARGEST).sub_(halvings * _LN2_HIGH).sub_(halvings * _LN2_LOW)
    # NaN becomes any integer, and is NaN again in the product.
    power = halvings.nan_to_num_().long().add_(1023).bitwise_left_shift_(52).view(torch.float64)
    result = _polynomial(rest, _EXP).mul_(power)
    result = torch.where(x > _LARGEST, math.inf, result)
    return torch.where(x < -_LARGEST, 0.0, result)


def log(x: Tensor) -> Tensor:
    """The natural logarithm of normal numbers, in float64; that of 0 is minus infinity.

    Example:
        >>> log(torch.tensor([1.0, 0.0])).tolist()
        [0.0, -inf]
    """
    x = x.double()
    bits = x.contiguous().view(torch.int64)
    mantissa = bits.bitwise_and(0xFFFFFFFFFFFFF).bitwise_or_(0x3FF0000000000000).view(torch.float64)
    large = mantissa > math.sqrt(2)
    exponent = (bits.bitwise_right_shift(52) - 1023 + large).double()
    mantissa = torch.where(large, mantissa * 0.5, mantissa)
    ratio = (mantissa - 1) / (mantissa + 1)
    series = _polynomial(ratio * ratio, [2 / (2 * power + 1) for power in range(10)]).mul_(ratio)
    result = exponent * _LN2_LOW + series + exponent * _LN2_HIGH
    result = torch.where(x == 0, -math.inf, torch.where(x < 0, math.nan, result))
    return torch.where(torch.isfinite(x) | (x < 0), result, x)


def erfc(x: Tensor) -> Tensor:
    """The complementary error function, in float64.

    Example:
        >>> erfc(torch.tensor([0.0, 1.0])).round(decimals=6).tolist()
        [1.0, 0.157299]
    """
    x = x.double()
    size = x.abs().clamp_(max=_ERFC_LAST)
    t = 2 / (2 + size)
    tail = exp(_polynomial(t * _ERFC_SLOPE + _ERFC_START, _ERFC).sub_(size * size)).mul_(t)
    return torch.where(x < 0, 2 - tail, tail)


def erf(x: Tensor) -> Tensor:
    """The error function, in float64; its absolute error is below 1e-9."""
    return 1 - erfc(x)


def erfinv(x: Tensor) -> Tensor:
    """The inverse of the error function, in float64, with a relative error below 1e-6.

    Example:
        >>> erfinv(torch.tensor([-1.0, 0.0, 0.5])).round(decimals=5).tolist()
        [-inf, 0.0, 0.47694]
    """
    x = x.double()
    w = -log((1 - x) * (1 + x))
    central = _polynomial(w - 2.5, _CENTRAL)
    tail = _polynomial(w.clamp(5.0, 1e300).sqrt_().sub_(3.0), _TAIL)
    result = torch.where(w < 5, central, tail) * x
    return torch.where(x.abs() == 1, x * math.inf, result)


def uniform(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Numbers in [0, 1) from integers of a generator, in float64; the generator draws them one after the other."""
    whole = torch.empty(like.shape, dtype=torch.int64)
    return whole.random_(0, 1 << 53, generator=generator).double().mul_(2.0**-53)


def normal(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Normally distributed numbers from integers of a generator, in float64."""
    centered = uniform(like, generator).mul_(2.0).add_(2.0**-53 - 1)
    return erfinv(centered).mul_(math.sqrt(2))
