"""A model made ready for partitioning: constants folded, dead nodes dropped, types of values written down."""

from __future__ import annotations

from collections.abc import Collection

import onnx

from ...errors import ModelError
from ..reference import fold_constants, result_types
from .fold import drop_dead, fold_by_value, wants_folding_by_value
from .network import Network
from .types import infer, value_types

__all__ = ["clean"]

_IR_VERSION = 8


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Simplifies a copy of a model without changing what it computes.

    ONNX Runtime folds what depends on no input; where that would change the types (half precision,
    quantizers) it is done by value. A model that ONNX Runtime cannot load, because of a custom domain for
    example, is not folded. Types of inner values come from ONNX's shape inference, and from ONNX Runtime's
    where that knows more.

    Raises:
        ModelError: Its shapes contradict each other, or it is too large for one protobuf.
    """
    folded = _folded(model)
    _constants_are_no_inputs(folded, {tensor.name for tensor in model.graph.initializer})
    drop_dead(folded)
    typed = infer(folded)
    known = value_types(typed)
    network = Network(typed)
    untyped = [
        name
        for node in typed.graph.node
        for name in node.output
        if name and name not in known and network.consumers.get(name)
    ]
    if untyped:
        try:
            found = result_types(typed, untyped)
        except ModelError:
            found = {}
        typed.graph.value_info.extend(
            onnx.ValueInfoProto(name=name, type=found[name]) for name in untyped if name in found
        )
    return typed


def _constants_are_no_inputs(model: onnx.ModelProto, before: Collection[str]) -> None:
    """Takes initializers out of the inputs, where old models list them and shape inference distrusts them."""
    model.ir_version = max(model.ir_version, _IR_VERSION)
    constants = {*before, *(tensor.name for tensor in model.graph.initializer)}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return fold_by_value(model) if wants_folding_by_value(model) else fold_constants(model)
    except ModelError:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
