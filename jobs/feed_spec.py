"""How networks are fed from a dataset: the options that all kinds of jobs share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["FeedSpec"]


@dataclass(frozen=True, kw_only=True)
class FeedSpec:
    """What a job says about the inputs of its networks.

    Attributes:
        input: Columns by model input; inputs left out are matched by name and type.
        normalize: ``imagenet`` or ``MEAN:STD`` in the units of the stored values; done inside the network.
        layout: ``nhwc`` or ``nchw``: how images are stored, where the column's type does not tell.
        resize: (height, width) for encoded images.
        preprocess: ``package.module:function`` before the network; see ``trt_actors/hooks.py``.
        columns: Columns a preprocess hook gets; all when empty.
        fill_null: Value for nulls; None makes a row with a null a bad row.
        pad_to: Length that ragged rows are padded to; None pads to the longest of each batch.
        pad_value: What they are padded with.
        mask: Model inputs that get the attention mask of the ragged ones.
    """

    input: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    normalize: str | None = None
    layout: str | None = None
    resize: tuple[int, int] | None = None
    preprocess: str | None = None
    columns: tuple[str, ...] = ()
    fill_null: float | None = None
    pad_to: int | None = None
    pad_value: int = 0
    mask: tuple[str, ...] = ()
