"""Pre- and post-processing as nodes of the model: it takes rows as stored and returns only the answers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import helper

from ..datasets.signature import TensorSpec
from ..errors import MismatchError, UsageError
from .editor import GraphEditor
from .emit import Emit, append_emit
from .layout import STORED_AXES, Layout, check_layout, guess_layout
from .model import Model
from .normalize import Normalize
from .prepared import Prepared

__all__ = ["Emit", "Layout", "Normalize", "Prepared", "StoredInput", "prepare"]


@dataclass(frozen=True, kw_only=True)
class StoredInput:
    """How the data of one input arrives.

    Attributes:
        dtype: Element type of the stored values.
        layout: Order of the axes of stored images; None when it is the model's own.
    """

    dtype: np.dtype
    layout: Layout | None = None

    def __post_init__(self) -> None:
        if self.dtype.kind not in "fiub":
            raise UsageError(f"stored dtype must be a number or bool, got {self.dtype}")
        check_layout(self.layout)


def prepare(
    model: Model,
    *,
    stored: Mapping[str, StoredInput] | None = None,
    normalize: Mapping[str, Normalize] | Normalize | None = None,
    emit: Emit | None = None,
    outputs: Sequence[str] = (),
    model_layout: Mapping[str, Layout] | None = None,
) -> Prepared:
    """Adds nodes for type, layout and normalization in front of a copy of the model, for answers behind.

    In front of an input go, as far as they are needed and in this order: Cast to the computing type,
    Transpose to the model's layout, Sub, Mul, Cast to the model's type. The computing type is float32 (or
    float64, for a float64 input) when normalizing, else the model's own. See `Normalize` for the formula.

    Args:
        model: The model; not changed.
        stored: How the data of inputs arrives, by input name; others arrive as the model wants them.
        normalize: What to subtract and divide by, by input name. A single value goes to the floating inputs
            whose rows have three dimensions or, when there are none, to the only floating input.
        emit: What to write of the outputs; raw when None.
        outputs: Names of the outputs to keep, in order; all batched ones when empty.
        model_layout: The model's own layout by input name; otherwise guessed: a first row dimension of 1, 3
            or 4 means nchw, else a last one of 1, 3 or 4 means nhwc.

    Raises:
        MismatchError: An input or output is not there, or does not fit what is asked of it.
        ModelError: The model's opset is too old for the nodes.
    """
    stored, model_layout = stored or {}, model_layout or {}
    known = [spec.name for spec in model.inputs]
    per_input = _spread(normalize, model.inputs)
    for names in (stored, per_input, model_layout):
        _check_names(names, known, "input")
    for layout in model_layout.values():
        check_layout(layout)
    chosen = _choose_outputs(model, outputs)
    editor = GraphEditor(model.proto)
    inputs = tuple(
        _prepare_input(
            editor,
            spec,
            stored.get(spec.name, StoredInput(dtype=spec.dtype)),
            per_input.get(spec.name),
            model_layout.get(spec.name),
        )
        for spec in model.inputs
    )
    made = append_emit(editor, chosen, emit or Emit(kind="raw"))
    return Prepared(
        model_bytes=editor.serialize(), external_folder=model.external_folder, inputs=inputs, outputs=made
    )


def _prepare_input(
    editor: GraphEditor,
    spec: TensorSpec,
    stored: StoredInput,
    normalize: Normalize | None,
    model_layout: Layout | None,
) -> TensorSpec:
    _check_cast(stored.dtype, spec, normalize)
    if stored.layout and len(spec.row_shape) != 3:
        raise MismatchError(
            f"input {spec} has no image rows (rank 3) that could be stored as {stored.layout}",
            "leave out --layout",
        )
    per_channel = normalize is not None and len(normalize.mean) > 1
    layout = model_layout or (guess_layout(spec) if stored.layout or per_channel else None)
    axes = tuple(range(1 + len(spec.row_shape)))
    stored_axes = STORED_AXES[stored.layout] if stored.layout and stored.layout != layout else axes
    compute = spec.dtype
    if normalize and compute != np.float64:
        compute = np.dtype(np.float32)
    value = spec.name
    value = _cast(editor, value, spec, stored.dtype, compute)
    if stored_axes != axes:
        # In front of the arithmetic: ONNX Runtime broadcasts over a last axis of 3 several times slower.
        order = [stored_axes.index(axis) for axis in axes]
        value = editor.prepend("Transpose", [value], f"{spec.name}_transposed", perm=order)
    if normalize:
        mean, scale = normalize.constants(compute)
        if per_channel:
            mean, scale = (_on_channels(part, spec, layout) for part in (mean, scale))
        # Both are skipped where they would return their argument bit for bit.
        if mean.any():
            constant = editor.prepend_constant(mean, f"{spec.name}_mean")
            value = editor.prepend("Sub", [value, constant], f"{spec.name}_centered")
        if (scale != 1).any():
            constant = editor.prepend_constant(scale, f"{spec.name}_scale")
            value = editor.prepend("Mul", [value, constant], f"{spec.name}_normalized")
    value = _cast(editor, value, spec, compute, spec.dtype)
    if value == spec.name:
        return spec
    editor.replace_input(spec.name, dtype=stored.dtype, axes=stored_axes, feed=value)
    row_shape = tuple(spec.row_shape[axis - 1] for axis in stored_axes[1:])
    return replace(spec, dtype=stored.dtype, row_shape=row_shape)


def _cast(editor: GraphEditor, value: str, spec: TensorSpec, old: np.dtype, new: np.dtype) -> str:
    if old == new:
        return value
    return editor.prepend("Cast", [value], f"{spec.name}_{new}", to=helper.np_dtype_to_tensor_dtype(new))


def _check_cast(stored: np.dtype, spec: TensorSpec, normalize: Normalize | None) -> None:
    """Refuses what would change values silently: only widening, or any number to a floating type."""
    if normalize and spec.dtype.kind != "f":
        raise MismatchError(f"only floating inputs can be normalized, found {spec}", "leave out --normalize")
    if spec.dtype.kind != "f" and not np.can_cast(stored, spec.dtype, "safe"):
        raise MismatchError(
            f"input {spec} cannot take stored {stored} without changing values",
            f"convert the column to {spec.dtype} first",
        )


def _on_channels(values: np.ndarray, spec: TensorSpec, layout: Layout | None) -> np.ndarray:
    """Shapes per-channel constants to broadcast against [N, *row_shape] of the model's layout."""
    if len(spec.row_shape) != 3:
        raise MismatchError(
            f"{len(values)} means and stds, one per channel, need rows of rank 3, found {spec}",
            "give one mean and one std",
        )
    channels = spec.row_shape[0 if layout == "nchw" else 2]
    if channels != len(values):
        raise MismatchError(
            f"{len(values)} means and stds were given, input {spec} has {channels} channels ({layout})",
            "give one value or one per channel",
        )
    return values.reshape(-1, 1, 1) if layout == "nchw" else values


