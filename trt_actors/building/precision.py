"""A network in the precision that was asked for, for every backend alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from ...errors import ModelError
from ..partition.clean import clean
from ..quantization.source import quantizing_node
from .half import HalfNetwork, to_half
from .made_up import made_up_input
from .options import BuildOptions
from .profiles import input_profiles

__all__ = ["PreciseNetwork", "to_precision"]

_MOST_LOSS = 0.05


@dataclass(frozen=True, kw_only=True)
class PreciseNetwork:
    """A network whose own types say its precision.

    Attributes:
        model: The network, cleaned.
        half: What the conversion to FP16 did; None in other precisions.
    """

    model: onnx.ModelProto = field(repr=False)
    half: HalfNetwork | None = None


def to_precision(
    model: onnx.ModelProto, options: BuildOptions, feeds: Mapping[str, np.ndarray] | None = None
) -> PreciseNetwork:
    """Cleans a network and brings it to the wanted precision.

    Args:
        model: The network; not changed.
        options: The precision, and the sizes of free dimensions.
        feeds: Input to observe activations on; made up without it.

    Raises:
        ModelError: INT8 is wanted of a network that is not quantized, or FP16 loses more than 5% of an
            output's range.
        UsageError: A profile is missing or does not fit.
    """
    cleaned = clean(model)
    if options.precision == "int8":
        if quantizing_node(cleaned) is None:
            raise ModelError(
                "precision int8 was asked for, the model has no QuantizeLinear or DequantizeLinear node",
                "quantize the model first, or ask for fp16",
            )
        return PreciseNetwork(model=cleaned)
    if options.precision == "fp32":
        return PreciseNetwork(model=cleaned)
    if feeds is None:
        feeds = made_up_input(cleaned, input_profiles(cleaned, options))
    half = to_half(cleaned, feeds)
    worst = max(half.loss, key=lambda name: half.loss[name], default=None)
    if worst is not None and half.loss[worst] > _MOST_LOSS:
        raise ModelError(
            f"output {worst!r} loses {half.loss[worst]:.1%} of its range in FP16, more than {_MOST_LOSS:.0%}",
            "use --precision fp32 for this model",
        )
    return PreciseNetwork(model=half.model, half=half)
