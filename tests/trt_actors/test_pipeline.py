"""The pipeline around an artificial engine whose speed and failures are known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np
import pytest
from trtfleet.datasets.signature import TensorSpec
from trtfleet.trt_actors.engine import Engine
from trtfleet.trt_actors.pipeline import Pipeline
from trtfleet.trt_actors.pipeline_stats import PipelineStats


class ToySlot:
    """Host memory for one input."""

    def __init__(self) -> None:
        self.inputs: dict[str, np.ndarray] = {}
        self._outputs: dict[str, np.ndarray] = {}

    def buffer(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        self.inputs[name] = np.empty(shape, np.float32)
        return self.inputs[name]

    def bind(self, name: str, array: np.ndarray) -> None:
        self.inputs[name] = array

    @property
    def outputs(self) -> Mapping[str, np.ndarray]:
        return self._outputs

    @outputs.setter
    def outputs(self, outputs: dict[str, np.ndarray]) -> None:
        self._outputs = outputs


class ToyEngine:
    """Doubles its input, takes a fixed time a batch, and fails on batches that hold -1."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.backend = "toy"
        self.inputs = (TensorSpec(name="x", dtype=np.dtype(np.float32), row_shape=()),)
        self.outputs = (TensorSpec(name="y", dtype=np.dtype(np.float32), row_shape=()),)
        self.max_batch_size: int | None = None
        self.depth = 1
        self.full_rows: int | None = None
        self.device_s: float | None = None
        self.seconds = seconds
        self.slots: list[ToySlot] = []
        self.threads: set[int] = set()
        self.runs = 0

    def open(self) -> Self:
        return self

    def trace(self, tracer: Any) -> None:
        pass

    def slot(self) -> ToySlot:
        self.slots.append(ToySlot())
        return self.slots[-1]

    def enqueue(self, slot: ToySlot, rows: int) -> None:
        self.threads.add(threading.get_ident())
        self.runs += 1
        time.sleep(self.seconds)
        if (slot.inputs["x"] == -1).any():
            raise ValueError("the engine does not like -1")
        slot.outputs = {"y": slot.inputs["x"][:rows] * 2}

    def wait(self, slot: ToySlot) -> None:
        pass

    def close(self) -> None:
        pass


Deliver = Callable[[Mapping[str, np.ndarray] | None, BaseException | None], None]
Run = Callable[..., Pipeline]


@pytest.fixture
def pipeline() -> Iterator[Run]:
    """Makes pipelines and closes them."""
    made: list[Pipeline] = []

    def make(engine: ToyEngine, slots: int = 3) -> Pipeline:
        made.append(Pipeline(engine, slots))
        return made[-1]

    yield make
    for one in made:
        one.close()


def submit(pipeline: Pipeline, values: list[float], deliver: Deliver) -> None:
    slot = pipeline.acquire()
    slot.bind("x", np.array(values, np.float32))
    pipeline.submit(slot, len(values), deliver)


def ignore(outputs: Mapping[str, np.ndarray] | None, error: BaseException | None) -> None:
    pass


def seconds_of(stats: PipelineStats) -> float:
    return stats.busy_s + stats.starved_s + stats.blocked_s + stats.idle_s + stats.measuring_s


def test_the_toy_is_an_engine() -> None:
    assert isinstance(ToyEngine(), Engine)
    assert not isinstance(ToySlot(), Engine)


def test_results_come_in_order_of_submission_from_one_engine_thread(pipeline: Run) -> None:
    engine, got = ToyEngine(), []
    line = pipeline(engine)
    for number in range(300):
        submit(line, [number, 0.5], lambda outputs, error: got.append(outputs["y"].tolist()))  # type: ignore[index]
    line.close()
    assert got == [[2.0 * number, 1.0] for number in range(300)]
    assert len(engine.threads) == 1
    assert threading.get_ident() not in engine.threads
    assert line.stats.rows == 600


def test_several_feeders_get_their_own_results_back(pipeline: Run) -> None:
    line = pipeline(ToyEngine())
    got: dict[int, list[float]] = {feeder: [] for feeder in range(4)}

    def feed(feeder: int) -> None:
        for number in range(100):
            value = float(1000 * feeder + number)
            submit(line, [value], lambda outputs, _: got[feeder].extend(outputs["y"].tolist()))  # type: ignore[index]

    feeders = [threading.Thread(target=feed, args=[feeder]) for feeder in got]
    for thread in feeders:
        thread.start()
    for thread in feeders:
        thread.join()
    line.close()
    assert got == {f: [2.0 * (1000 * f + number) for number in range(100)] for f in got}


def test_slots_bound_what_is_in_flight(pipeline: Run) -> None:
    engine = ToyEngine()
    line = pipeline(engine, slots=2)
    first, second = line.acquire(), line.acquire()
    assert first is not second
    third: list[object] = []
    waiting = threading.Thread(target=lambda: third.append(line.acquire()))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    line.release(first)
    waiting.join(5)
    assert third == [first]
    assert len(engine.slots) == 2
    line.release(first)
    line.release(second)


