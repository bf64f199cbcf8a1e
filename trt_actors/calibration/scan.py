"""One pass over an array of activations, block by block while it is in the processor's cache.

Everything is decided on the bits of float32 values as integers, so that no rounding, no processor mode that
flushes subnormals and no order of the values can change a result.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK", "Scratch", "Seen", "blocks", "look"]

BLOCK = 1 << 16
"""Values of a block: with its working memory it fits a core's second-level cache."""

_SIGN = 0x80000000
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = 0x7F800000


class Scratch:
    """Working memory for one block after another; not for two threads at once.

    Attributes:
        magnitudes: uint32[BLOCK], for values without their sign.
        bins: int64[BLOCK].
    """

    def __init__(self, size: int = BLOCK) -> None:
        size = min(size, BLOCK)
        self.magnitudes = np.empty(size, np.uint32)
        self.bins = np.empty(size, np.int64)


class Seen(NamedTuple):
    """What one block holds.

    Attributes:
        magnitudes: uint32, the bits of |x| of the finite values; borrowed from the scratch memory.
        zeros: How many of them are zero.
        non_finite: How many further values are NaN or infinite.
        minimum: Of the finite values; infinity when there is none.
        maximum: Of the finite values; minus infinity when there is none.
    """

    magnitudes: NDArray[np.uint32]
    zeros: int
    non_finite: int
    minimum: float
    maximum: float


def blocks(values: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    """Cuts an array of any shape into flat float32 blocks of at most BLOCK values, views where possible.

    float16 and bfloat16 are widened, which is exact.

    Raises:
        TypeError: The values are of another type; float64 would have to be rounded.
    """
    if values.dtype.name not in ("float32", "float16", "bfloat16"):
        raise TypeError(f"statistics are of float32, float16 or bfloat16 values, got {values.dtype}")
    flat = values.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        yield flat[start : start + BLOCK].astype(np.float32, copy=False)


def look(block: NDArray[np.float32], scratch: Scratch) -> Seen:
    """Finds the extremes, zeros and non-finite values of a block.

    Args:
        block: Flat and contiguous, no longer than the scratch memory.
        scratch: Is overwritten.
    """
    bits = block.view(np.uint32)
    magnitudes = scratch.magnitudes[: bits.size]
    np.bitwise_and(bits, _MAGNITUDE, out=magnitudes)
    if not bits.size:
        return Seen(magnitudes, 0, 0, float("inf"), float("-inf"))
    # As integers, positive floats are in order, and negative ones lie above them in reverse order.
    lowest = int(bits.max())
    highest = int(bits.view(np.int32).max())
    if (lowest & ~_SIGN) >= _INFINITY or highest >= _INFINITY:
        finite = block[magnitudes < _INFINITY]
        seen = look(finite, scratch)
        return seen._replace(non_finite=bits.size - finite.size)
    if lowest < _SIGN:
        lowest = int(bits.min())
    if highest < 0:
        highest = int(bits.min())
    return Seen(magnitudes, bits.size - int(np.count_nonzero(magnitudes)), 0, _float(lowest), _float(highest))


def _float(bits: int) -> float:
    # Minus zero becomes zero: which of the two came first must not show.
    return float(np.uint32(bits).view(np.float32)) + 0.0
