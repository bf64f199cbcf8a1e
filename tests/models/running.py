"""Runs models and partitions with ONNX Runtime on the CPU, without any of its optimizations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from trtfleet.trt_actors.partition.partition import Partition

__all__ = ["run_model", "run_partition"]

Values = dict[str, np.ndarray]


def run_model(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> Values:
    """All results of a model by name."""
    options: Any = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def run_partition(partition: Partition, feeds: Mapping[str, np.ndarray]) -> Values:
    """The results of a partitioned network: its segments one after the other, each as a model of its own."""
    values: Values = dict(feeds)
    for segment in partition.segments:
        results = run_model(partition.model_of(segment), {name: values[name] for name in segment.inputs})
        assert tuple(results) == segment.outputs
        values |= results
    return {value.name: values[value.name] for value in partition.cleaned.graph.output}
