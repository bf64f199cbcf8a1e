"""A model and its calibration table become a network with explicit quantizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx
from onnx import helper

from ...errors import CalibrationError
from ..calibration.table import CalibrationTable
from .insert import insert_quantizers
from .placement import Placement, place
from .source import quantizable

__all__ = ["QuantizedNetwork", "quantize", "quantize_network"]

_MOST_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class QuantizedNetwork:
    """A quantized network and how it came about.

    Attributes:
        model: With QuantizeLinear and DequantizeLinear nodes; the inputs and outputs are the model's own.
        placement: Where these are.
        source: The network that they were put into, as `quantizable` made it.
    """

    model: onnx.ModelProto = field(repr=False)
    placement: Placement
    source: onnx.ModelProto = field(repr=False)


def quantize(model: onnx.ModelProto, table: CalibrationTable, exclude: Sequence[str] = ()) -> onnx.ModelProto:
    """Quantizes a model to int8; see `quantize_network`."""
    return quantize_network(model, table, exclude).model


def quantize_network(
    model: onnx.ModelProto, table: CalibrationTable, exclude: Sequence[str] = ()
) -> QuantizedNetwork:
    """Quantizes a model to int8 and says where.

    Args:
        model: The FP32 model that the table was made for (`CalibrationTable.require_model` checks that); not
            changed.
        table: Ranges of its activations. What its calibration excluded stays in single precision.
        exclude: What else stays so: names of nodes, operators, or patterns of these.

    Raises:
        ModelError: The model is quantized already, is in half precision, or has nothing to quantize.
        UsageError: ``exclude`` names no node, or leaves nothing.
        CalibrationError: The table lacks tensors.
    """
    source = quantizable(model)
    placement = place(source, tuple(dict.fromkeys((*table.excluded, *exclude))))
    missing = [name for name in placement.activations if name not in table.tensors]
    if missing:
        shown = ", ".join(missing[:_MOST_SHOWN]) + (", ..." if len(missing) > _MOST_SHOWN else "")
        raise CalibrationError(
            f"the table has no range for {len(missing)} of {len(placement.activations)} tensors: {shown}",
            "it was made by another version of trtfleet or of ONNX Runtime: calibrate again",
        )
    quantized = insert_quantizers(source, placement, table.scales)
    facts = {"trtfleet.quantized_from": table.model, "trtfleet.calibration": table.digest}
    helper.set_model_props(quantized, {**{p.key: p.value for p in quantized.metadata_props}, **facts})
    return QuantizedNetwork(model=quantized, placement=placement, source=source)
