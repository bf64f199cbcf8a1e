"""Folds constants by value, for networks that ONNX Runtime's own folding would rewrite."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from ..reference import compute
from ..walk import subgraphs
from .cut import cut
from .network import Network
from .types import infer, sizes, value_types, with_free_dims

__all__ = ["drop_dead", "fold_by_value", "wants_folding_by_value"]

_UNFOLDABLE = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_MOST_ELEMENTS = 1 << 24
_ROUNDS = 3
_HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def wants_folding_by_value(model: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime's own folding would change what a network's types say.

    On the CPU it lacks most kernels of half precision and saves the network with casts around them; quantized
    weights it folds back to floats.
    """
    if any(node.op_type in _QUANTIZERS for node in model.graph.node):
        return True
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    return any(value.type.tensor_type.elem_type in _HALF for value in values) or any(
        tensor.data_type in _HALF for tensor in model.graph.initializer
    )


def fold_by_value(model: onnx.ModelProto) -> onnx.ModelProto:
    """Computes the nodes that depend on no input, and keeps their results as initializers.

    Sizes that the types fix count as constants; quantizers and random operators are left alone.
    """
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    for _ in range(_ROUNDS):
        typed = infer(folded)
        network, types = Network(typed), value_types(typed)
        found = {**_fixed_sizes(network, types), **_constants(network, types)}
        small = {name: value for name, value in found.items() if value.size <= _MOST_ELEMENTS}
        if not small:
            break
        kept = [node for node in folded.graph.node if not set(node.output) & small.keys()]
        folded.graph.initializer.extend(numpy_helper.from_array(small[name], name) for name in sorted(small))
        del folded.graph.node[:]
        folded.graph.node.extend(kept)
    return folded


def _fixed_sizes(network: Network, types: Mapping[str, onnx.TypeProto]) -> dict[str, np.ndarray]:
    """The results of Shape nodes whose answer the type of their input already gives."""
    found = {}
    for node in network.nodes:
        type_ = types.get(node.input[0]) if node.op_type == "Shape" else None
        if type_ is not None and type_.tensor_type.HasField("shape") and not with_free_dims(type_):
            ends = {a.name: a.i for a in node.attribute}
            shape = (sizes(type_, 0) or ())[ends.get("start", 0) : ends.get("end")]
            found[node.output[0]] = np.array(shape, np.int64)
    return found


def _constants(network: Network, types: Mapping[str, onnx.TypeProto]) -> dict[str, np.ndarray]:
    """The values that follow from initializers alone and that other nodes, or the user, read."""
    known = set(network.constants)
    nodes = []
    for index, node in enumerate(network.nodes):
        is_plain = (
            node.op_type not in _UNFOLDABLE | _QUANTIZERS
            and not node.domain
            and not any(True for _ in subgraphs(node))
        )
        if is_plain and len(node.output) == 1 and network.node_reads[index] <= known:
            known.add(node.output[0])
            nodes.append(index)
    wanted = network.boundary(nodes)[1]
    if not wanted or not all(name in types for name in wanted):
        return {}
    return compute(cut(network, nodes, types), {}, wanted)


def drop_dead(model: onnx.ModelProto) -> None:
    """Removes, in place, nodes and initializers that no output depends on."""
    network = Network(model)
    needed = set(network.outputs)
    kept: list[int] = []
    for index in reversed(range(len(network.nodes))):
        if needed & set(network.nodes[index].output):
            needed |= network.node_reads[index]
            kept.append(index)
    nodes = [network.nodes[index] for index in reversed(kept)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name not in needed:
            del model.graph.initializer[index]
