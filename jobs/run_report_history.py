"""When a run did what, in bounded memory: rows by actor and time, and what failed for which reason."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..cluster.events import Incident, incidents_since

__all__ = ["FailureGroup", "History", "Timeline"]

_BINS = 120
_LANES = 40
_FIRST_BIN_S = 1 / 64
_GROUPS = 100
_OTHER = "other reasons"


@dataclass(frozen=True, kw_only=True)
class FailureGroup:
    """Failures with one reason.

    Attributes:
        reason: In one line.
        subject: The first shard or actor that it happened to.
        count: How often.
        first_s: When first, in seconds since the run began.
        last_s: When last.
    """

    reason: str
    subject: str
    count: int
    first_s: float
    last_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Timeline:
    """What happened when.

    Attributes:
        bin_s: Seconds of a bin; the first begins with the run.
        actors_per_lane: How many actors share a lane, in the order in which they became ready.
        rows: float64[lanes, bins], rows scored.
        failures: int64[bins].
    """

    bin_s: float
    actors_per_lane: int
    rows: np.ndarray
    failures: np.ndarray

    @property
    def rows_per_s(self) -> np.ndarray:
        """float64[lanes, bins], the same by the seconds of a bin."""
        return self.rows / self.bin_s


class History:
    """Notes down what happens; the longer and larger a run is, the coarser.

    Args:
        start_s: When the run began, on the clock of all times that it is told.
    """

    def __init__(self, start_s: float) -> None:
        self._start_s = start_s
        self._bin_s = _FIRST_BIN_S
        self._actors_per_lane = 1
        self._rows = np.zeros((_LANES, _BINS))
        self._failures = np.zeros(_BINS, np.int64)
        self._groups: dict[str, FailureGroup] = {}
        self._last_incident: Incident | None = None
        self._lanes = 0
        self._bins = 0

    def shard_done(self, place: int, rows: int, at_s: float, seconds: float) -> None:
        """An actor has finished a shard.

        Args:
            place: How many actors became ready before it.
            rows: Of the shard.
            at_s: When it was finished.
            seconds: What it took; rows are spread over them.
        """
        lane = self._lane(place)
        # A copy that came back first was begun by another actor; none was begun before the run.
        begin_s, end_s = max(0.0, at_s - self._start_s - max(seconds, 0.0)), max(0.0, at_s - self._start_s)
        last = self._bin(end_s)
        first = self._bin(begin_s)
        if first == last or end_s - begin_s < 1e-9:
            self._rows[lane, last] += rows
            return
        rate = rows / (end_s - begin_s)
        line = self._rows[lane]
        line[first : last + 1] += rate * self._bin_s
        line[first] -= rate * (begin_s - first * self._bin_s)
        line[last] -= rate * ((last + 1) * self._bin_s - end_s)

    def failures(self, incidents: tuple[Incident, ...]) -> list[Incident]:
        """Notes down those incidents that are new; returns them.

        Args:
            incidents: The latest ones, oldest first.
        """
        new = incidents_since(incidents, self._last_incident)
        for incident in new:
            self._failed(incident)
        if new:
            self._last_incident = new[-1]
        return new

    @property
    def groups(self) -> tuple[FailureGroup, ...]:
        """What failed, by reason, the most frequent first."""
        return tuple(sorted(self._groups.values(), key=lambda group: (-group.count, group.first_s)))

    def timeline(self) -> Timeline:
        """All of it so far."""
        lanes, bins = max(1, self._lanes), max(1, self._bins)
        return Timeline(
            bin_s=self._bin_s,
            actors_per_lane=self._actors_per_lane,
            rows=self._rows[:lanes, :bins].copy(),
            failures=self._failures[:bins].copy(),
        )

    def _failed(self, incident: Incident) -> None:
        at_s = max(0.0, incident.at_s - self._start_s)
        place = self._bin(at_s)
        self._failures[place] += 1
        known = self._groups.get(incident.reason)
        if known is None:
            reason = incident.reason if len(self._groups) < _GROUPS else _OTHER
            known = self._groups.get(
                reason,
                FailureGroup(reason=reason, subject=incident.subject, count=0, first_s=at_s, last_s=at_s),
            )
        self._groups[known.reason] = FailureGroup(
            reason=known.reason,
            subject=known.subject,
            count=known.count + 1,
            first_s=known.first_s,
            last_s=at_s,
        )

    def _bin(self, at_s: float) -> int:
        """The bin of a time since the run began; bins are doubled until there is one."""
        while at_s >= _BINS * self._bin_s:
            self._bin_s *= 2
            self._rows = _halved(self._rows, axis=1)
            self._failures = _halved(self._failures, axis=0)
            self._bins = (self._bins + 1) // 2
        found = int(at_s / self._bin_s)
        self._bins = max(self._bins, found + 1)
        return found

    def _lane(self, place: int) -> int:
        while place >= _LANES * self._actors_per_lane:
            self._actors_per_lane *= 2
            self._rows = _halved(self._rows, axis=0)
            self._lanes = (self._lanes + 1) // 2
        found = place // self._actors_per_lane
        self._lanes = max(self._lanes, found + 1)
        return found


def _halved(values: np.ndarray, axis: int) -> np.ndarray:
    """Neighbours along an axis added up, and as much room again behind them."""
    folded = np.zeros_like(values)
    pairs = values.take(range(0, values.shape[axis], 2), axis) + values.take(
        range(1, values.shape[axis], 2), axis
    )
    half = values.shape[axis] // 2
    if axis:
        folded[:, :half] = pairs
    else:
        folded[:half] = pairs
    return folded
