"""Makes the tensors that need a range outputs of the network that calibration runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import TensorProto, helper

from ...errors import ModelError
from ..model import Model
from ..prepared import Prepared
from ..walk import used_names

__all__ = ["ObservedNetwork", "expose", "observed"]


@dataclass(frozen=True, kw_only=True)
class ObservedNetwork:
    """A network that computes the tensors to observe and nothing else.

    Attributes:
        network: Takes the dataset's rows as they are stored; its outputs are the values of ``tensors``.
        tensors: For each tensor to observe, in order, the output that it is.
    """

    network: Prepared
    tensors: Mapping[str, str]


def expose(model: Model, tensors: Sequence[str]) -> tuple[Model, dict[str, str]]:
    """Gives every tensor that is to be observed a name that pre-processing leaves alone.

    A runtime cannot return an input of the network, and pre-processing puts nodes in front of it: what the
    network itself sees there goes through a node of its own, which reads what those nodes make.

    Args:
        model: Loaded; not changed.
        tensors: Names in its graph.

    Returns:
        The model with these nodes, and for each tensor the name of the value to return.

    Raises:
        ModelError: The graph has no such tensor.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    inputs = {value.name for value in graph.input}
    made = inputs.union(*(node.output for node in graph.node))
    taken = used_names(graph)
    values: dict[str, str] = {}
    for tensor in tensors:
        if tensor not in made:
            raise ModelError(f"the model has no tensor {tensor!r} to observe", "this is a defect of trtfleet")
        values[tensor] = tensor
        if tensor in inputs:
            name = f"{tensor}_observed"
            while name in taken:
                name += "_"
            taken.add(name)
            values[tensor] = name
            graph.node.append(helper.make_node("Identity", [tensor], [name], name))
    return replace(model, proto=proto), values


def observed(network: Prepared, values: Mapping[str, str]) -> ObservedNetwork:
    """Makes these values the only outputs of a prepared network; what only others need is not computed.

    Args:
        network: Made by ``prepare`` of what ``expose`` returned.
        values: As ``expose`` returned them.
    """
    proto = onnx.load_from_string(network.model_bytes)
    del proto.graph.output[:]
    # Without a shape: runtimes infer it, and find out for themselves where a dimension is free.
    proto.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in values.values()
    )
    model_bytes: bytes = proto.SerializeToString(deterministic=True)
    return ObservedNetwork(
        network=replace(network, model_bytes=model_bytes, outputs=()), tensors=dict(values)
    )
