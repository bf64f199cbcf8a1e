"""The shards of a job: which are done, which wait, and which run where."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping

from ..errors import InternalError
from .backlog import Backlog, Past
from .budgets import Limits
from .stragglers import Stragglers
from .workers import Actor, Attempt

__all__ = ["DEFECT", "Inventory"]

DEFECT = "this is a defect of trtfleet, please report it"


class Inventory:
    """The shards by index, in dataset order.

    Args:
        shards: Key and rows of every shard.
        limits: For the straggler watch.
        places: Position by key, if somebody has it already; must not change any more.

    Attributes:
        keys: Key by index.
        index: Index by key.
        rows_total: Rows of all shards.
        backlog: The line of those that wait.
        stragglers: The watch over those that run.
        waiting_rows: Rows of the unfinished shards that are in flight nowhere.

    Raises:
        InternalError: A key occurs twice.
    """

    def __init__(
        self, shards: Iterable[tuple[str, int]], limits: Limits, places: Mapping[str, int] | None = None
    ) -> None:
        self.keys: list[str] = []
        self.rows_total = 0
        # What a shard weighs; one without rows is work too.
        self._rows = array("q")
        for key, rows in shards:
            self.keys.append(key)
            self.rows_total += rows
            self._rows.append(max(1, rows))
        self.index = places or {key: index for index, key in enumerate(self.keys)}
        if len(self.index) != len(self.keys):
            raise InternalError(f"{len(self.keys)} shards have {len(self.index)} distinct keys", DEFECT)
        self.waiting_rows = sum(self._rows)
        self.backlog = Backlog(len(self.keys))
        self.stragglers = Stragglers(limits)
        self._past: dict[int, Past] = {}
        self._copies: dict[int, list[Attempt]] = {}

    @property
    def running(self) -> int:
        """Unfinished shards that are in flight on some actor."""
        return len(self._copies)

    def rows(self, index: int) -> int:
        """The weight of a shard: its rows, at least 1."""
        return self._rows[index]

    def past(self, index: int) -> Past:
        """What an unfinished shard has been through, to be added to."""
        return self._past.setdefault(index, Past())

    def is_done(self, index: int) -> bool:
        """Whether a shard is finished."""
        return self.backlog.is_done(index)

    def begin(self, index: int, actor: Actor, now_s: float) -> Attempt:
        """A new attempt at a shard, about to be given to an actor; a further one beside those that run."""
        past = self._past.get(index)
        if past is not None:
            past.attempts += 1
        rows = self._rows[index]
        copies = self._copies.get(index)
        if copies is None:
            copies = self._copies[index] = []
            self.waiting_rows -= rows
        takes_s = actor.takes_s(rows)
        attempt = Attempt(
            shard=index,
            number=1 if past is None else past.attempts,
            rows=rows,
            started_s=now_s,
            copies=copies,
            ends_s=None if takes_s is None else now_s + takes_s,
            actor_step=actor.pace.step,
        )
        copies.append(attempt)
        self.stragglers.opened(attempt)
        return attempt

    def lose(self, attempt: Attempt, past: Past) -> None:
        """Close an attempt without a commit; its shard goes back in line unless another copy runs."""
        self.stragglers.lost(attempt)
        if not attempt.copies:
            del self._copies[attempt.shard]
            self.waiting_rows += attempt.rows
            self.backlog.put_back(attempt.shard, past.not_before_s)

    def finish(self, index: int) -> None:
        """Close a shard that is committed, and every attempt at it."""
        copies = self._copies.pop(index, None)
        if copies is None:
            self.waiting_rows -= self._rows[index]
        else:
            self.stragglers.finished(copies)
        self._past.pop(index, None)
        self.backlog.mark_done(index)
