"""One engine context of a trial: opened, warmed up and timed, all by one thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...datasets.signature import TensorSpec
from ..backends import open_engine
from ..engine import Engine, Slot
from .statistics import Steadiness
from .task import Order
from .torch_engine import TorchEngine

__all__ = ["Context", "Latencies", "WarmUp", "Window", "synthetic"]

_SEED = 7
_LEAST_WARM_UP_RUNS = 3


class Window:
    """The time in which one context of several is measured: until all of them have enough.

    Attributes:
        has_enough: Set once this one has.
    """

    def __init__(self) -> None:
        self.has_enough = threading.Event()
        self._is_over = threading.Event()

    def goes_on(self, enough: bool) -> bool:
        """Asked by the context before each batch; ``enough`` tells whether it would do without more."""
        if enough:
            self.has_enough.set()
        return not self._is_over.is_set()

    def end(self) -> None:
        """All have enough."""
        self._is_over.set()


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """How a context was warmed up.

    Attributes:
        runs: Batches it took.
        seconds: Time it took.
        is_steady: Whether it ended because the times had settled.
    """

    runs: int
    seconds: float
    is_steady: bool


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """The times of single batches.

    Attributes:
        ends_s: float64[n], when each ended, by this machine's monotonic clock.
        host_s: float64[n], from the caller's arrays to arrays of results.
        engine_s: float64[n], execution alone.
    """

    ends_s: np.ndarray
    host_s: np.ndarray
    engine_s: np.ndarray


def synthetic(
    inputs: tuple[TensorSpec, ...], row_shapes: Mapping[str, tuple[int, ...]], rows: int
) -> dict[str, np.ndarray]:
    """A batch of seeded values: normal floats, all bytes, small other integers, which are valid as ids.

    Args:
        inputs: What the network takes.
        row_shapes: The shape of one row of each.
        rows: Of the batch.

    Returns:
        (rows, ...) for each input, C-contiguous, owned by the caller.
    """
    rng = np.random.default_rng(_SEED)
    made: dict[str, np.ndarray] = {}
    for spec in inputs:
        shape = (rows, *row_shapes[spec.name])
        if spec.dtype.kind == "f":
            made[spec.name] = rng.standard_normal(shape, np.float32).astype(spec.dtype)
        else:
            most = 256 if spec.dtype == np.uint8 else 2
            made[spec.name] = rng.integers(0, most, shape).astype(spec.dtype)
    return made


class Context:
    """One engine and its slots.

    Args:
        order: The trial.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._rows = order.batch_size
        self._given = synthetic(order.network.inputs, order.row_shapes, order.batch_size)
        self._engine: Engine
        self._slots: list[Slot]
        self.not_taken = ""

    @property
    def backend(self) -> str:
        """What executes, once it is open."""
        return self._engine.backend

    def open(self) -> float:
        """Loads the engine, building it where the cache has none; returns the seconds it took.

        Raises:
            TrtfleetError: The engine cannot be had.
        """
        start_s, order = time.perf_counter(), self._order
        threads = max(1, order.threads // order.contexts)
        if order.torch is not None:
            self._engine = TorchEngine(order.torch, inputs=order.network.inputs, threads=threads).open()
        else:
            self._engine, self.not_taken = open_engine(
                order.backend, order.network, settings=order.settings, threads=threads
            )
        self._engine.full_rows = self._rows
        # One batch more than the engine can hold, which is filled meanwhile.
        self._slots = [self._engine.slot() for _ in range(self._engine.depth + 1)]
        return time.perf_counter() - start_s

    def warm_up(self, limit_s: float) -> WarmUp:
        """Runs batches until their times have settled, at most for so many seconds."""
        start_s, runs, steadiness, is_steady = time.perf_counter(), 0, Steadiness(), False
        for slot in self._slots:
            for _ in range(_LEAST_WARM_UP_RUNS):
                self._once(slot)
                runs += 1
        while not is_steady and time.perf_counter() - start_s < limit_s:
            host_s, _ = self._once(self._slots[0])
            is_steady = steadiness.add(host_s)
            runs += 1
        return WarmUp(runs=runs, seconds=time.perf_counter() - start_s, is_steady=is_steady)

    def latency(self, window: Window) -> Latencies:
        """Runs one batch after another, with nothing else of this context on the device."""
        slot, measure = self._slots[0], self._order.measure
        ends: list[float] = []
        host: list[float] = []
        engine: list[float] = []
        start_s = time.perf_counter()
        while window.goes_on(len(ends) >= measure.runs and ends[-1] - start_s >= measure.seconds):
            host_s, engine_s = self._once(slot)
            host.append(host_s)
            engine.append(engine_s)
            ends.append(time.perf_counter())
        return Latencies(ends_s=np.array(ends), host_s=np.array(host), engine_s=np.array(engine))

    def throughput(self, window: Window) -> np.ndarray:
        """Keeps as many batches on the device as the engine wants.

        Returns:
            float64[2, n]: when batches ended, by this machine's monotonic clock, and their rows.
        """
        measure = self._order.measure
        free, running = deque(self._slots), deque[Slot]()
        ends: list[float] = []
        start_s = time.perf_counter()
        while window.goes_on(len(ends) >= measure.runs and ends[-1] - start_s >= measure.seconds):
            slot = free.popleft()
            self._fill(slot)
            done = running.popleft() if len(running) >= self._engine.depth else None
            if done is not None:
                self._engine.wait(done)
            self._engine.enqueue(slot, self._rows)
            running.append(slot)
            if done is not None:
                # Taken while the device is busy with what was just given to it.
                self._take(done)
                free.append(done)
                ends.append(time.perf_counter())
        for slot in running:
            self._engine.wait(slot)
        return np.stack([np.array(ends), np.full(len(ends), self._rows, np.float64)])

    def close(self) -> None:
        """Releases the engine."""
        self._slots = []
        self._engine.close()

    def _once(self, slot: Slot) -> tuple[float, float]:
        """Runs one batch; returns its seconds, from host to host and of the engine."""
        engine, device_before_s = self._engine, self._engine.device_s
        start_s = time.perf_counter()
        self._fill(slot)
        filled_s = time.perf_counter()
        engine.enqueue(slot, self._rows)
        engine.wait(slot)
        done_s = time.perf_counter()
        self._take(slot)
        host_s = time.perf_counter() - start_s
        if device_before_s is None or engine.device_s is None:
            return host_s, done_s - filled_s
        return host_s, engine.device_s - device_before_s

    def _fill(self, slot: Slot) -> None:
        for name, array in self._given.items():
            slot.buffer(name, array.shape)[...] = array

    def _take(self, slot: Slot) -> None:
        for array in slot.outputs.values():
            array.copy()
