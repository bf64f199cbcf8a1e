"""Where the channels of images are: last (nhwc) or first (nchw)."""

from __future__ import annotations

from typing import Literal, get_args

from ..datasets.signature import TensorSpec
from ..errors import MismatchError, UsageError

__all__ = ["STORED_AXES", "Layout", "check_layout", "guess_layout"]

Layout = Literal["nhwc", "nchw"]

STORED_AXES: dict[Layout, tuple[int, ...]] = {"nhwc": (0, 2, 3, 1), "nchw": (0, 3, 1, 2)}
"""Per stored layout, when the model has the other one: the model's axis at each stored axis."""

_CHANNEL_COUNTS = (1, 3, 4)


def guess_layout(spec: TensorSpec) -> Layout | None:
    """The layout that a model input seems to have, or None when its rows are no images (rank 3).

    Raises:
        MismatchError: Neither the first nor the last row dimension is a usual number of channels.
    """
    if len(spec.row_shape) != 3:
        return None
    if spec.row_shape[0] in _CHANNEL_COUNTS:
        return "nchw"
    if spec.row_shape[2] in _CHANNEL_COUNTS:
        return "nhwc"
    raise MismatchError(
        f"input {spec} does not tell where its channels are: no 1, 3 or 4 as first or last row dimension",
        "give the model's own layout",
    )


def check_layout(layout: str | None) -> None:
    """Raises UsageError for what is neither a layout nor None."""
    if layout is not None and layout not in get_args(Layout):
        raise UsageError(f"layout must be nhwc or nchw, got {layout!r}")
