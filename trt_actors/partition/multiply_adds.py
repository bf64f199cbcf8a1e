"""How many multiply-adds a node costs: the measure of how much of a network TensorRT runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx

__all__ = ["multiply_adds"]

Shapes = Mapping[str, Sequence[int]]


def multiply_adds(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Multiply-adds of one node: those of convolutions and matrix products; other operators count as 0.

    A convolution costs, for each element of its result, one multiply-add for each element of the kernel that
    it meets (channels in / group x kernel); a product of matrices [m, k] x [k, n] costs m k n.

    Args:
        node: The node.
        shapes: Sizes of the values, free dimensions already replaced by numbers.

    Returns:
        The number, or 0 where a shape is unknown.
    """
    known = [shapes.get(name) for name in (*node.input[:2], *node.output[:1])]
    if len(known) < 3 or any(shape is None for shape in known):
        return 0
    left, right, result = (tuple(shape) for shape in known if shape is not None)
    match node.op_type:
        case "Conv" | "ConvInteger":
            return math.prod(result) * math.prod(right[1:])
        case "ConvTranspose":
            # Each element of the input is spread over the kernel: [in, out / group, *kernel].
            return math.prod(left) * math.prod(right[1:])
        case "Gemm":
            is_transposed = any(a.name == "transA" and a.i for a in node.attribute)
            return math.prod(result) * (left[0] if is_transposed else left[-1])
        case "MatMul" | "MatMulInteger":
            return math.prod(result) * left[-1] if left else 0
        case _:
            return 0
