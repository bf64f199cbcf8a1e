"""How the axes of stored rows map to the axes of a model input: layouts, channels, free dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .signature import Dim

__all__ = ["CHANNELS", "Layout", "Placement", "guess_layout", "place"]

Layout = Literal["nhwc", "nchw"]

CHANNELS = (1, 3, 4)
"""Sizes that tell a channel axis from height and width: grey, RGB, RGB with alpha."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the axes of a stored row go.

    Attributes:
        dims: Shape of one row as it lies in memory; a name where the size is only known from the rows.
        axes: Axis i of the input's row is axis ``axes[i]`` in memory.
    """

    dims: tuple[Dim, ...]
    axes: tuple[int, ...]

    @classmethod
    def of(cls, row_shape: Sequence[Dim]) -> Placement:
        """The placement of rows stored exactly as the input wants them."""
        return cls(dims=tuple(row_shape), axes=tuple(range(len(row_shape))))


def guess_layout(row_shape: Sequence[Dim]) -> Layout | None:
    """Layout of an image-like row: channels (1, 3 or 4) first or else last; None when neither says so."""
    if len(row_shape) != 3:
        return None
    if row_shape[0] in CHANNELS:
        return "nchw"
    return "nhwc" if row_shape[2] in CHANNELS else None


def place(
    sizes: Sequence[int | None], permutation: Sequence[int], row_shape: Sequence[Dim], layout: Layout | None
) -> Placement | None:
    """Fits stored rows to an input's row shape.

    Args:
        sizes: Logical shape of the stored rows; None where it is not known before they are read.
        permutation: Logical axis i is axis ``permutation[i]`` in memory; empty means in order.
        row_shape: Shape wanted; a name fits any size, the same one wherever it occurs.
        layout: Layout of ``row_shape`` if it is an image. Rows stored in the other layout then fit as well,
            unless they fit as they are.

    Returns:
        The placement, or None when the rows do not fit.
    """
    orders = [tuple(range(len(sizes)))]
    if len(sizes) == 3 and layout is not None:
        orders.append((2, 0, 1) if layout == "nchw" else (1, 2, 0))
    memory = tuple(permutation) or orders[0]
    for order in orders:
        wanted = _unify([sizes[axis] for axis in order], row_shape)
        if wanted is None:
            continue
        axes = tuple(memory[axis] for axis in order)
        return Placement(dims=tuple(wanted[axes.index(axis)] for axis in range(len(axes))), axes=axes)
    return None


def _unify(sizes: Sequence[int | None], row_shape: Sequence[Dim]) -> list[Dim] | None:
    """``row_shape`` with every size put in that the stored rows tell; None when they contradict it."""
    if len(sizes) != len(row_shape):
        return None
    named: dict[str, int] = {}
    for size, dim in zip(sizes, row_shape, strict=True):
        if size is None:
            continue
        expected = named.setdefault(dim, size) if isinstance(dim, str) else dim
        if expected != size:
            return None
    return [named.get(dim, dim) if isinstance(dim, str) else dim for dim in row_shape]
