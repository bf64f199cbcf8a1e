"""Where the channels of images are: last (nhwc) or first (nchw)."""

from __future__ import annotations

from typing import get_args

from ..datasets import placement
from ..datasets.placement import Layout
from ..datasets.signature import TensorSpec
from ..errors import MismatchError, UsageError

__all__ = ["STORED_AXES", "Layout", "check_layout", "guess_layout"]

STORED_AXES: dict[Layout, tuple[int, ...]] = {"nhwc": (0, 2, 3, 1), "nchw": (0, 3, 1, 2)}
"""Per stored layout, when the model has the other one: the model's axis at each stored axis."""


def guess_layout(spec: TensorSpec) -> Layout | None:
    """The layout that a model input seems to have, or None when its rows are no images (rank 3).

    Raises:
        MismatchError: Neither the first nor the last row dimension is a usual number of channels.
    """
    layout = placement.guess_layout(spec.row_shape)
    if layout is not None or len(spec.row_shape) != 3:
        return layout
    raise MismatchError(
        f"input {spec} does not tell where its channels are: no 1, 3 or 4 as first or last row dimension",
        "give the model's own layout",
    )


def check_layout(layout: str | None) -> None:
    """Raises UsageError for what is neither a layout nor None."""
    if layout is not None and layout not in get_args(Layout):
        raise UsageError(f"layout must be nhwc or nchw, got {layout!r}")
