"""How fast actors are: rows a second, measured, in steps that small differences do not reach."""

from __future__ import annotations

import math

__all__ = ["MUCH", "Pace", "Speeds"]

MUCH = 3
"""Steps between actors of which the faster is worth waiting for: a factor of 1.4 at least, 2 on average."""

_LOG_STEP = math.log(1.25)
_STAY = 0.75
_KEEP = 0.9
_KEEP_OF_MANY = 0.99


class Pace:
    """The rate of one actor, or the mean rate of several, of late.

    A step is a factor of 1.25. A rate near the border of two steps stays in the one where it is: else an
    actor would wander to and fro, and whatever is sorted by steps with it.

    Attributes:
        rate: Rows a second; None while nothing is known.
        step: Its logarithm in whole steps; 0 while nothing is known.
    """

    __slots__ = ("_keep", "_rows", "_seconds", "rate", "step")

    def __init__(self, keep: float = _KEEP) -> None:
        self._keep = keep
        self._rows = 0.0
        self._seconds = 0.0
        self.rate: float | None = None
        self.step = 0

    def assume(self, rate: float | None) -> None:
        """Take a rate for granted until something is measured."""
        self._show(rate)

    def measure(self, rows: int, seconds: float) -> None:
        """So many rows took so long, the latest counting most.

        An actor that does two shards at once ends both at about the same time: only several measurements
        together tell its rate.
        """
        self._rows = self._rows * self._keep + rows
        self._seconds = self._seconds * self._keep + seconds
        if self._rows > 0 and self._seconds > 0:
            self._show(self._rows / self._seconds)

    def _show(self, rate: float | None) -> None:
        is_first, self.rate = self.rate is None, rate
        if rate is not None:
            exact = math.log(rate) / _LOG_STEP
            if is_first or abs(exact - self.step) > _STAY:
                self.step = round(exact)


class Speeds:
    """What actors of each kind do on average, for those that have not been measured yet."""

    def __init__(self) -> None:
        self._kinds: dict[str, Pace] = {}
        self._all = Pace(_KEEP_OF_MANY)

    def expected(self, kind: str) -> float | None:
        """Rows a second of an actor of a kind; of any actor where none of its kind was measured; or None."""
        pace = self._kinds.get(kind)
        return self._all.rate if pace is None or pace.rate is None else pace.rate

    def measure(self, kind: str, rows: int, seconds: float) -> None:
        """An actor of this kind took so long for so many rows."""
        self._kinds.setdefault(kind, Pace(_KEEP_OF_MANY)).measure(rows, seconds)
        self._all.measure(rows, seconds)
