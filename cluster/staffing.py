"""How many actors a job should have, and when starting them has failed too often."""

from __future__ import annotations

from .budgets import Budgets, Limits
from .events import Fail, FailureKind

__all__ = ["Staffing"]


class Staffing:
    """Keeps account of starts.

    Args:
        limits: Of the job.
        budgets: Made of them.

    Attributes:
        most: How many actors there may be at once; it grows with the cluster.
    """

    def __init__(self, limits: Limits, budgets: Budgets) -> None:
        self._budgets = budgets
        self.most = limits.actors
        self._unfit = 0
        self._failed = self._lost = 0

    def wanted(self, unfinished: int) -> int:
        """How many actors there should be for so many shards that are not finished."""
        return min(self.most - self._unfit, unfinished)

    def grow(self, actors: int) -> None:
        """There is room for so many actors in all."""
        self.most = max(self.most, actors)

    def succeeded(self) -> None:
        """An actor is ready: whatever was in the way of earlier ones is not in the way of all."""
        self._failed = self._lost = 0

    def failed(self, reason: str, *, is_node_lost: bool, is_unfit: bool, has_others: bool) -> Fail | None:
        """An actor did not become ready; returns how the job ends, if that was too much.

        Args:
            reason: Why not.
            is_node_lost: It went with its node.
            is_unfit: It was given a machine on which none can work.
            has_others: Whether there are other actors, ready or starting.
        """
        if is_unfit:
            # Another one would be given the same machine: it is not replaced.
            self._unfit += 1
            is_last = self.most <= self._unfit and not has_others
            return Fail(kind=FailureKind.NO_FIT, reason=reason) if is_last else None
        if is_node_lost:
            self._lost += 1
            return self._budgets.lost_starts(self._lost, reason, self.most)
        self._failed += 1
        return self._budgets.failed_starts(self._failed, reason)
