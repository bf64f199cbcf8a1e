"""The engine's own thread, the slots around it, and an account of where its time went.

Feeders (one per shard in flight) fill free slots; one thread executes them in order; one thread hands the
outputs to whoever submitted the batch and frees the slot. Memory is bounded by the number of slots.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from queue import Empty, SimpleQueue

import numpy as np

from .engine import Engine, Slot
from .out_of_memory import out_of_memory
from .pipeline_stats import PipelineStats
from .trace import NullTracer, Tracer
from .warm_up import fastest_run, run_alone, warm_up
from .watchdog import ENGINE, Watchdog

__all__ = ["Pipeline"]

Deliver = Callable[[Mapping[str, np.ndarray] | None, BaseException | None], None]
"""Takes a batch's outputs (valid until it returns) or the error of its execution.

That memory ran out is an OutOfMemoryError, whatever the runtime raised; everything else comes as it is.
"""

_RATE_SECONDS = 0.1


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
        full_rows: Rows of a full batch, to warm a device up with; None warms nothing up.
        tracer: Told of executions, waits and free slots.
        watchdog: Watches executions.

    Raises:
        OutOfMemoryError: The device, warmed up, has no memory for the slots.
    """

    def __init__(
        self,
        engine: Engine,
        slots: int,
        full_rows: int | None = None,
        tracer: Tracer | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        self._tracer = tracer or NullTracer()
        self._watchdog = watchdog or Watchdog()
        self._engine = engine
        self._free: SimpleQueue[Slot] = SimpleQueue()
        made = [engine.slot() for _ in range(slots)]
        rate = warm_up(engine, made, full_rows) if full_rows else 0.0
        for slot in made:
            self._free.put(slot)
        self._staged: SimpleQueue[_Batch | _Signal] = SimpleQueue()
        self._ready: SimpleQueue[tuple[_Batch, Exception | None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._active = 0
        self._undelivered = 0
        self._full_rows = 0
        self._stats = PipelineStats(engine_rows_per_s=rate)
        self._has_begun = False
        self._device_before_s = engine.device_s or 0.0
        self._repeats_device_s = 0.0
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
        with self._tracer.span("acquire", "waiting"):
            slot = self._free.get()
        self._tracer.counter("free slots", self._free.qsize())
        return slot

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

    def _take(self, *, patiently: bool) -> _Batch | _Signal | None:
        """The next thing to do; waits for it when asked to, and accounts for the wait."""
        try:
            return self._staged.get_nowait()
        except Empty:
            if not patiently:
                return None
            reason, start = self._why_waiting(), time.perf_counter()
            with self._tracer.span(reason.removesuffix("_s"), "waiting"):
                item = self._staged.get()
            # A signal marks each change of the reason; before the first one there is nothing to account for.
            if self._has_begun:
                self._account(**{reason: time.perf_counter() - start})
            return item

    def _execute(self) -> None:
        """Keeps up to ``depth`` batches on the engine, which counts as busy while there is one."""
        in_flight: deque[_Batch] = deque()
        item: _Batch | _Signal | None = None
        while item is not _Signal.CLOSE:
            item = self._take(patiently=not in_flight)
            start, measuring_s = time.perf_counter(), 0.0
            is_unmeasured = not self._stats.engine_rows_per_s
            if isinstance(item, _Batch) and is_unmeasured and item.rows >= self._full_rows:
                self._drain(in_flight)
                with self._executing("measure", item.rows):
                    measuring_s = self._measure(item)
            elif isinstance(item, _Batch):
                self._begin(item, in_flight)
            if item is _Signal.CLOSE:
                self._drain(in_flight)
            elif in_flight and (item is None or len(in_flight) >= self._engine.depth):
                self._finish(in_flight.popleft())
            if isinstance(item, _Signal):
                self._has_begun = True
            else:
                self._account(busy_s=time.perf_counter() - start - measuring_s, measuring_s=measuring_s)
        self._ready.put(None)

    @contextlib.contextmanager
    def _executing(self, name: str, rows: int) -> Iterator[None]:
        with self._tracer.span(name, "executing", rows=rows), self._watchdog.step(ENGINE):
            yield

    def _begin(self, batch: _Batch, in_flight: deque[_Batch]) -> None:
        """Enqueues a batch; one that fails at once is handed on behind those before it."""
        try:
            with self._executing("enqueue", batch.rows):
                self._engine.enqueue(batch.slot, batch.rows)
        except Exception as error:
            self._drain(in_flight)
            self._hand_on(batch, error)
        else:
            in_flight.append(batch)

    def _drain(self, in_flight: deque[_Batch]) -> None:
        while in_flight:
            self._finish(in_flight.popleft())

    def _finish(self, batch: _Batch) -> None:
        error: Exception | None = None
        try:
            with self._executing("wait", batch.rows):
                self._engine.wait(batch.slot)
        except Exception as raised:
            error = raised
        self._hand_on(batch, error)

    def _hand_on(self, batch: _Batch, error: Exception | None) -> None:
        self._account(rows=batch.rows)
        self._stats = replace(self._stats, device_s=self._device_s())
        with self._lock:
            self._undelivered += 1
        self._ready.put((batch, error and (out_of_memory(error, batch.rows) or error)))

    def _device_s(self) -> float | None:
        device_s = self._engine.device_s
        return None if device_s is None else device_s - self._device_before_s - self._repeats_device_s

    def _measure(self, batch: _Batch) -> float:
        """Executes a batch several times to find the engine's own rate; returns the seconds of the repeats.

        The first run warms up and is not counted, unless it alone takes as long as all of them should. What
        the device does in the repeats is not the job's.
        """
        start, spent_s, error = time.perf_counter(), 0.0, None
        try:
            fastest_s = run_alone(self._engine, batch.slot, batch.rows)
            begun, device_begun_s = time.perf_counter(), self._engine.device_s
            # A device plans in its first run, which tells nothing of its rate.
            if begun - start < _RATE_SECONDS or device_begun_s is not None:
                repeated_s = fastest_run(self._engine, batch.slot, batch.rows, _RATE_SECONDS)
                fastest_s, spent_s = min(fastest_s, repeated_s), time.perf_counter() - begun
            if device_begun_s is not None and self._engine.device_s is not None:
                self._repeats_device_s = self._engine.device_s - device_begun_s
            self._stats = replace(self._stats, engine_rows_per_s=batch.rows / max(fastest_s, 1e-9))
        except Exception as raised:
            error = raised
        self._hand_on(batch, error)
        return spent_s

    def _deliver(self) -> None:
        while (item := self._ready.get()) is not None:
            batch, error = item
            with self._tracer.span("deliver", "writing", rows=batch.rows):
                batch.deliver(None if error else batch.slot.outputs, error)
            with self._lock:
                self._undelivered -= 1
            self._free.put(batch.slot)
