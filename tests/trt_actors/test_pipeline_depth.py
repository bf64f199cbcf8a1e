"""The pipeline around an engine that executes behind its back, as a device does."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np
import pytest
from trtfleet.datasets.signature import TensorSpec
from trtfleet.trt_actors.engine import Engine
from trtfleet.trt_actors.pipeline import Pipeline

DEPTH = 3


class DeviceSlot:
    """One input, its result, and whether the device is done with it."""

    def __init__(self) -> None:
        self.given = np.empty(0, np.float32)
        self.outputs: Mapping[str, np.ndarray] = {}
        self.done = threading.Event()
        self.error: Exception | None = None

    def buffer(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        self.given = np.empty(shape, np.float32)
        return self.given

    def bind(self, name: str, array: np.ndarray) -> None:
        self.given = array


class DeviceEngine:
    """Doubles its input in a thread of its own; refuses -1 at once, and fails on -2 while executing."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.backend = "device"
        self.inputs = (TensorSpec(name="x", dtype=np.dtype(np.float32), row_shape=()),)
        self.outputs = (TensorSpec(name="y", dtype=np.dtype(np.float32), row_shape=()),)
        self.max_batch_size: int | None = None
        self.depth = DEPTH
        self.full_rows: int | None = None
        self.device_s: float | None = 0.0
        self.most_in_flight = 0
        self.runs = 0
        self._seconds = seconds
        self._in_flight = 0
        self._work: queue.SimpleQueue[DeviceSlot | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._device, daemon=True)

    def open(self) -> Self:
        self._thread.start()
        return self

    def trace(self, tracer: Any) -> None:
        pass

    def slot(self) -> DeviceSlot:
        return DeviceSlot()

    def enqueue(self, slot: DeviceSlot, rows: int) -> None:
        if (slot.given == -1).any():
            raise ValueError("refused")
        slot.done.clear()
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        self.runs += 1
        self._work.put(slot)

    def wait(self, slot: DeviceSlot) -> None:
        assert slot.done.wait(30)
        self._in_flight -= 1
        assert self.device_s is not None
        self.device_s += self._seconds
        if slot.error is not None:
            raise slot.error

    def close(self) -> None:
        self._work.put(None)
        self._thread.join()

    def _device(self) -> None:
        while (slot := self._work.get()) is not None:
            time.sleep(self._seconds)
            slot.error = ValueError("failed") if (slot.given == -2).any() else None
            slot.outputs = {"y": slot.given * 2}
            slot.done.set()


Made = tuple[DeviceEngine, Pipeline]
Got = list[list[float] | str]


@pytest.fixture
def make() -> Iterator[Callable[..., Made]]:
    made: list[Made] = []

    def one(seconds: float = 0.0, slots: int = 6) -> Made:
        engine = DeviceEngine(seconds).open()
        made.append((engine, Pipeline(engine, slots)))
        return made[-1]

    yield one
    for engine, pipeline in made:
        pipeline.close()
        engine.close()


def feed(pipeline: Pipeline, values: list[float]) -> Got:
    got: Got = []

    def deliver(outputs: Mapping[str, np.ndarray] | None, error: BaseException | None) -> None:
        got.append(str(error) if outputs is None else outputs["y"].tolist())

    for value in values:
        slot = pipeline.acquire()
        slot.bind("x", np.array([value], np.float32))
        pipeline.submit(slot, 1, deliver)
    return got


def test_it_is_an_engine() -> None:
    assert isinstance(DeviceEngine(), Engine)


def test_as_many_batches_are_in_flight_as_the_engine_wants(make: Callable[..., Made]) -> None:
    engine, pipeline = make(seconds=0.002)
    pipeline.begin(1)
    got = feed(pipeline, [float(number) for number in range(60)])
    pipeline.end()
    pipeline.close()
    assert got == [[2.0 * number] for number in range(60)]
    assert engine.most_in_flight == DEPTH


@pytest.mark.parametrize(("bad", "words"), [(-1.0, "refused"), (-2.0, "failed")])
def test_a_batch_that_fails_keeps_its_place(bad: float, words: str, make: Callable[..., Made]) -> None:
    _, pipeline = make(seconds=0.001)
    pipeline.begin(1)
    values = [1.0, 2.0, bad, 3.0, bad, bad, 4.0]
    got = feed(pipeline, values)
    pipeline.end()
    pipeline.close()
    assert got == [words if value == bad else [2 * value] for value in values]


def test_the_first_batch_that_fails_is_handed_on_once(make: Callable[..., Made]) -> None:
    _, pipeline = make()
    pipeline.begin(1)
    got = feed(pipeline, [-2.0, 5.0])
    pipeline.end()
    pipeline.close()
    assert got == ["failed", [10.0]]
    assert pipeline.stats.rows == 2


def test_the_devices_seconds_are_the_jobs_without_the_measurement(make: Callable[..., Made]) -> None:
    engine, pipeline = make(seconds=0.004)
    pipeline.begin(1)
    feed(pipeline, [1.0] * 10)
    pipeline.end()
    pipeline.close()
    stats = pipeline.stats
    assert engine.runs > 10
    assert stats.device_s == pytest.approx(10 * 0.004)
    assert stats.engine_rows_per_s == pytest.approx(1 / 0.004)
    assert stats.measuring_s > 0


def test_every_second_is_accounted_for(make: Callable[..., Made]) -> None:
    _, pipeline = make(seconds=0.003)
    start = time.perf_counter()
    pipeline.begin(1)
    feed(pipeline, [1.0] * 20)
    time.sleep(0.05)
    feed(pipeline, [1.0] * 5)
    pipeline.end()
    pipeline.close()
    wall_s = time.perf_counter() - start
    stats = pipeline.stats
    told_s = stats.busy_s + stats.starved_s + stats.blocked_s + stats.idle_s + stats.measuring_s
    assert told_s == pytest.approx(wall_s, abs=0.02, rel=0.1)
    assert stats.busy_s >= (stats.device_s or 0.0) * 0.9


def test_a_device_is_warmed_up_before_the_first_shard() -> None:
    engine = DeviceEngine(seconds=0.002).open()
    pipeline = Pipeline(engine, 4, full_rows=8)
    warmed = engine.runs
    assert warmed > 4
    assert pipeline.stats.engine_rows_per_s == pytest.approx(8 / 0.002)
    pipeline.begin(1)
    assert feed(pipeline, [3.0] * 5) is not None
    pipeline.end()
    pipeline.close()
    engine.close()
    assert engine.runs == warmed + 5
    assert pipeline.stats.device_s == pytest.approx(5 * 0.002)
    assert pipeline.stats.measuring_s == 0
