"""Batch sizes on a real GPU: measured, remembered for its kind, and halved when its memory runs out."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from trtfleet.datasets.output import Output
from trtfleet.datasets.records import JobRecord
from trtfleet.datasets.storage import Storage
from trtfleet.trt_actors.building.options import BuildOptions
from trtfleet.trt_actors.cuda_backend import whole_on_cuda
from trtfleet.trt_actors.graph import prepare
from trtfleet.trt_actors.model import load_model
from trtfleet.trt_actors.out_of_memory import OutOfMemoryError, free_slots, out_of_memory
from trtfleet.trt_actors.prepared import Prepared
from trtfleet.trt_actors.remembered import batch_memory
from trtfleet.trt_actors.runtime.libcuda import gpus
from trtfleet.trt_actors.runtime.segmented import SegmentedEngine
from trtfleet.trt_actors.task import TensorRTSettings
from trtfleet.trt_actors.tuning import agree_batch_size, measure_batch_size
from trtfleet.trt_actors.warm_up import bind_zeros, run_alone

pytestmark = pytest.mark.gpu("onnxruntime", "pycuda")

SETTINGS = TensorRTSettings(options=BuildOptions(), model_digest="a" * 64)


def blown_up(tmp_path: Path, elements: int) -> Prepared:
    """A network whose rows become 41 tensors of so many float64 elements on the device, all there at once.

    Many tensors instead of a large one, because kernels count elements in 32 bits.
    """
    factors = [f"factor{number}" for number in range(40)]
    products = [f"product{number}" for number in range(40)]
    graph = helper.make_graph(
        [
            helper.make_node("Expand", ["x", "wide"], ["large"]),
            *(helper.make_node("Mul", ["large", a], [b]) for a, b in zip(factors, products, strict=True)),
            helper.make_node("Sum", products, ["whole"]),
            helper.make_node("ReduceSum", ["whole", "axes"], ["y"], keepdims=0),
        ],
        "blown_up",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["N", 1])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["N"])],
        [
            numpy_helper.from_array(np.array([1, elements], np.int64), "wide"),
            numpy_helper.from_array(np.array([1], np.int64), "axes"),
            *(numpy_helper.from_array(np.array(i + 2.0), name) for i, name in enumerate(factors)),
        ],
    )
    path = tmp_path / f"{elements}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return prepare(load_model(path))


def opened(network: Prepared) -> SegmentedEngine:
    engine = whole_on_cuda(network, 1)
    assert engine is not None
    return engine.open()


def output(tmp_path: Path, name: str) -> Output:
    return Output.create(Storage(tmp_path / name), JobRecord(fingerprint={}, resolved={}, shards=1, rows=1))


def test_the_size_that_one_job_measured_is_the_next_ones(tmp_path: Path) -> None:
    network = blown_up(tmp_path, 1 << 16)
    engine = opened(network)
    memory = batch_memory(engine, network, SETTINGS)
    assert memory is not None
    first = agree_batch_size(engine, output(tmp_path, "one"), None, memory)
    second = agree_batch_size(engine, output(tmp_path, "two"), None, memory)
    engine.close()
    assert (first.origin, second.origin) == ("measured", "remembered")
    assert first.rows == second.rows
    assert memory.notes == ()


def test_a_batch_that_is_too_large_is_understood_and_leaves_the_engine_usable(tmp_path: Path) -> None:
    row_bytes = 41 * 8 << 22
    network = blown_up(tmp_path, 1 << 22)
    engine = opened(network)
    too_many = min(500, 2 * gpus()[0].memory_bytes // row_bytes)
    slot = engine.slot()
    bind_zeros(engine, slot, too_many)
    with pytest.raises(Exception) as raised:
        run_alone(engine, slot, too_many)
    assert isinstance(out_of_memory(raised.value, too_many), OutOfMemoryError), raised.value
    free_slots(engine)
    slot = engine.slot()
    bind_zeros(engine, slot, 2)
    run_alone(engine, slot, 2)
    assert slot.outputs["y"].tolist() == [0.0, 0.0]
    engine.close()


def test_the_ramp_goes_down_where_its_first_step_does_not_fit(tmp_path: Path) -> None:
    # What an earlier test's error still refers to holds memory of the device.
    gc.collect()
    # 20 GiB a row: less than the eight rows of the first step.
    network = blown_up(tmp_path, 1 << 26)
    row_gib = 41 * 8 * (1 << 26) / 2**30
    fitting = int(gpus()[0].memory_bytes / 2**30 / row_gib)
    if not 1 <= fitting < 8:
        pytest.skip(f"made for GPUs of 24 to 160 GiB, this one has room for {fitting} rows")
    engine = opened(network)
    measured = measure_batch_size(engine)
    assert 1 <= measured.rows <= fitting
    assert measured.rows_per_s > 0
    engine.close()
