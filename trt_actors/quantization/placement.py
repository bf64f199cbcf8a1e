"""Where quantizers go: the inputs of multiplying nodes and of additions that TensorRT fuses with one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ...errors import ModelError, UsageError
from ..operators import normal_domain
from ..partition.network import Network
from ..partition.types import value_types
from .exclusion import excluded_nodes
from .residual import Residuals

__all__ = ["MULTIPLYING", "Placement", "Site", "place"]

MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that compute in integers."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """One input of one node that reads a quantized value.

    Attributes:
        node: The node's name.
        op_type: Its operator.
        input: Which of its inputs.
        tensor: The value it reads there.
        is_weight: Whether the value is a constant, quantized once and for all; else it is an activation.
        axis: Axis of a weight whose slices have a scale each; None for one scale.
    """

    node: str
    op_type: str
    input: int
    tensor: str
    is_weight: bool = False
    axis: int | None = None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where quantizers go in a network.

    Attributes:
        sites: Every input that reads a quantized value, in the order of the nodes.
        excluded: Names of nodes that would be quantized, had the user not excluded them.
        skipped: Why other multiplying nodes stay in single precision, by name.
    """

    sites: tuple[Site, ...]
    excluded: tuple[str, ...] = ()
    skipped: Mapping[str, str]

    @cached_property
    def activations(self) -> tuple[str, ...]:
        """The tensors that need a range, each once, in the order of their first readers."""
        return tuple(dict.fromkeys(site.tensor for site in self.sites if not site.is_weight))

    @cached_property
    def nodes(self) -> Mapping[str, int]:
        """How many nodes of each operator read quantized values."""
        kinds = {site.node: site.op_type for site in self.sites}
        return dict(sorted(Counter(kinds.values()).items()))


def place(model: onnx.ModelProto, exclude: Sequence[str] = ()) -> Placement:
    """Finds where TensorRT wants quantizers.

    Both inputs of a convolution or a product are quantized: constant weights with one scale for each output
    channel (stacks of matrices with one scale), activations with one scale. So is the shortcut into an
    addition whose other input is the result of such a node and read by nothing else, because TensorRT then
    fuses both into one kernel. Results, biases and what lies between a node and its activation function are
    not.

    Args:
        model: As `quantizable` made it.
        exclude: Nodes that stay in single precision: names, operators, or patterns of these with ``*``, ``?``
            and ``[]``. Excluding more never asks for the range of another tensor.

    Raises:
        ModelError: The network has nothing to quantize.
        UsageError: ``exclude`` names no node, or leaves nothing.
    """
    network = Network(model)
    types = value_types(model)
    floats = {
        name for name, type_ in types.items() if type_.tensor_type.elem_type == TensorProto.FLOAT
    } - network.constants.keys()
    wanted: dict[str, list[Site]] = {}
    skipped: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in MULTIPLYING and normal_domain(node.domain) == "":
            sites = _multiplying(node, network.constants, floats)
            if isinstance(sites, str):
                skipped[node.name] = sites
            else:
                wanted[node.name] = sites
    if not wanted:
        raise ModelError(*_nothing(skipped))
    left_out = excluded_nodes(model.graph.node, exclude, likely=[*wanted])
    residuals = Residuals(network, types, frozenset(wanted))
    for node in model.graph.node:
        # Decided with the excluded nodes in place: a smaller selection must not quantize other tensors.
        found = residuals.shortcut(node)
        if found is not None:
            index, source = found
            if source in left_out and node.name not in left_out:
                continue
            wanted[node.name] = [
                Site(node=node.name, op_type=node.op_type, input=index, tensor=node.input[index])
            ]
    kept = tuple(
        site for node in model.graph.node if node.name not in left_out for site in wanted.get(node.name, ())
    )
    if not any(site.op_type in MULTIPLYING for site in kept):
        raise UsageError(
            f"exclude leaves nothing to quantize: it names all {len(wanted)} nodes that could be",
            "exclude fewer, or run the model in FP16",
        )
    excluded = tuple(name for name in wanted if name in left_out)
    return Placement(sites=kept, excluded=excluded, skipped=skipped)


def _multiplying(
    node: onnx.NodeProto, constants: Mapping[str, TensorProto], floats: set[str]
) -> list[Site] | str:
    """The sites of a multiplying node, or why it has none."""
    sites = []
    for index, name in enumerate(node.input[:2]):
        if name in constants:
            problem = _weight_problem(constants[name])
            if problem:
                return f"{problem} in {name}"
            axis = _channel_axis(node, index, len(constants[name].dims))
            sites.append(_site(node, index, is_weight=True, axis=axis))
        elif name not in floats:
            return f"{name} is not known to be float32"
        elif index == 1 and node.op_type in ("Conv", "ConvTranspose"):
            return f"its weights {name} are computed by the network"
        else:
            sites.append(_site(node, index))
    if all(site.is_weight for site in sites):
        return "it has no input but constants"
    return sites


def _site(node: onnx.NodeProto, index: int, *, is_weight: bool = False, axis: int | None = None) -> Site:
    return Site(
        node=node.name,
        op_type=node.op_type,
        input=index,
        tensor=node.input[index],
        is_weight=is_weight,
        axis=axis,
    )


def _weight_problem(tensor: TensorProto) -> str:
    if tensor.data_type != TensorProto.FLOAT:
        return f"weights of type {TensorProto.DataType.Name(tensor.data_type).lower()}"
    values = numpy_helper.to_array(tensor)
    if not values.size:
        return "no weights"
    return "" if np.isfinite(values.min()) and np.isfinite(values.max()) else "NaN or infinite weights"


def _channel_axis(node: onnx.NodeProto, index: int, rank: int) -> int | None:
    """The axis of a constant input that counts the node's output channels."""
    flags = {attribute.name: attribute.i for attribute in node.attribute}
    match node.op_type:
        case "Conv":
            return 0
        case "ConvTranspose":
            return 1
        case "Gemm":
            is_turned = bool(flags.get("transB" if index else "transA", 0))
            return int(is_turned != bool(index))
    # ONNX Runtime on the CPU takes scales of channels with matrices only.
    return None if rank != 2 else int(bool(index))


def _nothing(skipped: Mapping[str, str]) -> tuple[str, str]:
    hint = "run it in FP16"
    if not skipped:
        return f"the model has no {', '.join(MULTIPLYING[:-1])} or {MULTIPLYING[-1]} to quantize", hint
    name, reason = next(iter(skipped.items()))
    count = f"{len(skipped)} convolutions and products" if len(skipped) > 1 else "one convolution or product"
    return f"the model has {count}, and none can be quantized; node {name!r}: {reason}", hint
