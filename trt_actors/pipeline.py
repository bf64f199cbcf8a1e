"""The engine's own thread, the slots around it, and an account of where its time went.

Feeders (one per shard in flight) fill free slots; one thread executes them in order; one thread hands the
outputs to whoever submitted the batch and frees the slot. Memory is bounded by the number of slots.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from queue import Empty, SimpleQueue

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


class _Signal(Enum):
    """What the engine thread is told besides batches."""

    LOOK = "whether shards are in flight has changed"
    CLOSE = "nothing follows"


@dataclass(frozen=True)
class _Batch:
    slot: Slot
    rows: int
    deliver: Deliver


class Pipeline:
    """Runs batches through an open engine; feeders call from any thread.

    Threads hand over to each other through queues that wake one waiter: at hundreds of batches a second,
    waking all of them would cost as much as decoding does.

    Args:
        engine: Open; stays the caller's to close, after ``close``.
        slots: Batches that may exist at once.
    """

    def __init__(self, engine: Engine, slots: int) -> None:
        self._engine = engine
        self._free: SimpleQueue[Slot] = SimpleQueue()
        for _ in range(slots):
            self._free.put(engine.slot())
        self._staged: SimpleQueue[_Batch | _Signal] = SimpleQueue()
        self._ready: SimpleQueue[tuple[_Batch, Exception | None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._active = 0
        self._undelivered = 0
        self._full_rows = 0
        self._stats = PipelineStats()
        self._has_begun = False
        self._threads = [
            threading.Thread(target=self._execute, name="engine", daemon=True),
            threading.Thread(target=self._deliver, name="writer", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def stats(self) -> PipelineStats:
        """The account so far."""
        return self._stats

    def begin(self, full_rows: int) -> None:
        """A shard is in flight; ``full_rows`` is how many rows its full batches have."""
        with self._lock:
            self._active += 1
            self._full_rows = full_rows
        self._staged.put(_Signal.LOOK)

    def end(self) -> None:
        """A shard is no longer in flight."""
        with self._lock:
            self._active -= 1
        self._staged.put(_Signal.LOOK)

    def acquire(self) -> Slot:
        """Waits for a free slot; the caller fills it, then submits or releases it."""
        return self._free.get()

    def release(self, slot: Slot) -> None:
        """Returns a slot unused."""
        self._free.put(slot)

    def submit(self, slot: Slot, rows: int, deliver: Deliver) -> None:
        """Queues a filled slot. ``deliver`` is called once, in order of submission, by the writer thread.

        ``deliver`` must not raise.
        """
        self._staged.put(_Batch(slot, rows, deliver))

    def close(self) -> None:
        """Ends both threads once everything submitted has been delivered."""
        self._staged.put(_Signal.CLOSE)
        for thread in self._threads:
            thread.join()

    def _account(self, **seconds: float) -> None:
        # Only the engine thread writes; others see the old or the new account.
        stats = self._stats
        self._stats = replace(stats, **{name: getattr(stats, name) + s for name, s in seconds.items()})

    def _why_waiting(self) -> str:
        if not self._active:
            return "idle_s"
        return "blocked_s" if self._free.empty() and self._undelivered else "starved_s"

    def _take(self) -> _Batch | _Signal:
        try:
            return self._staged.get_nowait()
        except Empty:
            reason, start = self._why_waiting(), time.perf_counter()
            item = self._staged.get()
            # A signal marks each change of the reason; before the first one there is nothing to account for.
            if self._has_begun:
                self._account(**{reason: time.perf_counter() - start})
            return item

    def _execute(self) -> None:
        while (item := self._take()) is not _Signal.CLOSE:
            if isinstance(item, _Signal):
                self._has_begun = True
                continue
            start = time.perf_counter()
            measuring_s, error = 0.0, None
            try:
                if not self._stats.engine_rows_per_s and item.rows >= self._full_rows:
                    measuring_s = self._measure(item)
                else:
                    self._run(item)
            except Exception as raised:
                error = raised
            busy_s = time.perf_counter() - start - measuring_s
            self._account(busy_s=busy_s, measuring_s=measuring_s, rows=item.rows)
            with self._lock:
                self._undelivered += 1
            self._ready.put((item, error))
        self._ready.put(None)

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
        self._stats = replace(self._stats, engine_rows_per_s=batch.rows / max(fastest_s, 1e-9))
        return spent_s

    def _deliver(self) -> None:
        while (item := self._ready.get()) is not None:
            batch, error = item
            batch.deliver(None if error else batch.slot.outputs, error)
            with self._lock:
                self._undelivered -= 1
            self._free.put(batch.slot)
