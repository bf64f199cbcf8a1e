"""Fitting model and dataset together: which column feeds which input, what the network does itself."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import onnx
import pyarrow as pa

from ..datasets.bindings import BindingOptions, ColumnBinding, ColumnKind, bind, guess_columns
from ..datasets.placement import guess_layout
from ..datasets.reading import Projection
from ..datasets.signature import TensorSpec
from ..errors import MismatchError
from ..trt_actors.building.precision import to_precision
from ..trt_actors.emit import Emit
from ..trt_actors.graph import StoredInput, prepare
from ..trt_actors.model import Model
from ..trt_actors.normalize import Normalize
from ..trt_actors.prepared import Prepared
from .spec import ScoreSpec

__all__ = ["Fitted", "fit"]

_IMAGES = (ColumnKind.IMAGE, ColumnKind.DENSE, ColumnKind.BYTES)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A network that takes the dataset's rows as they are stored.

    Attributes:
        network: With pre- and post-processing built in.
        bindings: Columns by input; None when a preprocess hook decides.
        masks: The inputs that get a mask.
        columns: What must be read, in order.
        options: What the user said about the columns.
    """

    network: Prepared
    bindings: tuple[ColumnBinding, ...] | None
    masks: tuple[TensorSpec, ...]
    columns: tuple[str, ...]
    options: BindingOptions

    def feeding(self, spec: Any, projection: Projection, threads: int) -> dict[str, Any]:
        """What every job's actors are told of feeding this network: arguments of a ``FeedTask``.

        Args:
            spec: The job's; names the columns given for inputs, and the preprocess hook.
            projection: What is read.
            threads: Of an actor.
        """
        return {
            "network": self.network,
            "projection": projection,
            "bindings": self.bindings,
            "given": tuple(spec.input.items()),
            "binding_options": self.options,
            "masks": self.masks,
            "preprocess": spec.preprocess,
            "hook_folder": os.getcwd(),
            "threads": threads,
        }


def fit(spec: ScoreSpec, model: Model, schema: pa.Schema) -> Fitted:
    """Decides how stored columns become model inputs, and builds what the network can do into it.

    Narrow stored types (bytes of images above all) and the stored axis order go into the network as they are;
    it casts, normalizes and transposes.

    Raises:
        MismatchError: Inputs and columns do not fit; the message names both and the nearest candidates.
    """
    names = [i.name for i in model.inputs]
    for name in spec.mask:
        if name not in names:
            raise MismatchError(
                f"--mask names input {name!r}, the model has {', '.join(names)}", "name one of its inputs"
            )
    for column in (*spec.keep, *spec.columns):
        if column not in schema.names:
            flag = "--keep" if column in spec.keep else "--columns"
            raise MismatchError(
                f"{flag} names column {column!r}, which the data lacks", f"columns: {', '.join(schema.names)}"
            )
    options = BindingOptions(
        fill_null=spec.fill_null, resize=spec.resize, pad_to=spec.pad_to, pad_value=spec.pad_value
    )
    fed = [i for i in model.inputs if i.name not in spec.mask]
    if spec.preprocess is not None:
        return _fit_hook(spec, model, schema, options)
    given = guess_columns([_as_stored(i, spec) for i in fed], schema, spec.input, options)
    stored = {
        i.name: _stored(i, bind(_as_stored(i, spec), given[i.name], schema, options), spec) for i in fed
    }
    network = _prepare(spec, model, stored)
    masks = tuple(i for i in network.inputs if i.name in spec.mask)
    bindings = tuple(
        bind(i, given[i.name], schema, replace(options, layout=stored[i.name].layout))
        for i in network.inputs
        if i.name not in spec.mask
    )
    if masks and not any(binding.kind is ColumnKind.RAGGED for binding in bindings):
        raise MismatchError(
            f"--mask {masks[0].name} needs a ragged input, and no column is one",
            "leave --mask out, or map the input to a column",
        )
    _check_names(spec, network)
    used = [column for binding in bindings for column in binding.columns]
    return Fitted(
        network=network,
        bindings=bindings,
        masks=masks,
        columns=tuple(dict.fromkeys([*used, *spec.keep])),
        options=options,
    )


def _fit_hook(spec: ScoreSpec, model: Model, schema: pa.Schema, options: BindingOptions) -> Fitted:
    network = _prepare(spec, model, {})
    _check_names(spec, network)
    columns = spec.columns or tuple(schema.names)
    return Fitted(
        network=network,
        bindings=None,
        masks=(),
        columns=tuple(dict.fromkeys([*columns, *spec.keep])),
        options=options,
    )


def _as_stored(wanted: TensorSpec, spec: ScoreSpec) -> TensorSpec:
    """The input with its axes in the order that --layout says images are stored in."""
    own = guess_layout(wanted.row_shape)
    if spec.layout is None or own in (None, spec.layout):
        return wanted
    first, second, third = wanted.row_shape
    stored = (second, third, first) if spec.layout == "nhwc" else (third, first, second)
    return replace(wanted, row_shape=stored)


def _stored(wanted: TensorSpec, binding: ColumnBinding, spec: ScoreSpec) -> StoredInput:
    if binding.kind not in (*_IMAGES, ColumnKind.SCALARS) or len(binding.columns) > 1:
        return StoredInput(dtype=wanted.dtype)
    is_narrow = binding.dtype.itemsize < wanted.dtype.itemsize
    dtype = binding.dtype if is_narrow or spec.normalize else wanted.dtype
    layout = None
    if guess_layout(wanted.row_shape) is not None:
        is_image = binding.kind is ColumnKind.IMAGE
        layout = "nhwc" if is_image else spec.layout or binding.stored_layout
    return StoredInput(dtype=dtype, layout=layout)  # type: ignore[arg-type]


def _prepare(spec: ScoreSpec, model: Model, stored: dict[str, StoredInput]) -> Prepared:
    network = prepare(
        model,
        stored=stored,
        normalize=None if spec.normalize is None else Normalize.parse(spec.normalize),
        emit=Emit.parse(spec.emit),
        outputs=spec.output,
    )
    if spec.precision == "fp32":
        return network
    if network.external_folder is not None:
        raise MismatchError(
            f"--precision {spec.precision} needs the weights in one protobuf, this model has too many",
            "convert the model's weights before",
        )
    precise = to_precision(onnx.load_from_string(network.model_bytes), spec.build_options)
    return replace(network, model_bytes=precise.model.SerializeToString(deterministic=True))


def _check_names(spec: ScoreSpec, network: Prepared) -> None:
    double = [] if spec.postprocess else [o.name for o in network.outputs if o.name in spec.keep]
    if double:
        raise MismatchError(
            f"{double[0]!r} is a kept column and a model output", "leave it out of --keep, or rename it"
        )
