"""What an actor's threads did and when: spans that are kept for a trace, and seconds that are summed up."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

__all__ = ["NullTracer", "Span", "TraceEvent", "Tracer"]

_EVENTS_KEPT = 100_000


class TraceEvent(NamedTuple):
    """One thing that happened; a plain tuple, so that thousands of them pickle quickly.

    Attributes:
        phase: ``X`` for something that took time, ``C`` for a value that changed.
        name: What happened, or which value changed.
        category: What kind of work it is, for filters in the viewer; empty for values.
        track: The thread or device stream it happened on; empty for values.
        start_s: When, in seconds of the tracer's clock.
        duration_s: How long it took; 0 for values.
        args: Details; of a value, ``{"value": ...}``.
    """

    phase: Literal["X", "C"]
    name: str
    category: str
    track: str
    start_s: float
    duration_s: float
    args: dict[str, Any]


class Span:
    """Something that is going on; made by ``Tracer.span`` and ``Tracer.begin``.

    As a context manager it hands out the dict of its details, to be completed until it ends.
    """

    __slots__ = ("_tracer", "args", "category", "name", "start_s", "track")

    def __init__(self, tracer: Tracer, name: str, category: str, args: dict[str, Any]) -> None:
        self._tracer = tracer
        self.name = name
        self.category = category
        self.args = args
        self.track = ""
        self.start_s = 0.0

    def __enter__(self) -> dict[str, Any]:
        self._tracer._start(self)
        return self.args

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.args["error"] = kind.__name__
        self._tracer.end(self)


class Tracer:
    """Keeps what happened last, in bounded memory; called by any thread.

    Every thread has a track of its own under its name; threads of one name are numbered.

    Args:
        capacity: Events kept. Each takes about 300 bytes; when they are more, the oldest go.
        clock: Monotonic seconds. What is measured elsewhere must be given in the same seconds.
    """

    is_on = True

    def __init__(self, capacity: int = _EVENTS_KEPT, clock: Callable[[], float] = time.perf_counter) -> None:
        self._events: deque[TraceEvent] = deque(maxlen=capacity)
        self._recorded = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._tracks: set[str] = set()
        self._thread = threading.local()

    def now_s(self) -> float:
        """The tracer's clock, to relate the times of a device to."""
        return self._clock()

    def name_thread(self, name: str) -> None:
        """Gives the calling thread's track a better name than the thread has; harmless when repeated."""
        if getattr(self._thread, "name", None) != name:
            self._thread.name = name
            self._thread.track = self._new_track(name)

    def span(self, name: str, category: str = "", **args: Any) -> Span:
        """What the calling thread does inside the ``with`` block."""
        return Span(self, name, category, args)

    def begin(self, name: str, category: str = "", **args: Any) -> Span:
        """The calling thread starts something that does not end in the same block; see ``end``."""
        span = Span(self, name, category, args)
        self._start(span)
        return span

    def end(self, span: Span, **args: Any) -> None:
        """What ``begin`` returned is over; it belongs to the thread that began it."""
        span.args.update(args)
        duration_s = self._clock() - span.start_s
        self._add(TraceEvent("X", span.name, span.category, span.track, span.start_s, duration_s, span.args))

    def complete(
        self, name: str, track: str, start_s: float, duration_s: float, *, category: str = "", **args: Any
    ) -> None:
        """Adds what was measured elsewhere, by a device's own events for example.

        Args:
            name: What happened.
            track: Where; a device stream's name.
            start_s: When, in seconds of this tracer's clock.
            duration_s: How long it took.
            category: What kind of work it is.
            args: Details.
        """
        self._add(TraceEvent("X", name, category, track, start_s, max(0.0, duration_s), args))

    def counter(self, name: str, value: float) -> None:
        """A value that changed, the length of a queue for example."""
        self._add(TraceEvent("C", name, "", "", self._clock(), 0.0, {"value": value}))

    def events(self) -> tuple[TraceEvent, ...]:
        """What is kept, in the order in which it ended."""
        with self._lock:
            return tuple(self._events)

    @property
    def dropped(self) -> int:
        """How many events are no longer kept."""
        with self._lock:
            return self._recorded - len(self._events)

    def _add(self, event: TraceEvent) -> None:
        with self._lock:
            self._events.append(event)
            self._recorded += 1

    def _start(self, span: Span) -> None:
        track: str | None = getattr(self._thread, "track", None)
        if track is None:
            track = self._thread.track = self._new_track(threading.current_thread().name)
        span.track = track
        span.start_s = self._clock()

    def _new_track(self, name: str) -> str:
        with self._lock:
            track, number = name, 1
            while track in self._tracks:
                number += 1
                track = f"{name} {number}"
            self._tracks.add(track)
            return track


class NullTracer(Tracer):
    """Keeps nothing, for jobs that nobody traces."""

    is_on = False

    def __init__(self) -> None:
        super().__init__(capacity=0)

    def name_thread(self, name: str) -> None:
        """Does nothing."""

    def end(self, span: Span, **args: Any) -> None:
        """Does nothing."""

    def _add(self, event: TraceEvent) -> None:
        pass

    def _start(self, span: Span) -> None:
        pass
