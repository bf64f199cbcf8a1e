"""The networks of a sweep: each model in each precision, as its trials run it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

import onnx

from ...errors import ModelError, TrtfleetError
from ...trt_actors.building.precision import to_precision
from ...trt_actors.graph import prepare
from ...trt_actors.model import Model
from ...trt_actors.prepared import Prepared
from ...trt_actors.task import FeedTask, TensorRTSettings
from ...trt_actors.trial.task import TorchModule
from ..int8 import find_table, no_table, quantized_model, wants_table
from ..plan import feed_identity
from .dataset import SweepData
from .spec import SweepSpec

__all__ = ["Network", "make_network", "torch_network"]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model in one precision.

    Attributes:
        prepared: The network; None where it cannot be had.
        settings: How its engines are built and where they are kept.
        feeding: How it is fed from the dataset; None without one.
        torch: What PyTorch runs in its place; None where ``prepared`` runs.
        problem: Why it cannot be had; empty when it can.
    """

    prepared: Prepared | None = field(repr=False)
    settings: TensorRTSettings
    feeding: FeedTask | None = field(default=None, repr=False)
    torch: TorchModule | None = None
    problem: str = ""


def make_network(spec: SweepSpec, model: Model, path: str, precision: str, data: SweepData | None) -> Network:
    """A model in a precision; with a dataset one that takes its rows as they are stored, as a job runs it."""
    settings = _settings(spec, model, precision)
    try:
        external = model.external_folder is not None
        if wants_table(precision, model.proto, {}):
            # As a job would, where there are rows: one that was made of the same values.
            feed = None if data is None else feed_identity(spec.feeding(path, "fp32"))
            table = find_table(path, model.digest, cache=spec.cache, feed=feed)
            if table is None:
                raise no_table(path, model.digest, spec.cache, feed, instead="leave int8 out")
            settings = replace(settings, calibration=table.identity)
            model = replace(model, proto=quantized_model(model.proto, path, table, external=external))
        if data is not None:
            feeding = data.feeding(spec, model, path, precision)
            return Network(prepared=feeding.network, settings=settings, feeding=feeding)
        prepared = prepare(model)
        if precision != "fp32":
            if external:
                raise ModelError(f"{precision} needs the weights in one protobuf, this model has too many")
            precise = to_precision(onnx.load_from_string(prepared.model_bytes), settings.options)
            prepared = replace(prepared, model_bytes=precise.model.SerializeToString(deterministic=True))
    except TrtfleetError as error:
        return Network(prepared=None, settings=settings, problem=error.fact)
    return Network(prepared=prepared, settings=settings)


def torch_network(spec: SweepSpec, model: Model, name: str, path: str, precision: str) -> Network:
    """What PyTorch runs in the place of a model: the module that the user named for it."""
    settings = _settings(spec, model, precision)
    factory = next((spec.torch[key] for key in (name, path, "") if key in spec.torch), None)
    problem = "" if factory else f"--torch names no module for {name}"
    if precision == "int8":
        problem = "PyTorch runs no network in int8 here"
    elif spec.data and spec.mode == "throughput":
        problem = "PyTorch is not fed from a dataset"
    if factory is None or problem:
        return Network(prepared=None, settings=settings, problem=problem)
    # The ONNX network stands only for its inputs.
    signature = replace(prepare(model), model_bytes=b"")
    module = TorchModule(factory=factory, folder=os.getcwd(), precision=precision)
    return Network(prepared=signature, settings=settings, torch=module)


def _settings(spec: SweepSpec, model: Model, precision: str) -> TensorRTSettings:
    options, known = spec.build_options(precision), {i.name for i in model.inputs}
    options = replace(options, profiles=tuple(p for p in options.profiles if p.name in known))
    return TensorRTSettings(options=options, model_digest=model.digest, cache=spec.cache)
