"""What a job writes of a model's outputs, as nodes behind it: all of it, softmax, argmax or the top k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import onnx

from ..datasets.signature import Dim, TensorSpec
from ..errors import MismatchError, ModelError, UsageError
from .editor import GraphEditor

__all__ = ["Emit", "EmitKind", "append_emit"]

EmitKind = Literal["raw", "softmax", "argmax", "topk"]

_TOPK_OPSET = 11


@dataclass(frozen=True, kw_only=True)
class Emit:
    """What to write of each output.

    Attributes:
        kind: ``raw`` writes outputs as they are. The others work on the last axis of every floating output
            whose rows have one, and leave the rest as they are: ``softmax`` writes ``<name>_softmax``, in
            float32 for a float16 output; ``argmax`` writes ``<name>_argmax`` (int64, the first among equals);
            ``topk`` writes ``<name>_topk_indices`` (int64) and ``<name>_topk_values``, largest first.
        k: How many entries ``topk`` writes; 0 for the other kinds.
    """

    kind: EmitKind
    k: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(EmitKind):
            raise UsageError(f"emit kind must be one of {', '.join(get_args(EmitKind))}, got {self.kind!r}")
        if self.kind == "topk" and self.k < 1:
            raise UsageError(f"topk needs a count >= 1, got {self.k}", "for example topk:5")
        if self.kind != "topk" and self.k != 0:
            raise UsageError(f"{self.kind} takes no count, got {self.k}", "only topk:K has one")

    @classmethod
    def parse(cls, text: str) -> Emit:
        """Reads ``raw``, ``softmax``, ``argmax`` or ``topk:K``.

        Raises:
            UsageError: The text is none of these, or K is not a number >= 1.
        """
        hint = "use raw, softmax, argmax or topk:K, for example topk:5"
        for kind in get_args(EmitKind):
            if text == kind and kind != "topk":
                return cls(kind=kind)
        name, separator, count = text.partition(":")
        if name != "topk" or not separator:
            raise UsageError(f"emit {text!r} is not known", hint)
        if not (count.isascii() and count.isdigit()) or len(count) > 9:
            raise UsageError(f"emit {text!r} has the count {count!r}, not a number >= 1", hint)
        return cls(kind="topk", k=int(count))


def append_emit(editor: GraphEditor, outputs: Sequence[TensorSpec], emit: Emit) -> tuple[TensorSpec, ...]:
    """Makes the chosen outputs, or what ``emit`` makes of them, the only outputs of the graph.

    Args:
        editor: The graph to extend.
        outputs: The model's outputs to keep, in order.
        emit: What to write of them.

    Returns:
        The outputs of the extended graph, in order.

    Raises:
        MismatchError: No output fits ``emit``, or one has fewer than k entries.
        ModelError: The opset of the model is too old.
    """
    if emit.kind == "raw":
        editor.keep_outputs([(spec, spec) for spec in outputs])
        return tuple(outputs)
    pairs: list[tuple[TensorSpec, TensorSpec]] = []
    fits = [spec for spec in outputs if spec.dtype.kind == "f" and spec.row_shape]
    if not fits:
        raise MismatchError(
            f"--emit {emit.kind} needs a floating output of rank >= 2, found {', '.join(map(str, outputs))}",
            "choose another output, or --emit raw",
        )
    for spec in outputs:
        made = _ADD[emit.kind](editor, spec, emit.k) if spec in fits else (spec,)
        pairs.extend((new, spec) for new in made)
    editor.keep_outputs(pairs)
    return tuple(new for new, _ in pairs)


def _add_softmax(editor: GraphEditor, spec: TensorSpec, k: int) -> tuple[TensorSpec, ...]:
    del k
    value, dtype = spec.name, spec.dtype
    if dtype == np.float16:
        dtype = np.dtype(np.float32)
        value = editor.append("Cast", [value], [f"{spec.name}_float32"], to=_elem_type(dtype))[0]
    # Before opset 13 Softmax flattened from its axis on; on the last axis both readings are the same.
    name = editor.append("Softmax", [value], [f"{spec.name}_softmax"], axis=len(spec.row_shape))[0]
    return (replace(spec, name=name, dtype=dtype),)


def _add_argmax(editor: GraphEditor, spec: TensorSpec, k: int) -> tuple[TensorSpec, ...]:
    del k
    axis = len(spec.row_shape)
    name = editor.append("ArgMax", [spec.name], [f"{spec.name}_argmax"], axis=axis, keepdims=0)[0]
    return (replace(spec, name=name, dtype=np.dtype(np.int64), row_shape=spec.row_shape[:-1]),)


def _add_topk(editor: GraphEditor, spec: TensorSpec, k: int) -> tuple[TensorSpec, ...]:
    size = spec.row_shape[-1]
    if isinstance(size, int) and k > size:
        raise MismatchError(
            f"--emit topk:{k} asks for {k} entries, the last axis of output {spec.name!r} has {size}",
            f"use topk:{size} or less",
        )
    if editor.opset < _TOPK_OPSET:
        raise ModelError(
            f"--emit topk needs opset >= {_TOPK_OPSET}, the model imports {editor.opset}",
            "convert it with onnx.version_converter, or use --emit raw",
        )
    count = editor.append_constant(np.array([k], np.int64), f"{spec.name}_topk_k")
    names = [f"{spec.name}_topk_values", f"{spec.name}_topk_indices"]
    axis = len(spec.row_shape)
    values, indices = editor.append("TopK", [spec.name, count], names, axis=axis, largest=1, sorted=1)
    row_shape: tuple[Dim, ...] = (*spec.row_shape[:-1], k)
    return (
        replace(spec, name=indices, dtype=np.dtype(np.int64), row_shape=row_shape),
        replace(spec, name=values, row_shape=row_shape),
    )


def _elem_type(dtype: np.dtype) -> int:
    return onnx.helper.np_dtype_to_tensor_dtype(dtype)


_ADD = {"softmax": _add_softmax, "argmax": _add_argmax, "topk": _add_topk}
