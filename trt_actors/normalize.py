"""Normalization constants: a mean and a standard deviation, for all values or per channel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError

__all__ = ["Normalize"]

_HINT = "use imagenet or MEAN:STD, for example 127.5:127.5 or 123.7,116.3,103.5:58.4,57.1,57.4"
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """``(x - mean) / std``, in units of the stored values.

    Computed as ``(x - mean) * scale`` with the arrays of `constants`, each step rounded to their dtype: numpy
    gives the same bits as ONNX Runtime on a CPU, where neither fuses the two steps.

    Attributes:
        mean: One value, or one per channel.
        std: As many, all > 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise UsageError(
                f"normalize needs one or more means and as many stds, got {len(self.mean)} and "
                f"{len(self.std)}",
                _HINT,
            )
        for value in (*self.mean, *self.std):
            if not math.isfinite(value):
                raise UsageError(f"normalize needs finite numbers, got {value}", _HINT)
        for value in self.std:
            if value <= 0:
                raise UsageError(f"normalize needs stds > 0, got {value}", _HINT)
        with np.errstate(over="ignore", under="ignore"):
            mean, scale = self.constants(np.dtype(np.float32))
        if not (np.isfinite(mean).all() and np.isfinite(scale).all() and scale.all()):
            raise UsageError(f"normalize {self.mean}:{self.std} is out of the range of float32", _HINT)

    @classmethod
    def parse(cls, text: str) -> Normalize:
        """Reads ``imagenet`` (for values 0 to 255) or ``MEAN:STD``, each one number or several with commas.

        Raises:
            UsageError: The text is malformed, a number is not finite, a std is not > 0, or the counts differ.
        """
        if text == "imagenet":
            mean, std = (tuple(255 * value for value in part) for part in (_IMAGENET_MEAN, _IMAGENET_STD))
            return cls(mean=mean, std=std)
        parts = text.split(":")
        if len(parts) != 2:
            raise UsageError(f"normalize {text!r} is neither imagenet nor MEAN:STD", _HINT)
        try:
            mean, std = (tuple(float(number) for number in part.split(",")) for part in parts)
        except ValueError as error:
            raise UsageError(f"normalize {text!r} has a part that is not a number", _HINT) from error
        return cls(mean=mean, std=std)

    def constants(self, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """The mean and the scale ``1 / std`` (divided in float64, then rounded), each of shape [values]."""
        scale = 1 / np.array(self.std, np.float64)
        return np.array(self.mean, np.float64).astype(dtype), scale.astype(dtype)
