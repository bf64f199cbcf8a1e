"""Which running attempt is slow enough to be worth a second copy."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from heapq import heapify, heappop, heappush

from .budgets import Limits
from .workers import Attempt

__all__ = ["Stragglers"]

_SAMPLE = 101
_COMPACT_ABOVE = 64


class Stragglers:
    """Watches open attempts, the longest running first, against the median of recent finished ones."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._heap: list[tuple[float, int, Attempt]] = []
        self._pushes = 0
        self._open = 0
        self._recent: deque[float] = deque(maxlen=_SAMPLE)
        self._sorted: list[float] = []

    @property
    def patience_s(self) -> float:
        """Seconds an attempt may run before it counts as a straggler."""
        middle = len(self._sorted) // 2
        if not self._sorted:
            median = 0.0
        elif len(self._sorted) % 2:
            median = self._sorted[middle]
        else:
            median = (self._sorted[middle - 1] + self._sorted[middle]) / 2
        return max(self._limits.straggler_min_s, self._limits.straggler_factor * median)

    def measure(self, duration_s: float) -> None:
        """Add the duration of an attempt that finished its shard to the sample."""
        if len(self._recent) == _SAMPLE:
            del self._sorted[bisect_left(self._sorted, self._recent[0])]
        self._recent.append(duration_s)
        insort(self._sorted, duration_s)

    def opened(self, attempt: Attempt) -> None:
        """Watch a new attempt, which is already among its `copies`."""
        self._open += 1
        self._watch(attempt)

    def lost(self, attempt: Attempt) -> None:
        """Stop watching an attempt and take it out of its `copies`, which may now have room for another."""
        self._close(attempt)
        attempt.copies.remove(attempt)
        for copy in attempt.copies:
            if not copy.watched:
                self._watch(copy)

    def finished(self, copies: list[Attempt]) -> None:
        """Stop watching every attempt of a shard that is finished; empties the list, which they share."""
        for copy in copies:
            self._close(copy)
        # An attempt and the list refer to each other, and would wait for the garbage collector.
        copies.clear()

    def longest_running(self) -> Attempt | None:
        """The open attempt that started first, among the shards that may have another copy."""
        while self._heap:
            attempt = self._heap[0][2]
            if attempt.open and len(attempt.copies) < self._limits.copies:
                return attempt
            heappop(self._heap)
            attempt.watched = False
        return None

    def _watch(self, attempt: Attempt) -> None:
        self._pushes += 1
        attempt.watched = True
        heappush(self._heap, (attempt.started_s, self._pushes, attempt))

    def _close(self, attempt: Attempt) -> None:
        attempt.open = False
        self._open -= 1
        # Closed attempts stay in the heap until they surface; over a long job they would pile up.
        if len(self._heap) > 2 * self._open + _COMPACT_ABOVE:
            self._heap = [entry for entry in self._heap if entry[2].open]
            heapify(self._heap)
