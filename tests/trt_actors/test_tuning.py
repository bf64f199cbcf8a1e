"""Batch sizes chosen by measuring engines whose speed is known."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from trtfleet.datasets.output import Output
from trtfleet.datasets.records import JobRecord
from trtfleet.datasets.signature import TensorSpec
from trtfleet.datasets.storage import Storage
from trtfleet.errors import UsageError
from trtfleet.trt_actors.tuning import agree_batch_size, measure_batch_size


class TimedEngine:
    """Takes ``call_s`` a batch and ``row_s`` a row, more rows than ``knee`` costing ten times as much."""

    def __init__(
        self,
        call_s: float = 0.0,
        row_s: float = 0.0,
        knee: int = 1 << 30,
        shape: tuple[int | str, ...] = (2,),
    ) -> None:
        self.backend = "timed"
        self.inputs = (TensorSpec(name="x", dtype=np.dtype(np.float32), row_shape=shape),)
        self.outputs = self.inputs
        self.max_batch_size: int | None = None
        self.depth = 1
        self.full_rows: int | None = None
        self.device_s: float | None = None
        self.call_s, self.row_s, self.knee = call_s, row_s, knee
        self.sizes: list[int] = []

    def open(self) -> Self:
        return self

    def trace(self, tracer: Any) -> None:
        pass

    def slot(self) -> Any:
        return self

    def bind(self, name: str, array: np.ndarray) -> None:
        assert array.shape[1:] == self.inputs[0].row_shape

    def enqueue(self, slot: Any, rows: int) -> None:
        self.sizes.append(rows)
        time.sleep(self.call_s + self.row_s * (rows + 9 * max(0, rows - self.knee)))

    def wait(self, slot: Any) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output.create(Storage(tmp_path / "out"), JobRecord(fingerprint={}, resolved={}, shards=1, rows=1))


def test_an_engine_with_a_constant_cost_a_batch_gets_large_batches() -> None:
    assert measure_batch_size(TimedEngine(call_s=0.002)) >= 256  # type: ignore[arg-type]


def test_an_engine_whose_rate_does_not_rise_gets_batches_no_larger_than_worthwhile() -> None:
    engine = TimedEngine(row_s=0.002)
    # A batch should run for 4 ms at least; from there on larger ones bring nothing.
    assert measure_batch_size(engine) in (2, 4, 8)  # type: ignore[arg-type]
    assert max(engine.sizes) <= 64


def test_an_engine_that_slows_down_is_not_driven_past_its_knee() -> None:
    assert measure_batch_size(TimedEngine(call_s=0.004, row_s=0.0005, knee=32)) in (16, 32, 64)  # type: ignore[arg-type]


def test_measuring_takes_bounded_time_and_memory() -> None:
    start_s = time.monotonic()
    assert measure_batch_size(TimedEngine(row_s=0.4)) in (1, 2)  # type: ignore[arg-type]
    assert time.monotonic() - start_s < 6
    wide = TimedEngine(call_s=0.0005, shape=(1 << 20,))
    # 4 MiB a row: 16 rows are the 64 MiB that a batch may have.
    assert measure_batch_size(wide) <= 16  # type: ignore[arg-type]
    assert max(wide.sizes) <= 16


def test_inputs_that_cannot_be_made_up_get_a_fixed_size() -> None:
    engine = TimedEngine(shape=("L",))
    assert measure_batch_size(engine) == 32  # type: ignore[arg-type]
    assert engine.sizes == []


def test_what_the_user_wants_is_taken_unmeasured(output: Output) -> None:
    engine = TimedEngine()
    assert agree_batch_size(engine, output, 77) == 77  # type: ignore[arg-type]
    assert engine.sizes == []


def test_a_fixed_batch_size_of_the_model_wins(output: Output) -> None:
    engine = TimedEngine()
    engine.inputs = (replace(engine.inputs[0], batch=8),)
    engine.max_batch_size = 8
    assert agree_batch_size(engine, output, None) == 8  # type: ignore[arg-type]
    assert agree_batch_size(engine, output, 5) == 5  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="batch size 9 exceeds the model's fixed batch size 8"):
        agree_batch_size(engine, output, 9)  # type: ignore[arg-type]
    assert engine.sizes == []


def test_an_engine_built_for_a_largest_batch_is_measured_up_to_it(output: Output) -> None:
    engine = TimedEngine(call_s=0.002)
    engine.max_batch_size = 24
    assert agree_batch_size(engine, output, None) == 16  # type: ignore[arg-type]
    assert max(engine.sizes) == 16
    with pytest.raises(UsageError, match="batch size 25 exceeds the engine's max_batch_size 24"):
        agree_batch_size(engine, output, 25)  # type: ignore[arg-type]


def test_actors_of_different_speed_agree_and_so_do_later_runs(output: Output) -> None:
    engines = [TimedEngine(call_s=0.002), TimedEngine(row_s=0.002), TimedEngine(row_s=0.001)]
    agreed: list[int] = []
    threads = [
        threading.Thread(target=lambda e=e: agreed.append(agree_batch_size(e, output, None)))  # type: ignore[misc]
        for e in engines
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(agreed) == 3
    assert len(set(agreed)) == 1
    late = TimedEngine(row_s=0.01)
    assert agree_batch_size(late, output, None) == agreed[0]  # type: ignore[arg-type]
    assert late.sizes == []
