"""A graph's inputs and outputs as tensors whose first dimension is the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import checker, helper, shape_inference

from ..datasets.signature import Dim, TensorSpec
from ..errors import ModelError

__all__ = ["fill_output_shapes", "has_shape", "input_specs", "output_specs"]

_DTYPES: dict[int, np.dtype] = {
    elem_type: helper.tensor_dtype_to_np_dtype(elem_type)
    for elem_type in (
        *(onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.BOOL),
        *(onnx.TensorProto.INT8, onnx.TensorProto.INT16, onnx.TensorProto.INT32, onnx.TensorProto.INT64),
        *(onnx.TensorProto.UINT8, onnx.TensorProto.UINT16, onnx.TensorProto.UINT32, onnx.TensorProto.UINT64),
    )
}


def input_specs(graph: onnx.GraphProto) -> tuple[TensorSpec, ...]:
    """The inputs that need data, in graph order: those without an initializer.

    A nameless free dimension is called ``<input>_dim<axis>``. When one input has a fixed batch size, all have
    it: the model can run with no other.

    Raises:
        ModelError: There is no input, or one cannot be fed a batch of rows; or fixed batch sizes differ.
    """
    optional = {tensor.name for tensor in graph.initializer}
    optional.update(tensor.values.name for tensor in graph.sparse_initializer)
    inputs = [value for value in graph.input if value.name not in optional]
    if not inputs:
        raise ModelError("has no inputs", "a model to score needs at least one input with a batch dimension")
    batches: dict[str, int] = {}
    for value in inputs:
        _check_input(value)
        first = value.type.tensor_type.shape.dim[0]
        if first.dim_value > 0:
            batches[value.name] = first.dim_value
    if len(set(batches.values())) > 1:
        shown = ", ".join(f"{name!r} has {size}" for name, size in batches.items())
        raise ModelError(
            f"inputs have different fixed batch sizes: {shown}", "export with a free first dimension"
        )
    batch = next(iter(batches.values()), None)
    taken = {dim.dim_param for value in graph.input for dim in value.type.tensor_type.shape.dim}
    return tuple(_spec(value, batch, taken) for value in inputs)


def _check_input(value: onnx.ValueInfoProto) -> None:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        shown = (kind or "untyped").removesuffix("_type").replace("_", " ")
        raise ModelError(
            f"input {value.name!r} is not a tensor but: {shown}", "only dense tensors can be fed"
        )
    if value.type.tensor_type.elem_type not in _DTYPES:
        shown = _type_name(value.type.tensor_type.elem_type)
        raise ModelError(
            f"input {value.name!r} has type {shown}, not supported as an input type",
            "export the model with an input of another type",
        )
    hint = "the first dimension of every input must be the batch: export the model with one"
    if not has_shape(value):
        raise ModelError(f"input {value.name!r} has an unknown rank and cannot be batched", hint)
    dims = value.type.tensor_type.shape.dim
    if not dims:
        raise ModelError(f"input {value.name!r} has rank 0 and cannot be batched", hint)
    for axis, dim in enumerate(dims):
        if dim.HasField("dim_value") and dim.dim_value == 0:
            raise ModelError(f"dimension {axis} of input {value.name!r} has size 0", "export the model again")


def _type_name(elem_type: int) -> str:
    known = onnx.TensorProto.DataType
    return known.Name(elem_type).lower() if elem_type in known.values() else f"number {elem_type}"


def _spec(value: onnx.ValueInfoProto, batch: int | None, taken: set[str]) -> TensorSpec:
    """The spec of a tensor of known rank >= 1; names its nameless free dimensions, apart from those taken."""
    row_shape: list[Dim] = []
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        name = dim.dim_param
        # Some exporters write -1 for a free dimension.
        if not name and not (dim.HasField("dim_value") and dim.dim_value >= 0):
            name = f"{value.name}_dim{axis}"
            while name in taken:
                name += "_"
        row_shape.append(name or dim.dim_value)
    dtype = _DTYPES[value.type.tensor_type.elem_type]
    return TensorSpec(name=value.name, dtype=dtype, row_shape=tuple(row_shape[1:]), batch=batch)


def has_shape(value: onnx.ValueInfoProto) -> bool:
    """Whether the rank of a tensor is known; True for what is no tensor."""
    kind = value.type.WhichOneof("value")
    return kind != "tensor_type" or bool(value.type.tensor_type.HasField("shape"))


def fill_output_shapes(proto: onnx.ModelProto) -> str:
    """Infers, in place, output shapes that are missing or have dimensions neither fixed nor named.

    Returns:
        Why inference failed, or "". That is no verdict on the model: runtimes accept some of these.
    """
    missing = [
        output
        for output in proto.graph.output
        if not has_shape(output)
        or any(dim.WhichOneof("value") is None for dim in output.type.tensor_type.shape.dim)
    ]
    if not missing:
        return ""
    try:
        inferred = shape_inference.infer_shapes(proto, strict_mode=False, data_prop=True)
    except (shape_inference.InferenceError, checker.ValidationError, ValueError, RuntimeError) as error:
        return str(error)
    found = {output.name: output.type for output in inferred.graph.output}
    for output in missing:
        output.type.CopyFrom(found[output.name])
    return ""


def output_specs(
    graph: onnx.GraphProto, batch: int | None, inference_failure: str
) -> tuple[tuple[TensorSpec, ...], tuple[str, ...], tuple[str, ...]]:
    """Sorts the outputs by whether they have one entry per row.

    Args:
        graph: The graph, its output shapes filled in.
        batch: The fixed batch size of the inputs, or None.
        inference_failure: What `fill_output_shapes` returned.

    Returns:
        The batched outputs; the names of those without a batch dimension or of unknown rank; the names of
        those that are no tensors or of an unsupported element type.

    Raises:
        ModelError: No output is batched.
    """
    batched: list[TensorSpec] = []
    unbatched: list[str] = []
    unsupported: list[str] = []
    taken = {dim.dim_param for value in graph.output for dim in value.type.tensor_type.shape.dim}
    for output in graph.output:
        tensor = output.type.tensor_type
        if output.type.WhichOneof("value") != "tensor_type" or tensor.elem_type not in _DTYPES:
            unsupported.append(output.name)
        elif _is_batched(tensor.shape.dim, batch):
            batched.append(_spec(output, batch, taken))
        else:
            unbatched.append(output.name)
    if not batched:
        raise ModelError(
            f"has no output with a batch dimension; without one or of unknown rank: {unbatched}, of "
            f"unsupported type: {unsupported}"
            + (f"; shape inference failed: {inference_failure}" if inference_failure else ""),
            "export the model with a free first dimension and with output shapes",
        )
    return tuple(batched), tuple(unbatched), tuple(unsupported)


def _is_batched(dims: Sequence[onnx.TensorShapeProto.Dimension], batch: int | None) -> bool:
    if not dims:
        return False
    first = dims[0]
    is_free = not first.HasField("dim_value") or first.dim_value < 0
    return is_free or first.dim_value == batch
