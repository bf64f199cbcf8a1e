"""Batch sizes chosen by measuring engines whose speed and memory are known, and remembered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime
import pytest
from trtfleet.datasets.output import Output
from trtfleet.datasets.records import JobRecord
from trtfleet.datasets.signature import TensorSpec
from trtfleet.datasets.storage import Storage
from trtfleet.errors import BackendError, UsageError
from trtfleet.trt_actors.building.options import BuildOptions
from trtfleet.trt_actors.cache.identity import Identity
from trtfleet.trt_actors.graph import prepare
from trtfleet.trt_actors.model import load_model
from trtfleet.trt_actors.out_of_memory import OutOfMemoryError
from trtfleet.trt_actors.remembered import BatchMemory, batch_identity, batch_memory
from trtfleet.trt_actors.runtime.libcuda import GpuInfo
from trtfleet.trt_actors.task import TensorRTSettings
from trtfleet.trt_actors.tuning import agree_batch_size, measure_batch_size


class TimedEngine:
    """Takes ``call_s`` a batch and ``row_s`` a row, more rows than ``knee`` costing ten times as much.

    Like a device, it has memory for so many rows, keeps that of slots until told, and may have a clock.
    """

    def __init__(
        self,
        call_s: float = 0.0,
        row_s: float = 0.0,
        knee: int = 1 << 30,
        shape: tuple[int | str, ...] = (2,),
        most_rows: int = 1 << 30,
        on_device: bool = False,
    ) -> None:
        self.backend = "timed"
        self.inputs = (TensorSpec(name="x", dtype=np.dtype(np.float32), row_shape=shape),)
        self.outputs = self.inputs
        self.max_batch_size: int | None = None
        self.depth = 1
        self.full_rows: int | None = None
        self.device_s: float | None = 0.0 if on_device else None
        self.most_rows = most_rows
        self.slots = 0
        self.error: Exception = MemoryError("no memory")
        self.call_s, self.row_s, self.knee = call_s, row_s, knee
        self.sizes: list[int] = []

    def open(self) -> Self:
        return self

    def trace(self, tracer: Any) -> None:
        pass

    def slot(self) -> Any:
        self.slots += 1
        return self

    def free_slots(self) -> None:
        self.slots = 0

    def bind(self, name: str, array: np.ndarray) -> None:
        assert array.shape[1:] == self.inputs[0].row_shape

    def enqueue(self, slot: Any, rows: int) -> None:
        if rows > self.most_rows:
            raise self.error
        self.sizes.append(rows)
        seconds = self.call_s + self.row_s * (rows + 9 * max(0, rows - self.knee))
        time.sleep(seconds)
        if self.device_s is not None:
            self.device_s += seconds

    def wait(self, slot: Any) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output.create(Storage(tmp_path / "out"), JobRecord(fingerprint={}, resolved={}, shards=1, rows=1))


def test_an_engine_with_a_constant_cost_a_batch_gets_large_batches() -> None:
    assert measure_batch_size(TimedEngine(call_s=0.002)).rows >= 256


def test_an_engine_whose_rate_does_not_rise_gets_batches_no_larger_than_worthwhile() -> None:
    engine = TimedEngine(row_s=0.002)
    # A batch should run for 4 ms at least; from there on larger ones bring nothing.
    assert measure_batch_size(engine).rows in (2, 4, 8)
    assert max(engine.sizes) <= 64


def test_an_engine_that_slows_down_is_not_driven_past_its_knee() -> None:
    assert measure_batch_size(TimedEngine(call_s=0.004, row_s=0.0005, knee=32)).rows in (16, 32, 64)


def test_measuring_takes_bounded_time_and_memory() -> None:
    start_s = time.monotonic()
    assert measure_batch_size(TimedEngine(row_s=0.4)).rows in (1, 2)
    assert time.monotonic() - start_s < 6
    wide = TimedEngine(call_s=0.0005, shape=(1 << 20,))
    # 4 MiB a row: 16 rows are the 64 MiB that a batch may have.
    assert measure_batch_size(wide).rows <= 16
    assert max(wide.sizes) <= 16


def test_inputs_that_cannot_be_made_up_get_a_fixed_size() -> None:
    engine = TimedEngine(shape=("L",))
    assert measure_batch_size(engine).rows == 32
    assert engine.sizes == []


def test_what_the_user_wants_is_taken_unmeasured(output: Output) -> None:
    engine = TimedEngine()
    assert agree_batch_size(engine, output, 77).rows == 77
    assert engine.sizes == []


def test_a_fixed_batch_size_of_the_model_wins(output: Output) -> None:
    engine = TimedEngine()
    engine.inputs = (replace(engine.inputs[0], batch=8),)
    engine.max_batch_size = 8
    assert agree_batch_size(engine, output, None).rows == 8
    assert agree_batch_size(engine, output, 5).rows == 5
    with pytest.raises(UsageError, match="batch size 9 exceeds the model's fixed batch size 8"):
        agree_batch_size(engine, output, 9)
    assert engine.sizes == []


def test_an_engine_built_for_a_largest_batch_is_measured_up_to_it(output: Output) -> None:
    engine = TimedEngine(call_s=0.002)
    engine.max_batch_size = 24
    assert agree_batch_size(engine, output, None).rows == 16
    assert max(engine.sizes) == 16
    with pytest.raises(UsageError, match="batch size 25 exceeds the engine's max_batch_size 24"):
        agree_batch_size(engine, output, 25)


def test_actors_of_different_speed_agree_and_so_do_later_runs(output: Output) -> None:
    engines = [TimedEngine(call_s=0.002), TimedEngine(row_s=0.002), TimedEngine(row_s=0.001)]
    agreed: list[int] = []
    threads = [
        threading.Thread(target=lambda e=e: agreed.append(agree_batch_size(e, output, None).rows))
        for e in engines
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(agreed) == 3
    assert len(set(agreed)) == 1
    late = TimedEngine(row_s=0.01)
    assert agree_batch_size(late, output, None).rows == agreed[0]
    assert late.sizes == []


@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
def test_the_ramp_ends_where_memory_does(on_device: bool) -> None:
    engine = TimedEngine(call_s=0.002, most_rows=100, on_device=on_device)
    assert measure_batch_size(engine).rows == 64
    assert engine.slots == 0


def test_a_device_with_memory_for_few_rows_is_measured_downwards() -> None:
    engine = TimedEngine(call_s=0.002, most_rows=3, on_device=True)
    assert measure_batch_size(engine).rows == 2
    assert set(engine.sizes) == {2}
    assert engine.slots == 0


def test_no_memory_for_a_single_row_is_an_error() -> None:
    engine = TimedEngine(most_rows=0, on_device=True)
    with pytest.raises(OutOfMemoryError, match="a batch of 1 row: no memory"):
        measure_batch_size(engine)
    assert engine.slots == 0


def test_a_network_that_fails_on_zeros_gets_a_default() -> None:
    engine = TimedEngine(most_rows=0)
    engine.error = ValueError("division by zero")
    assert measure_batch_size(engine).rows == 32
    engine.error = BackendError("the device is gone", "")
    with pytest.raises(BackendError, match="the device is gone"):
        measure_batch_size(engine)


IDENTITY = Identity(
    model="a" * 64, flavour="onnxruntime-cuda", version="1.31.1", compute_capability="9.0", gpu="NVIDIA H100"
)


def fresh(tmp_path: Path, name: str) -> Output:
    return Output.create(Storage(tmp_path / name), JobRecord(fingerprint={}, resolved={}, shards=1, rows=1))


def test_the_next_job_takes_what_one_measured(tmp_path: Path) -> None:
    memory = BatchMemory(IDENTITY, str(tmp_path / "cache"))
    measured = agree_batch_size(TimedEngine(call_s=0.002), fresh(tmp_path, "one"), None, memory)
    assert measured.origin == "measured"
    engine = TimedEngine(call_s=0.002)
    remembered = agree_batch_size(engine, fresh(tmp_path, "two"), None, memory)
    assert (remembered.rows, remembered.origin) == (measured.rows, "remembered")
    assert engine.sizes == []
    # All actors of that job say so, and so does its resumed run.
    assert agree_batch_size(engine, fresh_again(tmp_path, "two"), None, None) == remembered
    other = BatchMemory(replace(IDENTITY, gpu="NVIDIA L4"), str(tmp_path / "cache"))
    assert agree_batch_size(engine, fresh(tmp_path, "three"), None, other).origin == "measured"
    assert engine.sizes
    memory.forget()
    assert agree_batch_size(engine, fresh(tmp_path, "four"), None, memory).origin == "measured"


def fresh_again(tmp_path: Path, name: str) -> Output:
    found = Output.latest(Storage(tmp_path / name))
    assert found is not None
    return found


def test_each_class_of_devices_has_a_size_of_its_own(tmp_path: Path) -> None:
    output = fresh(tmp_path, "out")
    small = agree_batch_size(TimedEngine(call_s=0.002, most_rows=8), output, None, None, "NVIDIA L4 (8.9)")
    large = agree_batch_size(TimedEngine(call_s=0.002), output, None, None, "NVIDIA H100 (9.0)")
    assert small.rows <= 8 < large.rows
    for device, agreed in (("NVIDIA L4 (8.9)", small), ("NVIDIA H100 (9.0)", large)):
        engine = TimedEngine()
        assert agree_batch_size(engine, output, None, None, device) == agreed
        assert engine.sizes == []


def test_an_output_that_began_with_one_size_for_all_devices_goes_on_with_it(tmp_path: Path) -> None:
    output = fresh(tmp_path, "out")
    output.agree("batch", lambda: {"batch_size": 48, "origin": "measured"})
    engine = TimedEngine()
    assert agree_batch_size(engine, output, None, None, "NVIDIA L4 (8.9)").rows == 48
    assert agree_batch_size(engine, output, None).rows == 48
    assert engine.sizes == []
    mixed = fresh(tmp_path, "mixed")
    on_cpu = agree_batch_size(TimedEngine(call_s=0.002, most_rows=8), mixed, None)
    assert agree_batch_size(TimedEngine(call_s=0.002), mixed, None, None, "NVIDIA L4 (8.9)") != on_cpu


def test_a_size_that_the_engine_does_not_take_is_measured_anew(tmp_path: Path) -> None:
    memory = BatchMemory(IDENTITY, str(tmp_path / "cache"))
    memory.keep(512, 1.0)
    engine = TimedEngine(call_s=0.002)
    engine.max_batch_size = 16
    agreed = agree_batch_size(engine, fresh(tmp_path, "out"), None, memory)
    assert (agreed.rows, agreed.origin) == (16, "measured")
    assert memory.recall() == 16


def test_given_sizes_and_defaults_are_not_remembered(tmp_path: Path) -> None:
    memory = BatchMemory(IDENTITY, str(tmp_path / "cache"))
    assert agree_batch_size(TimedEngine(), fresh(tmp_path, "a"), 7, memory).origin == "given"
    ragged = TimedEngine(shape=("L",))
    agreed = agree_batch_size(ragged, fresh(tmp_path, "b"), None, memory)
    assert (agreed.rows, agreed.origin) == (32, "")
    assert memory.recall() is None
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_used_costs_a_measurement_and_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    memory = BatchMemory(IDENTITY, str(tmp_path / "file" / "cache"))
    engine = TimedEngine(call_s=0.002)
    for name in ("one", "two"):
        assert agree_batch_size(engine, fresh(tmp_path, name), None, memory).origin == "measured"
    memory.forget()
    (note,) = memory.notes
    assert note.startswith("the batch size is not remembered: the engine cache ")


def test_cpus_and_jobs_without_a_cache_remember_nothing(linear_model: Callable[..., Path]) -> None:
    network = prepare(load_model(linear_model()))
    settings = TensorRTSettings(options=BuildOptions(), model_digest="a" * 64)
    off = replace(settings, use_static=False)
    assert batch_memory(TimedEngine(), network, settings) is None
    assert batch_memory(TimedEngine(on_device=True), network, off) is None


def test_what_a_batch_size_depends_on(linear_model: Callable[..., Path]) -> None:
    network = prepare(load_model(linear_model()))
    gpu = GpuInfo(
        index=0,
        name="NVIDIA H100",
        compute_capability=(9, 0),
        memory_bytes=1 << 36,
        cuda="13.0",
        driver="580",
    )
    settings = TensorRTSettings(options=BuildOptions(max_batch_size=8), model_digest="a" * 64)
    engine = TimedEngine(on_device=True)
    engine.backend = "onnxruntime-cuda"
    native = batch_identity(engine, network, settings, gpu)
    assert (native.gpu, native.compute_capability, native.flavour) == (
        "NVIDIA H100",
        "9.0",
        "onnxruntime-cuda",
    )
    assert native.version == onnxruntime.__version__
    # ONNX Runtime knows nothing of TensorRT's options.
    larger = replace(settings, options=BuildOptions(max_batch_size=64))
    assert batch_identity(engine, network, larger, gpu) == native
    engine.backend = "tensorrt-rtx"
    assert batch_identity(engine, network, larger, gpu) != batch_identity(engine, network, settings, gpu)
    wider = prepare(load_model(linear_model(features=5)))
    assert batch_identity(engine, wider, settings, gpu).network != native.network
