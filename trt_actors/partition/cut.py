"""Cutting some nodes out of a model, as a model of their own that carries the constants it uses."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx

from .network import Network

__all__ = ["cut"]


def cut(network: Network, nodes: Collection[int], types: Mapping[str, onnx.TypeProto]) -> onnx.ModelProto:
    """Makes a model of some nodes.

    Args:
        network: The whole.
        nodes: Indices of its nodes, a convex set.
        types: The types of the values between nodes; the boundary's must be there.

    Returns:
        A model that takes and gives what `Network.boundary` says, under the same names. Constants are copied:
        each model that uses one has its own.
    """
    takes, gives = network.boundary(nodes)
    whole = network.proto
    part = onnx.ModelProto(ir_version=whole.ir_version, producer_name="trtfleet")
    part.opset_import.extend(whole.opset_import)
    part.functions.extend(whole.functions)
    graph = part.graph
    graph.name = f"{whole.graph.name or 'network'}_{min(nodes, default=0)}"
    ordered = sorted(nodes)
    graph.node.extend(whole.graph.node[index] for index in ordered)
    used = {name for index in ordered for name in network.node_reads[index]}
    graph.initializer.extend(tensor for tensor in whole.graph.initializer if tensor.name in used)
    graph.sparse_initializer.extend(
        tensor for tensor in whole.graph.sparse_initializer if tensor.values.name in used
    )
    made = {name for index in ordered for name in whole.graph.node[index].output}
    for name in takes:
        graph.input.append(onnx.ValueInfoProto(name=name, type=types[name]))
    for name in gives:
        graph.output.append(onnx.ValueInfoProto(name=name, type=types[name]))
    inner = sorted((made & types.keys()) - set(gives) - {""})
    graph.value_info.extend(onnx.ValueInfoProto(name=name, type=types[name]) for name in inner)
    return part
