"""The digits as networks to compare: as they are, with a weight that was changed, and quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as pq
from onnx import numpy_helper
from trtfleet.trt_actors.building.options import BuildOptions
from trtfleet.trt_actors.calibration.statistics import TensorStatistics
from trtfleet.trt_actors.calibration.table import CalibrationTable
from trtfleet.trt_actors.calibration.thresholds import Method, scale_of
from trtfleet.trt_actors.comparison.runner import SessionRunner
from trtfleet.trt_actors.graph import prepare
from trtfleet.trt_actors.model import Model, load_model
from trtfleet.trt_actors.prepared import Prepared
from trtfleet.trt_actors.quantization.placement import place
from trtfleet.trt_actors.quantization.quantize import quantize
from trtfleet.trt_actors.quantization.source import quantizable
from trtfleet.trt_actors.reference import compute
from trtfleet.trt_actors.task import TensorRTSettings

SETTINGS = TensorRTSettings(options=BuildOptions(), model_digest="ab" * 32)


def images_of(data: Path, rows: int = 200) -> np.ndarray:
    """float32[rows, 1, 8, 8] as the network wants them."""
    column = pq.read_table(data)["image"].combine_chunks()
    pixels = np.frombuffer(b"".join(column.to_pylist()[:rows]), np.uint8)
    return pixels.reshape(rows, 1, 8, 8).astype(np.float32) / 16


def scaled(path: Path, weight: str, factor: float, to: Path) -> Path:
    """A copy of a model with one weight multiplied."""
    proto = onnx.load(path)
    (tensor,) = [one for one in proto.graph.initializer if one.name == weight]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), weight))
    onnx.save(proto, to)
    return to


def table_of(model: Model, images: np.ndarray, absurd: Mapping[str, float] | None = None) -> CalibrationTable:
    """Ranges from images; the thresholds of some tensors are multiplied."""
    source = quantizable(model.proto)
    tensors = place(source).activations
    feeds = {model.inputs[0].name: images}
    inner = [name for name in tensors if name not in feeds]
    values = {**feeds, **compute(source, feeds, inner)}
    table = CalibrationTable.from_statistics(
        {name: TensorStatistics.of(values[name]) for name in tensors},
        model=model.digest,
        model_name="digits.onnx",
        method=Method.parse("minmax"),
        samples=len(images),
        seed=0,
        batch_size=32,
    )
    return with_factors(table, absurd or {})


def with_factors(table: CalibrationTable, factors: Mapping[str, float]) -> CalibrationTable:
    """The same table with the thresholds of some tensors multiplied."""
    changed = {
        name: replace(
            table.tensors[name],
            threshold=table.tensors[name].threshold * factor,
            scale=scale_of(table.tensors[name].threshold * factor),
        )
        for name, factor in factors.items()
    }
    return replace(table, tensors={**table.tensors, **changed})


def prepared(path: Path) -> Prepared:
    """A model as it is."""
    return prepare(load_model(path))


def int8_of(model: Model, table: CalibrationTable) -> Prepared:
    """The quantized model."""
    return prepare(replace(model, proto=quantize(model.proto, table)))


def outputs_of(network: Prepared, images: np.ndarray) -> np.ndarray:
    """What a network with one input and one output makes of images."""
    with SessionRunner("onnxruntime-cpu", network) as runner:
        return runner.run({network.inputs[0].name: images}).outputs[network.outputs[0].name]
