"""The shards that wait for an actor: fresh ones in order, and those that come back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from heapq import heappop, heappush

__all__ = ["Backlog", "Past"]


@dataclass(slots=True)
class Past:
    """What an unfinished shard has been through; only shards with an error, a death or a copy have one."""

    attempts: int = 1
    errors: int = 0
    deaths: int = 0
    node_losses: int = 0
    not_before_s: float = -math.inf


class Backlog:
    """The line of shards, by index: those due for a retry first, then those never dispatched.

    The line of fresh shards is one counter and a byte per shard. A shard that is done may still be in line;
    it is passed over when its turn comes.
    """

    def __init__(self, shards: int) -> None:
        self._done = bytearray(shards)
        self._fresh = 0
        self._retries: list[int] = []
        self._backoff: list[tuple[float, int]] = []

    def is_done(self, shard: int) -> bool:
        """Whether the shard is finished."""
        return bool(self._done[shard])

    def mark_done(self, shard: int) -> None:
        """Never hand this shard out again."""
        self._done[shard] = True

    def put_back(self, shard: int, due_s: float) -> None:
        """Line a shard up again, from this time on; it must have been taken."""
        heappush(self._backoff, (due_s, shard))

    def promote(self, now_s: float) -> None:
        """Move the shards that are due to the head of the line."""
        while self._backoff and (self._backoff[0][0] <= now_s or self._done[self._backoff[0][1]]):
            heappush(self._retries, heappop(self._backoff)[1])

    def first(self) -> int | None:
        """The first shard in line, or None when no shard is due."""
        while self._retries and self._done[self._retries[0]]:
            heappop(self._retries)
        if self._retries:
            return self._retries[0]
        while self._fresh < len(self._done) and self._done[self._fresh]:
            self._fresh += 1
        return self._fresh if self._fresh < len(self._done) else None

    def take(self, shard: int) -> None:
        """Take a shard out of the line; it must be the first."""
        if self._retries:
            heappop(self._retries)
        else:
            self._fresh = shard + 1

    @property
    def next_due_s(self) -> float | None:
        """When the next shard is due that was not at the last `promote`; None when there is none."""
        return self._backoff[0][0] if self._backoff else None
