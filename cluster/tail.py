"""The end of a job: when a slow actor had better get nothing more, and which actors are of no more use."""

from __future__ import annotations

from .budgets import Limits
from .workers import Actor, Workers

__all__ = ["Tail", "earlier"]


_CAUTION = 1.25


class Tail:
    """Decides about the last shards of a job.

    Args:
        limits: Of the job.
        workers: Its actors.
    """

    def __init__(self, limits: Limits, workers: Workers) -> None:
        self._limits = limits
        self._workers = workers
        self._hold_s: float | None = None
        self._release_s: float | None = None

    def had_better_wait(self, actor: Actor, rows: int, waiting_rows: int, now_s: float) -> float | None:
        """Until when a shard is left to much faster actors, which are all full; None gives it to this one.

        They would be done with all that waits before this one is done with the shard. If they are not by
        then, their rates have promised too much, and it is given away after all.

        Args:
            actor: The first that has room.
            rows: Of the shard.
            waiting_rows: Of all shards that wait, this one included.
            now_s: The time.
        """
        takes_s, others_s = actor.takes_s(rows), self._workers.faster_than(actor).takes_s(waiting_rows, rows)
        # What is put behind something else can as well be decided when that is done.
        caution = _CAUTION if actor.attempts else 1.0
        is_late = takes_s is not None and others_s is not None and takes_s * caution > others_s
        if self._limits.copies > 1 and others_s is not None and is_late:
            if self._hold_s is None:
                self._hold_s = now_s + others_s
            if now_s < self._hold_s:
                return self._hold_s
        self._hold_s = None
        return None

    def hold_nothing(self) -> None:
        """No shard waits for faster actors."""
        self._hold_s = None

    def keep_all(self) -> None:
        """Shards wait, so no actor is of no use."""
        self._release_s = None

    def surplus(self, running: int, wanted: int, most: int, now_s: float) -> tuple[list[Actor], float | None]:
        """Which actors the rest of the job has no use for, when no shard waits.

        Every shard in flight may yet want a copy, and whoever runs none and starts is first to go.

        Args:
            running: Shards in flight.
            wanted: Actors that there must be.
            most: Actors that there may be.
            now_s: The time.

        Returns:
            Those actors, once they have been of no use for a while; and when that will be, if ever.
        """
        copies = running * (self._limits.copies - 1)
        busy = self._workers.busy
        useful = max(busy, wanted, min(most, busy + copies), self._limits.spare_actors)
        surplus = len(self._workers) - useful
        if surplus <= 0:
            self._release_s = None
            return [], None
        if self._release_s is None:
            self._release_s = now_s + self._limits.release_after_s
        if now_s < self._release_s:
            return [], self._release_s
        self._release_s = None
        return self._workers.dispensable(surplus), None


def earlier(one_s: float | None, other_s: float | None) -> float | None:
    """The earlier of two times, of which there may be none."""
    return other_s if one_s is None else one_s if other_s is None else min(one_s, other_s)
