"""How much may go wrong before a job fails, and how patiently it retries."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import UsageError
from .events import Fail, FailureKind

__all__ = ["Budgets", "Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one job. A budget of n tolerates n failures; failure n + 1 ends the job.

    Attributes:
        actors: Actors to run at once, until the cluster is found to have room for more; fewer are started
            when fewer shards are left.
        in_flight_per_actor: Attempts an actor holds at once.
        max_bad_rows: Bad rows tolerated over the whole job; None for any number.
        shard_errors: Retryable errors tolerated per shard.
        shard_deaths: Actors that may die under one shard.
        shard_node_losses: Nodes that may be lost under one shard; only a shard that takes machines down
            meets so many.
        actor_deaths: Ready actors that may die over the whole job, those on lost nodes aside; None for
            max(8, 4 * actors).
        consecutive_failed_starts: Failed starts tolerated since an actor last became ready.
        backoff_s: Delay of a shard's retry after its first error; doubles with each further one.
        backoff_cap_s: The longest such delay.
        straggler_factor: An attempt straggles when it has run this many times the median of finished ones ...
        straggler_min_s: ... and for at least this long.
        copies: Attempts of one shard that may run at once; 1 turns duplicates off, and with them all
            weighing of speeds.
        release_after_s: An actor that the rest of the job has no use for is stopped after this long.
        spare_actors: So many actors stay until the end, for what comes after the last shard.

    Raises:
        UsageError: A limit is out of range.
    """

    actors: int
    in_flight_per_actor: int = 2
    max_bad_rows: int | None = 0
    shard_errors: int = 3
    shard_deaths: int = 4
    shard_node_losses: int = 20
    actor_deaths: int | None = None
    consecutive_failed_starts: int = 3
    backoff_s: float = 0.5
    backoff_cap_s: float = 30.0
    straggler_factor: float = 3.0
    straggler_min_s: float = 5.0
    copies: int = 2
    release_after_s: float = 30.0
    spare_actors: int = 0

    def __post_init__(self) -> None:
        for name in ("actors", "in_flight_per_actor", "copies"):
            self._require(name, at_least=1)
        for name in ("shard_errors", "shard_deaths", "shard_node_losses", "consecutive_failed_starts"):
            self._require(name, at_least=0)
        for name in ("max_bad_rows", "actor_deaths"):
            if getattr(self, name) is not None:
                self._require(name, at_least=0)
        for name in ("backoff_s", "backoff_cap_s", "straggler_factor", "straggler_min_s"):
            self._require(name, at_least=0)
        for name in ("release_after_s", "spare_actors"):
            self._require(name, at_least=0)

    def _require(self, name: str, *, at_least: int) -> None:
        value = getattr(self, name)
        if not (math.isfinite(value) and value >= at_least):
            raise UsageError(
                f"{name} must be finite and >= {at_least}, got {value}",
                f"give {name} a value of {at_least} or more",
            )

    def actor_deaths_allowed(self, actors: int) -> int:
        """The budget of actor deaths of a job that runs so many actors."""
        return max(8, 4 * actors) if self.actor_deaths is None else self.actor_deaths

    def backoff_after(self, errors: int) -> float:
        """Seconds to wait before a shard with this many errors (>= 1) is tried again."""
        # The exponent is bounded because a float overflows at 2 ** 1024.
        return min(self.backoff_cap_s, self.backoff_s * 2.0 ** min(errors - 1, 64))


class Budgets:
    """Says when a count is over its budget: the `Fail` that ends the job, or None while it is not."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def bad_rows(self, count: int) -> Fail | None:
        """Judge the bad rows of the whole job."""
        allowed = self._limits.max_bad_rows
        if allowed is None or count <= allowed:
            return None
        return Fail(kind=FailureKind.BAD_ROWS, reason=f"{count} rows are bad, {allowed} allowed")

    def failed_starts(self, count: int, reason: str) -> Fail | None:
        """Judge the failed starts since an actor last became ready, the last of them for this reason."""
        if count <= self._limits.consecutive_failed_starts:
            return None
        return Fail(kind=FailureKind.ACTOR_STARTS, reason=reason)

    def lost_starts(self, count: int, reason: str, actors: int) -> Fail | None:
        """Judge the starts that went with a node since an actor last became ready, in a job of so many."""
        if count <= max(self._limits.shard_node_losses, 4 * actors):
            return None
        return Fail(kind=FailureKind.ACTOR_STARTS, reason=f"{count} starts went with their nodes: {reason}")

    def actor_deaths(self, count: int, reason: str, actors: int) -> Fail | None:
        """Judge the deaths of ready actors, the last of them for this reason, in a job of so many."""
        allowed = self._limits.actor_deaths_allowed(actors)
        if count <= allowed:
            return None
        fact = f"{count} actors died, {allowed} allowed; the last: {reason}"
        return Fail(kind=FailureKind.ACTOR_DEATHS, reason=fact)

    def shard_deaths(self, count: int, shard: str, reason: str) -> Fail | None:
        """Judge the deaths of actors that had this shard in flight, the last of them for this reason."""
        allowed = self._limits.shard_deaths
        if count <= allowed:
            return None
        fact = f"{count} actors died with it, {allowed} allowed; the last: {reason}"
        return Fail(kind=FailureKind.SHARD_DEATHS, reason=fact, shard=shard)

    def shard_node_losses(self, count: int, shard: str, reason: str) -> Fail | None:
        """Judge the nodes that were lost while they had this shard in flight."""
        allowed = self._limits.shard_node_losses
        if count <= allowed:
            return None
        fact = f"{count} nodes were lost with it, {allowed} allowed; the last: {reason}"
        return Fail(kind=FailureKind.SHARD_DEATHS, reason=fact, shard=shard)

    def shard_errors(self, count: int, retryable: bool, shard: str, reason: str) -> Fail | None:
        """Judge the errors of one shard, the last of them retryable or not, for this reason."""
        allowed = self._limits.shard_errors
        if retryable and count <= allowed:
            return None
        fact = f"it failed {count} times, {allowed} allowed; the last: {reason}" if retryable else reason
        return Fail(kind=FailureKind.SHARD_DATA, reason=fact, shard=shard)
