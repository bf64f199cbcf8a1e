"""The network that calibration observes and quantization starts from: folded, named, in single precision."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import checker, version_converter

from ...datasets.storage import one_line
from ...errors import ModelError
from ..operators import normal_domain
from ..partition.clean import clean
from ..partition.types import infer, value_types
from ..walk import nested_nodes

__all__ = ["quantizable", "quantizing_node"]

# The first opset whose quantizers have an axis: scales per channel need it.
_OPSET = 13
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulNBits"})
_HALF = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16"}
# What ONNX Runtime appends to the name of a product that it merged with the addition behind it.
_MERGED = "/MatMulAddFusion"


def quantizable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Makes the network whose tensors a calibration table names.

    Constants are folded, batch normalization is merged into the convolution before it, every node has a name
    of its own, and the opset is 13 or later. Inputs and outputs keep their names and types. The same model
    gives the same network each time.

    Args:
        model: In single precision, with its weights; not changed.

    Returns:
        A network of its own that computes what the model computes, with the types of inner values.

    Raises:
        ModelError: The model is quantized already, is in half precision, or cannot be brought to opset 13.
    """
    _refuse(model)
    named = onnx.ModelProto()
    named.CopyFrom(model)
    _name_nodes(named)
    names = {node.name for node in named.graph.node}
    network = clean(named)
    opset = _opset(network)
    if 0 < opset < _OPSET:
        network = _raised(network, opset)
    taken = {node.name for node in network.graph.node}
    for node in network.graph.node:
        before = node.name.removesuffix(_MERGED)
        if before in names - taken:
            node.name = before
            taken.add(before)
    _name_nodes(network)
    return network


def quantizing_node(model: onnx.ModelProto) -> onnx.NodeProto | None:
    """The first node that makes or reads quantized values; None in a model that is not quantized."""
    for node in _every_node(model):
        kind = node.op_type
        if kind in _QUANTIZERS or kind.startswith("QLinear") or kind.endswith("Integer"):
            return node
    return None


def _refuse(model: onnx.ModelProto) -> None:
    node = quantizing_node(model)
    if node is not None:
        raise ModelError(
            f"the model is already quantized: node {node.name or node.output[0]!r} is a {node.op_type}",
            "start from the FP32 model that it was made from; as it is, it runs with --precision int8",
        )
    types = {value.elem_type for value in _tensor_types(model)}
    types |= {tensor.data_type for tensor in model.graph.initializer}
    found = [name for kind, name in _HALF.items() if kind in types]
    if found:
        raise ModelError(
            f"the model computes in {found[0]}; calibration and quantization start from single precision",
            "give the FP32 model that it was made from",
        )


def _every_node(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from nested_nodes(model.graph.node)
    for function in model.functions:
        yield from nested_nodes(function.node)


def _tensor_types(model: onnx.ModelProto) -> Iterator[onnx.TypeProto.Tensor]:
    return (type_.tensor_type for type_ in value_types(model).values())


def _name_nodes(model: onnx.ModelProto) -> None:
    """Gives each node a name of its own, in place; the first that has a name keeps it."""
    wanted = {node.name for node in model.graph.node}
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            name = f"{node.op_type}_{index}"
            while name in taken | wanted:
                name += "_"
            node.name = name
        taken.add(node.name)


def _opset(model: onnx.ModelProto) -> int:
    return next((int(o.version) for o in model.opset_import if normal_domain(o.domain) == ""), 0)


def _raised(network: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    hint = "export the model for opset 13 or later"
    if network.ByteSize() > checker.MAXIMUM_PROTOBUF:
        raise ModelError(f"the model uses opset {opset}, and is too large to be brought to {_OPSET}", hint)
    try:
        raised = version_converter.convert_version(network, _OPSET)
    except Exception as error:
        raise ModelError(
            f"the model uses opset {opset}, quantizers with an axis need {_OPSET}, and it cannot be raised: "
            f"{one_line(error)}",
            hint,
        ) from error
    return infer(raised)
