"""Which running attempt is worth a second copy on an idle actor."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from .budgets import Limits
from .speeds import MUCH
from .workers import Actor, Attempt, Group

__all__ = ["Stragglers"]

_SAMPLE = 101
_COMPACT_ABOVE = 64
_WORTHWHILE = 2.0


class _Line:
    """Open attempts in some order; closed ones stay until they surface, or are too many."""

    def __init__(self, flag: int, copies: int, key: Callable[[Attempt], float]) -> None:
        self._flag = flag
        self._copies = copies
        self._key = key
        self._heap: list[tuple[float, int, Attempt]] = []
        self._pushes = 0

    def push(self, attempt: Attempt) -> None:
        """Lines an attempt up, unless it is in line."""
        if not attempt.watched & self._flag:
            self._pushes += 1
            attempt.watched |= self._flag
            heappush(self._heap, (self._key(attempt), self._pushes, attempt))

    def first(self) -> Attempt | None:
        """The first open attempt, among the shards that may have another copy."""
        while self._heap:
            attempt = self._heap[0][2]
            if attempt.open and len(attempt.copies) < self._copies:
                return attempt
            heappop(self._heap)
            attempt.watched &= ~self._flag
        return None

    def tidy(self, still_open: int) -> None:
        """Drops closed attempts where they outnumber the open ones: over a long job they would pile up."""
        if len(self._heap) > 2 * still_open + _COMPACT_ABOVE:
            self._heap = [entry for entry in self._heap if entry[2].open]
            heapify(self._heap)


class Stragglers:
    """Watches open attempts.

    There are two reasons for a copy. An attempt that has run for much longer than the median of recent
    finished ones is slow for a reason that nobody knows. And an attempt on a slow actor, late as it should
    be, may be overtaken by one that an idle, much faster actor begins now.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_start = _Line(1, limits.copies, lambda attempt: attempt.started_s)
        self._by_end = _Line(2, limits.copies, lambda attempt: -(attempt.ends_s or 0.0))
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
            self._watch(copy)

    def finished(self, copies: list[Attempt]) -> None:
        """Stop watching every attempt of a shard that is finished; empties the list, which they share."""
        for copy in copies:
            self._close(copy)
        # An attempt and the list refer to each other, and would wait for the garbage collector.
        copies.clear()

    def worth_a_copy(self, actor: Actor, faster: Group, now_s: float) -> tuple[Attempt | None, float | None]:
        """What an idle actor had better duplicate.

        Args:
            actor: The fastest idle one.
            faster: Those that are much faster than it: they come first if they are free soon enough.
            now_s: The time.

        Returns:
            The attempt, or None, and then when there will be one if nothing happens until then; or None.
        """
        latest = self._by_end.first()
        if latest is not None and self._can_overtake(actor, latest, now_s):
            return latest, None
        longest = self._by_start.first()
        if longest is None:
            return None, None
        due_s = longest.started_s + self.patience_s
        takes_s = actor.takes_s(longest.rows)
        if takes_s is not None and longest.ends_s is not None:
            # A slow actor's copy would come second as long as the attempt is on time.
            due_s = max(due_s, longest.ends_s - takes_s)
        if faster.rate:
            due_s += (faster.rows + longest.rows * faster.actors) / faster.rate
        return (longest, None) if due_s <= now_s else (None, due_s)

    def _can_overtake(self, actor: Actor, attempt: Attempt, now_s: float) -> bool:
        """Whether an idle actor would be done much earlier, and earlier by more than a copy costs."""
        takes_s = actor.takes_s(attempt.rows)
        if takes_s is None or attempt.ends_s is None or actor.pace.step < attempt.actor_step + MUCH:
            return False
        left_s = attempt.ends_s - now_s
        return left_s >= _WORTHWHILE * takes_s and left_s - takes_s >= self._limits.straggler_min_s

    def _watch(self, attempt: Attempt) -> None:
        self._by_start.push(attempt)
        if attempt.ends_s is not None:
            self._by_end.push(attempt)

    def _close(self, attempt: Attempt) -> None:
        attempt.open = False
        self._open -= 1
        self._by_start.tidy(self._open)
        self._by_end.tidy(self._open)