def _spread(
    normalize: Mapping[str, Normalize] | Normalize | None, inputs: Sequence[TensorSpec]
) -> Mapping[str, Normalize]:
    if not isinstance(normalize, Normalize):
        return normalize or {}
    floating = [spec for spec in inputs if spec.dtype.kind == "f"]
    images = [spec for spec in floating if len(spec.row_shape) == 3]
    chosen = images or floating
    if not images and len(floating) != 1:
        raise MismatchError(
            f"--normalize needs an image input or a single floating one, found {', '.join(map(str, inputs))}",
            "name the input to normalize",
        )
    return {spec.name: normalize for spec in chosen}


def _choose_outputs(model: Model, names: Sequence[str]) -> list[TensorSpec]:
    specs = {spec.name: spec for spec in model.outputs}
    for kind, refused in (
        ("no batch dimension", model.unbatched_outputs),
        ("an unsupported type", model.unsupported_outputs),
    ):
        for name in names:
            if name in refused:
                raise MismatchError(f"output {name!r} has {kind}", f"choose from {', '.join(specs)}")
    _check_names(names, list(specs), "output")
    if len(set(names)) != len(names):
        raise MismatchError(f"outputs are named twice: {', '.join(names)}", "name each output once")
    return [specs[name] for name in names] if names else list(specs.values())


def _check_names(names: Iterable[str], known: Sequence[str], kind: str) -> None:
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
            raise MismatchError(
                f"the model has no {kind} {name!r}, it has {', '.join(known)}",
                f"did you mean {nearest[0]!r}?",
            )
