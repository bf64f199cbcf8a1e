"""How far two tensors lie apart, as sums that add up exactly whatever was summed where and when.

A sum over one block of a batch is a float64, always computed in the same way. Such numbers are whole
multiples of a power of two, and are added up as whole numbers: no rounding, so no order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Difference", "exact", "rounded"]

_UNIT_BITS = 1074
"""The smallest float64 above zero is 2**-1074."""

_BLOCK = 1 << 16
_LARGEST = 1e150
"""Of larger values the squares, and what they add up to, may not be finite; no network has them."""


def exact(value: float) -> int:
    """A finite float64 as a whole number of 2**-1074."""
    numerator, denominator = value.as_integer_ratio()
    return numerator << (_UNIT_BITS - denominator.bit_length() + 1)


def rounded(total: int) -> float:
    """The float64 next to a whole number of 2**-1074."""
    return total / (1 << _UNIT_BITS)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two tensors ``a`` and ``b`` of one shape, over any number of batches.

    The sums are whole numbers of 2**-1074.

    Attributes:
        count: Elements.
        broken: Of these, where one of both is NaN or infinite and the other is not the same. They count in no
            sum, nor do those that are not finite in both alike.
        signal: Sum of ``a**2``.
        other: Sum of ``b**2``.
        product: Sum of ``a * b``.
        noise: Sum of ``(a - b)**2``.
        absolute: Sum of ``|a - b|``.
        largest: Maximum of ``|a - b|``.
    """

    count: int = 0
    broken: int = 0
    signal: int = 0
    other: int = 0
    product: int = 0
    noise: int = 0
    absolute: int = 0
    largest: float = 0.0

    @classmethod
    def of(cls, a: NDArray[Any], b: NDArray[Any]) -> Self:
        """Compares two arrays of numbers or booleans of equal size, of any types; they are only read."""
        left, right = np.ravel(a), np.ravel(b)
        total = cls()
        for start in range(0, left.size, _BLOCK):
            total = total.merge(cls._of_block(left[start : start + _BLOCK], right[start : start + _BLOCK]))
        return total

    @classmethod
    def _of_block(cls, a: NDArray[Any], b: NDArray[Any]) -> Self:
        x, y = a.astype(np.float64), b.astype(np.float64)
        signal, other, broken = _dot(x, x), _dot(y, y), 0
        # Written so that NaN goes the careful way too.
        if not (signal < _LARGEST**2 and other < _LARGEST**2):
            usable = (np.abs(x) < _LARGEST) & (np.abs(y) < _LARGEST)
            same = (x == y) | (np.isnan(x) & np.isnan(y))
            broken = int(np.count_nonzero(~usable & ~same))
            x, y = np.where(usable, x, 0.0), np.where(usable, y, 0.0)
            signal, other = _dot(x, x), _dot(y, y)
        apart = x - y
        noise = _dot(apart, apart)
        np.abs(apart, out=apart)
        return cls(
            count=x.size,
            broken=broken,
            signal=exact(signal),
            other=exact(other),
            product=exact(_dot(x, y)),
            noise=exact(noise),
            absolute=exact(float(apart.sum())),
            largest=float(apart.max(initial=0.0)),
        )

    def merge(self, other: Difference) -> Self:
        """The difference over both: exact, associative and commutative."""
        sums = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
            if field.name != "largest"
        }
        return type(self)(**sums, largest=max(self.largest, other.largest))

    @property
    def relative_error(self) -> float:
        """``||a - b|| / ||a||``; infinite where elements are broken, or ``a`` is zero and ``b`` is not."""
        if self.broken or (self.noise and not self.signal):
            return math.inf
        return math.sqrt(self.noise / self.signal) if self.noise else 0.0

    @property
    def sqnr_db(self) -> float:
        """``20 log10(||a|| / ||a - b||)``; infinite when both are the same."""
        error = self.relative_error
        return -math.inf if error == math.inf else math.inf if error == 0 else -20 * math.log10(error)

    @property
    def cosine(self) -> float | None:
        """``a . b / (||a|| ||b||)``; None where one of both is zero."""
        if not self.signal or not self.other:
            return None
        lengths = math.sqrt(rounded(self.signal)) * math.sqrt(rounded(self.other))
        return max(-1.0, min(1.0, rounded(self.product) / lengths)) if lengths else None

    @property
    def mean_absolute_error(self) -> float:
        """The mean of ``|a - b|``; 0.0 when nothing was compared."""
        return rounded(self.absolute) / self.count if self.count else 0.0

    def as_json(self) -> dict[str, Any]:
        """What ``from_json`` reads."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Reads what ``as_json`` gave.

        Raises:
            ValueError: It is something else.
        """
        wanted = {field.name: float if field.name == "largest" else int for field in fields(cls)}
        if set(values) != set(wanted) or any(type(values[name]) is not kind for name, kind in wanted.items()):
            raise ValueError("these are no sums of a difference")
        return cls(**values)


def _dot(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    # Not BLAS, which may divide a sum among threads.
    return float(np.einsum("i,i->", x, y))
