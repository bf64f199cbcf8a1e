"""The engine's own thread, the slots around it, and an account of where its time went.

Feeders (one per shard in flight) fill free slots; one thread executes them in order; one thread hands the
outputs to whoever submitted the batch and frees the slot. Memory is bounded by the number of slots.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from .engine import Engine, Slot

__all__ = ["Pipeline", "PipelineStats"]

Deliver = Callable[[Mapping[str, np.ndarray] | None, BaseException | None], None]
"""Takes a batch's outputs (valid until it returns) or the error of its execution."""

_RATE_RUNS = 20
_RATE_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class PipelineStats:
    """Seconds of the engine thread since the first shard, which add up to its wall time.

    Attributes:
        busy_s: Executing batches.
        starved_s: Waiting for a batch while a shard was in flight.
        blocked_s: Waiting because every slot was held by the writer.
        idle_s: Waiting without a shard in flight.
        measuring_s: Measuring the engine's own rate.
        rows: Rows executed.
        engine_rows_per_s: The engine's own rate on a full batch already in memory; 0 before it is known.
    """

    busy_s: float = 0.0
    starved_s: float = 0.0
    blocked_s: float = 0.0
    idle_s: float = 0.0
    measuring_s: float = 0.0
    rows: int = 0
    engine_rows_per_s: float = 0.0


@dataclass(frozen=True)
class _Batch:
    slot: Slot
    rows: int
    deliver: Deliver


class Pipeline:
    """Runs batches through an open engine; feeders call from any thread.

    Args:
        engine: Open; stays the caller's to close, after ``close``.
        slots: Batches that may exist at once.
    """

    def __init__(self, engine: Engine, slots: int) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._free = deque(engine.slot() for _ in range(slots))
        self._staged: deque[_Batch] = deque()
        self._ready: deque[tuple[_Batch, BaseException | None]] = deque()
        self._active = 0
        self._closing = False
        self._executed_all = False
        self._stats = PipelineStats()
        self._full_rows = 0
        self._threads = [
            threading.Thread(target=self._execute, name="engine", daemon=True),
            threading.Thread(target=self._deliver, name="writer", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def stats(self) -> PipelineStats:
        """The account so far."""
        with self._changed:
            return self._stats

    def begin(self, full_rows: int) -> None:
        """A shard is in flight; ``full_rows`` is how many rows its full batches have."""
        with self._changed:
            self._active += 1
            self._full_rows = full_rows
            self._changed.notify_all()

    def end(self) -> None:
        """A shard is no longer in flight."""
        with self._changed:
            self._active -= 1
            self._changed.notify_all()

    def acquire(self) -> Slot:
        """Waits for a free slot; the caller fills it, then submits or releases it."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._free))
            return self._free.popleft()

    def release(self, slot: Slot) -> None:
        """Returns a slot unused."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify_all()

    def submit(self, slot: Slot, rows: int, deliver: Deliver) -> None:
        """Queues a filled slot. ``deliver`` is called once, in order of submission, by the writer thread.

        ``deliver`` must not raise.
        """
        with self._changed:
            self._staged.append(_Batch(slot, rows, deliver))
            self._changed.notify_all()

    def close(self) -> None:
        """Ends both threads once everything submitted has been delivered."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _account(self, **seconds: float) -> None:
        # Called with the lock held.
        self._stats = replace(
            self._stats, **{name: getattr(self._stats, name) + value for name, value in seconds.items()}
        )

    def _why_waiting(self) -> str:
        if not self._active:
            return "idle_s"
        return "blocked_s" if not self._free and self._ready else "starved_s"

    def _take(self) -> _Batch | None:
        with self._changed:
            while not self._staged:
                if self._closing:
                    return None
                before, reason = time.perf_counter(), self._why_waiting()
                has_begun = self._active or self._stats.rows
                self._changed.wait()
                if has_begun:
                    self._account(**{reason: time.perf_counter() - before})
            return self._staged.popleft()

    def _execute(self) -> None:
        while (batch := self._take()) is not None:
            start = time.perf_counter()
            measuring_s, error = 0.0, None
            try:
                if not self._stats.engine_rows_per_s and batch.rows >= self._full_rows:
                    measuring_s = self._measure(batch)
                else:
                    self._run(batch)
            except Exception as raised:
                error = raised
            with self._changed:
                busy_s = time.perf_counter() - start - measuring_s
                self._account(busy_s=busy_s, measuring_s=measuring_s, rows=batch.rows)
                self._ready.append((batch, error))
                self._changed.notify_all()
        with self._changed:
            self._executed_all = True
            self._changed.notify_all()

    def _run(self, batch: _Batch) -> float:
        start = time.perf_counter()
        self._engine.enqueue(batch.slot, batch.rows)
        self._engine.wait(batch.slot)
        return time.perf_counter() - start

    def _measure(self, batch: _Batch) -> float:
        """Executes a batch several times to find the engine's own rate; returns the seconds spent on repeats.

        The first run warms up and is not counted, unless it alone takes as long as all of them should.
        """
        first_s = fastest_s = self._run(batch)
        spent_s, runs = 0.0, 0
        while first_s < _RATE_SECONDS and spent_s < _RATE_SECONDS and runs < _RATE_RUNS:
            run_s = self._run(batch)
            fastest_s = min(fastest_s, run_s)
            spent_s, runs = spent_s + run_s, runs + 1
        with self._changed:
            self._stats = replace(self._stats, engine_rows_per_s=batch.rows / max(fastest_s, 1e-9))
        return spent_s

    def _deliver(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ready or self._executed_all)
                if not self._ready:
                    return
                batch, error = self._ready[0]
            batch.deliver(None if error else batch.slot.outputs, error)
            with self._changed:
                self._ready.popleft()
                self._free.append(batch.slot)
                self._changed.notify_all()
