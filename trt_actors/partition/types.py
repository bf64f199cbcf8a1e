"""Types and shapes of every value of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import helper, shape_inference

from ...errors import ModelError

__all__ = ["infer", "sizes", "value_types", "with_free_dims"]

_MOST_SHAPE_ELEMENTS = 4096


def value_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """What the model declares of its values, by name: inputs, outputs and inner ones."""
    graph = model.graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: value.type for value in values if value.type.WhichOneof("value")}


def infer(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fills in, in place, the types of inner values and results, as far as shape inference finds them.

    Returns:
        The model given.

    Raises:
        ModelError: The model's declared shapes contradict each other.
    """
    try:
        typed = shape_inference.infer_shapes(_without_weights(model), strict_mode=False, data_prop=True)
    except (shape_inference.InferenceError, ValueError) as error:
        raise ModelError(f"its shapes contradict each other: {error}", "export the model again") from error
    for kind in ("value_info", "output"):
        values = getattr(model.graph, kind)
        del values[:]
        values.extend(getattr(typed.graph, kind))
    return model


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inputs in place of large constants: only small ones decide shapes, and copying costs."""
    bare = onnx.ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    graph = bare.graph
    graph.name = model.graph.name
    for kind in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(graph, kind).extend(getattr(model.graph, kind))
    present = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _MOST_SHAPE_ELEMENTS:
            graph.initializer.append(tensor)
        elif tensor.name not in present:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return bare


def sizes(type_: onnx.TypeProto, free: Mapping[str, int] | int) -> tuple[int, ...] | None:
    """The shape of a tensor type with numbers put in for free dimensions; None when its rank is unknown.

    Args:
        type_: The type.
        free: Numbers by name of the free dimension, or one number for all of them.
    """
    if type_.WhichOneof("value") != "tensor_type" or not type_.tensor_type.HasField("shape"):
        return None
    found: list[int] = []
    for dim in type_.tensor_type.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            found.append(dim.dim_value)
        else:
            found.append(free if isinstance(free, int) else free.get(dim.dim_param, 1))
    return tuple(found)


def with_free_dims(type_: onnx.TypeProto) -> list[int]:
    """The axes of a tensor type that have no fixed size."""
    if type_.WhichOneof("value") != "tensor_type":
        return []
    dims = type_.tensor_type.shape.dim
    return [axis for axis, dim in enumerate(dims) if not (dim.HasField("dim_value") and dim.dim_value >= 0)]
