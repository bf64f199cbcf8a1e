"""Histograms of magnitudes on a dyadic grid: they merge exactly, whatever was counted where and when.

A bin is a power of two wide. When the range grows, neighbouring bins are added up, so that nothing is lost
and nothing is shared out by guess: a histogram is the same for any order and any division of its values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .scan import Scratch, blocks, look

__all__ = ["BINS", "MAX_EXPONENT", "MIN_EXPONENT", "Histogram", "count_into", "exponent_for", "halve"]

BINS = 4096
"""Bins of every histogram, a power of two."""

_BINS_LOG2 = BINS.bit_length() - 1

MIN_EXPONENT = -149
"""Of the narrowest bins: one step of the smallest float32 values."""

MAX_EXPONENT = 128 - _BINS_LOG2
"""Of the widest bins: all finite float32 values fit."""

_MANTISSA_BITS = 23
_FRACTION = np.uint32((1 << _MANTISSA_BITS) - 1)


def exponent_for(largest: float) -> int:
    """The smallest exponent with ``largest < BINS * 2**exponent``, but at least MIN_EXPONENT.

    Args:
        largest: A magnitude, finite and above zero.
    """
    _, above = math.frexp(largest)
    return max(above - _BINS_LOG2, MIN_EXPONENT)


def halve(counts: NDArray[Any], times: int) -> NDArray[Any]:
    """Adds up neighbouring bins, as many times as the range doubles.

    Args:
        counts: integer[BINS]; is not changed.
        times: At least 0.

    Returns:
        A new array of the same shape and dtype; the bins that became free are zero.
    """
    grown = np.zeros_like(counts)
    times = min(times, _BINS_LOG2)
    grown[: BINS >> times] = counts.reshape(-1, 1 << times).sum(axis=1, dtype=counts.dtype)
    return grown


def count_into(
    counts: NDArray[np.int64], magnitudes: NDArray[np.uint32], exponent: int, scratch: Scratch
) -> None:
    """Adds values to a histogram.

    A magnitude with the biased exponent ``E`` (1 for subnormals) and the mantissa ``m`` of 24 bits, its
    hidden bit included, is ``m * 2**(E - 150)`` and falls into bin ``m >> (exponent + 150 - E)``. That shift
    is never to the left. Say ``exponent_for`` the largest magnitude gave the exponent, and ``E`` is that
    magnitude's. If it is normal, ``2**(E - 127) <= largest < 2**(E - 126)``, the exponent is ``E - 138`` and
    the shift 12. If it is subnormal, ``E`` is 1 and the shift ``exponent + 149``, at least 0 by MIN_EXPONENT.
    A smaller magnitude has no larger ``E``, so it is shifted no less; nor is any by a larger exponent.

    Args:
        counts: int64[BINS], changed in place. Zeros are counted in the first bin; the caller takes them out.
        magnitudes: uint32, bits of finite values below ``BINS * 2**exponent``; may be overwritten.
        exponent: Of the bin width.
        scratch: Is overwritten.
    """
    bins = scratch.bins[: magnitudes.size]
    if exponent >= -126:
        # A power of two is a normal float32 here, so the product is exact, or so small that its bin is 0.
        scaled = magnitudes.view(np.float32)
        np.multiply(scaled, np.float32(2.0**-exponent), out=scaled)
        np.copyto(bins, scaled, casting="unsafe")
    else:
        biased = (magnitudes >> _MANTISSA_BITS).astype(np.int64)
        mantissas = (magnitudes & _FRACTION) + ((biased > 0).astype(np.int64) << _MANTISSA_BITS)
        np.right_shift(mantissas, np.minimum(exponent + 150 - np.maximum(biased, 1), 31), out=bins)
    counts += np.bincount(bins, minlength=BINS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Histogram:
    """How many non-zero magnitudes lie where.

    Attributes:
        exponent: Bin ``i`` holds what is in ``2**exponent * [i, i + 1)``; None when nothing was counted.
        counts: uint64[BINS], read-only; what is given is copied.
    """

    exponent: int | None
    counts: NDArray[np.uint64]

    def __post_init__(self) -> None:
        counts = np.array(self.counts, dtype=np.uint64)
        if counts.shape != (BINS,):
            raise ValueError(f"a histogram has {BINS} bins, got shape {counts.shape}")
        if self.exponent is None and counts.any():
            raise ValueError("a histogram with values needs an exponent")
        if self.exponent is not None and not MIN_EXPONENT <= self.exponent <= MAX_EXPONENT:
            raise ValueError(f"an exponent is between {MIN_EXPONENT} and {MAX_EXPONENT}, got {self.exponent}")
        counts.flags.writeable = False
        object.__setattr__(self, "counts", counts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return self.exponent == other.exponent and bool(np.array_equal(self.counts, other.counts))

    def __hash__(self) -> int:
        return hash((self.exponent, self.counts.tobytes()))

    @classmethod
    def empty(cls) -> Self:
        """The histogram of nothing."""
        return cls(exponent=None, counts=np.zeros(BINS, np.uint64))

    @classmethod
    def of(cls, values: NDArray[Any]) -> Self:
        """Counts the non-zero finite values of an array.

        Args:
            values: float32, float16 or bfloat16, any shape.

        Returns:
            The exponent is the smallest that holds the largest magnitude.

        Raises:
            TypeError: The values are of another type.
        """
        scratch = Scratch(values.size)
        counts = np.zeros(BINS, np.int64)
        exponent: int | None = None
        for block in blocks(values):
            seen = look(block, scratch)
            largest = max(-seen.minimum, seen.maximum)
            if largest <= 0:
                continue
            wanted = exponent_for(largest)
            if exponent is None or wanted > exponent:
                counts = counts if exponent is None else halve(counts, wanted - exponent)
                exponent = wanted
            count_into(counts, seen.magnitudes, exponent, scratch)
            counts[0] -= seen.zeros
        return cls(exponent=exponent, counts=counts.astype(np.uint64))

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def bin_width(self) -> float:
        """The width of a bin; 0.0 when nothing was counted."""
        return 0.0 if self.exponent is None else math.ldexp(1.0, self.exponent)

    def widened(self, exponent: int) -> Histogram:
        """The same values in bins of another width, at least as large.

        Raises:
            ValueError: The bins would have to become narrower.
        """
        if self.exponent is None:
            return self
        if exponent < self.exponent:
            raise ValueError(f"bins of 2**{self.exponent} cannot become 2**{exponent} wide")
        return Histogram(exponent=exponent, counts=halve(self.counts, exponent - self.exponent))

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both: exact, associative and commutative."""
        if self.exponent is None or other.exponent is None:
            return other if self.exponent is None else self
        exponent = max(self.exponent, other.exponent)
        counts = self.widened(exponent).counts + other.widened(exponent).counts
        return Histogram(exponent=exponent, counts=counts)
