"""Made-up input: seeded values of the shapes and types that a network declares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from ..partition.network import Network
from ..partition.types import sizes
from .options import Profile

__all__ = ["made_up_input"]

_SEED = 11


def made_up_input(
    model: onnx.ModelProto, profiles: Sequence[Profile] = (), *, is_large: bool = False
) -> dict[str, np.ndarray]:
    """Seeded input: floats of a standard normal distribution, bytes from 0 to 255, other integers 0 to 3.

    Args:
        model: The network.
        profiles: Sizes of free dimensions; 1 without one.
        is_large: Whether to take the usual shapes with a batch of two instead of the smallest ones.

    Returns:
        An array for each input that needs data, by name.
    """
    rng = np.random.default_rng(_SEED)
    by_name = {profile.name: profile for profile in profiles}
    network = Network(model)
    feeds: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        if value.name not in network.inputs:
            continue
        shape = sizes(value.type, 1) or ()
        profile = by_name.get(value.name)
        if profile is not None:
            shape = profile.min
            if is_large:
                shape = (max(profile.min[0], min(2, profile.max[0])), *profile.opt[1:])
        feeds[value.name] = _values(
            rng, shape, helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        )
    return feeds


def _values(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "f":
        return rng.standard_normal(shape, np.float32).astype(dtype)
    most = 256 if dtype == np.uint8 else 2 if dtype.kind == "b" else 4
    return rng.integers(0, most, shape).astype(dtype)
