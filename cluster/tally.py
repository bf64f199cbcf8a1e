"""The counts a running job shows: read-only outside, kept by the scheduler."""

from __future__ import annotations

from collections import deque

from .events import Fail, Incident

__all__ = ["Tally"]

_INCIDENTS_KEPT = 100


class Tally:
    """Progress of one job, as far as its scheduler knows."""

    def __init__(self, *, shards_total: int, rows_total: int) -> None:
        self._shards_total = shards_total
        self._rows_total = rows_total
        self._shards_done = self._rows_done = self._bad_rows = 0
        self._actors_ready = self._deaths = self._errors = 0
        self._node_losses = self._renewals = self._actors_released = 0
        self._incidents: deque[Incident] = deque(maxlen=_INCIDENTS_KEPT)
        self._finished = False
        self._failed: Fail | None = None

    @property
    def shards_total(self) -> int:
        """Shards of the plan."""
        return self._shards_total

    @property
    def shards_done(self) -> int:
        """Shards committed, in earlier runs too."""
        return self._shards_done

    @property
    def rows_total(self) -> int:
        """Rows of the plan."""
        return self._rows_total

    @property
    def rows_done(self) -> int:
        """Rows of the committed shards, each shard counted once."""
        return self._rows_done

    @property
    def bad_rows(self) -> int:
        """Quarantined rows of the committed shards, each shard counted once."""
        return self._bad_rows

    @property
    def actors_ready(self) -> int:
        """Actors that are ready and not known to be gone."""
        return self._actors_ready

    @property
    def deaths(self) -> int:
        """Actors that died after they were ready."""
        return self._deaths

    @property
    def node_losses(self) -> int:
        """Of these, actors that went with their node."""
        return self._node_losses

    @property
    def renewals(self) -> int:
        """Of the deaths, those of actors that had grown too large after good work."""
        return self._renewals

    @property
    def actors_released(self) -> int:
        """Actors that were stopped because the rest of the job had no use for them."""
        return self._actors_released

    @property
    def errors(self) -> int:
        """Attempts of unfinished shards that ended in an error."""
        return self._errors

    @property
    def failures(self) -> tuple[Incident, ...]:
        """The latest errors, deaths and failed starts, oldest first; a bounded number."""
        return tuple(self._incidents)

    @property
    def finished(self) -> bool:
        """Whether `Finish` was given."""
        return self._finished

    @property
    def failed(self) -> Fail | None:
        """The `Fail` that was given, if any."""
        return self._failed

    @property
    def over(self) -> bool:
        """Whether the job has ended, either way."""
        return self._finished or self._failed is not None
