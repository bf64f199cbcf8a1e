"""Types, shapes and numbers as short text for people."""

from __future__ import annotations

import onnx

__all__ = ["LONGEST_LABEL", "constant_text", "count_text", "counted", "shape_text", "short", "type_text"]

LONGEST_LABEL = 24
_ELEMENTS = {"float": "float32", "double": "float64"}


def short(text: str) -> str:
    """The text, cut to the length of a label."""
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"


def counted(number: int, word: str) -> str:
    """A number with its noun: ``1 node``, ``1,445 nodes``."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def count_text(number: int) -> str:
    """A large number in three or four digits: ``12.3 G``."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)


def shape_text(type_: onnx.TypeProto | None) -> str:
    """The shape alone, as ``1×3×224×224``; empty where it is unknown."""
    if type_ is None or type_.WhichOneof("value") != "tensor_type" or not type_.tensor_type.HasField("shape"):
        return ""
    dims = type_.tensor_type.shape.dim
    return "×".join(map(_dim_text, dims)) or "scalar"


def _dim_text(dim: onnx.TensorShapeProto.Dimension) -> str:
    # ONNX's shape inference invents names for what it does not know.
    is_named = dim.dim_param and not dim.dim_param.startswith("unk__")
    return str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param if is_named else "?"


def type_text(type_: onnx.TypeProto | None) -> str:
    """Element type and shape: ``float32 1×3×224×224``."""
    if type_ is None:
        return "unknown"
    kind = type_.WhichOneof("value") or "unknown"
    if kind != "tensor_type":
        return str(kind).removesuffix("_type")
    return f"{_element_text(type_.tensor_type.elem_type)} {shape_text(type_) or 'of unknown shape'}"


def constant_text(tensor: onnx.TensorProto) -> str:
    """The same of a constant."""
    shape = "×".join(map(str, tensor.dims)) or "scalar"
    return f"{_element_text(tensor.data_type)} {shape}, constant"


def _element_text(number: int) -> str:
    if number not in onnx.TensorProto.DataType.values():
        return "unknown"
    name = str(onnx.TensorProto.DataType.Name(number)).lower()
    return _ELEMENTS.get(name, name)