def test_a_slot_is_not_reused_before_its_results_are_written(pipeline: Run) -> None:
    line = pipeline(ToyEngine(), slots=1)
    may_write, acquired = threading.Event(), threading.Event()
    submit(line, [1.0], lambda *_: bool(may_write.wait(10)))
    thread = threading.Thread(target=lambda: (line.release(line.acquire()), acquired.set()))
    thread.start()
    assert not acquired.wait(0.1)
    may_write.set()
    assert acquired.wait(5)
    thread.join()


def test_an_error_belongs_to_its_batch_alone(pipeline: Run) -> None:
    line, got = pipeline(ToyEngine()), []
    for value in (1.0, -1.0, 3.0):
        submit(line, [value], lambda outputs, error: got.append((outputs and outputs["y"].tolist(), error)))
    line.close()
    assert got[0] == ([2.0], None)
    assert got[2] == ([6.0], None)
    assert got[1][0] is None
    assert isinstance(got[1][1], ValueError)


def test_closing_delivers_what_is_queued_and_ends_the_threads(pipeline: Run) -> None:
    before = threading.active_count()
    line, got = pipeline(ToyEngine(0.03), slots=4), []
    for number in range(4):
        submit(line, [number], lambda outputs, _: got.append(outputs["y"][0]))  # type: ignore[index]
    closing = threading.Thread(target=line.close)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
    assert got == [0.0, 2.0, 4.0, 6.0]
    line.close()
    assert threading.active_count() == before


def test_the_account_adds_up_to_the_wall(pipeline: Run) -> None:
    line = pipeline(ToyEngine(0.002))
    start_s = time.perf_counter()
    line.begin(full_rows=2)
    for number in range(40):
        time.sleep(0.001 * (number % 5))
        submit(line, [1.0, 2.0], lambda *_: time.sleep(0.003))
    line.end()
    time.sleep(0.05)
    line.begin(full_rows=2)
    submit(line, [1.0, 2.0], ignore)
    line.close()
    wall_s = time.perf_counter() - start_s
    stats = line.stats
    assert seconds_of(stats) == pytest.approx(wall_s, rel=0.1, abs=0.03)
    assert stats.rows == 82
    assert min(stats.busy_s, stats.starved_s, stats.idle_s, stats.measuring_s) > 0


def _shares(pipeline: Run, engine_s: float, feed_s: float, write_s: float) -> dict[str, float]:
    line = pipeline(ToyEngine(engine_s))
    # A full batch never comes, so nothing is spent on measuring.
    line.begin(full_rows=1000)
    for _ in range(15):
        time.sleep(feed_s)
        submit(line, [1.0], lambda *_: time.sleep(write_s))
    line.close()
    stats = line.stats
    assert stats.measuring_s == 0
    assert stats.idle_s == 0
    whole = seconds_of(stats)
    return {
        "busy": stats.busy_s / whole,
        "starved": stats.starved_s / whole,
        "blocked": stats.blocked_s / whole,
    }


def test_a_slow_feeder_starves_the_engine(pipeline: Run) -> None:
    shares = _shares(pipeline, engine_s=0.001, feed_s=0.02, write_s=0.001)
    assert shares["starved"] > 0.6
    assert shares["blocked"] < 0.1


def test_a_slow_writer_blocks_the_engine(pipeline: Run) -> None:
    shares = _shares(pipeline, engine_s=0.001, feed_s=0.0, write_s=0.02)
    assert shares["blocked"] > 0.5
    assert shares["starved"] < 0.2


def test_a_slow_engine_is_busy(pipeline: Run) -> None:
    shares = _shares(pipeline, engine_s=0.02, feed_s=0.001, write_s=0.001)
    assert shares["busy"] > 0.8


def test_nothing_counts_before_the_first_shard(pipeline: Run) -> None:
    line = pipeline(ToyEngine())
    time.sleep(0.5)
    line.begin(full_rows=10)
    submit(line, [1.0], ignore)
    line.close()
    assert line.stats.idle_s == 0
    assert line.stats.starved_s < 0.5


def test_the_engines_own_rate_is_measured_once_on_a_full_batch(pipeline: Run) -> None:
    engine = ToyEngine(0.004)
    line = pipeline(engine)
    line.begin(full_rows=8)
    submit(line, [1.0] * 3, ignore)
    delivered = threading.Event()
    submit(line, [1.0] * 8, lambda *_: delivered.set())
    assert delivered.wait(10)
    stats = line.stats
    assert 8 / 0.02 < stats.engine_rows_per_s <= 8 / 0.004
    assert 0.05 < stats.measuring_s < 1
    assert stats.rows == 11
    runs = engine.runs
    submit(line, [1.0] * 8, ignore)
    line.close()
    assert engine.runs == runs + 1
    assert line.stats.measuring_s == stats.measuring_s
