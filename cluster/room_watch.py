"""Looking at the cluster while a job runs: nodes that came, and whether any are left that fit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ray.exceptions import RayError

from ..errors import ClusterError
from .events import RoomFound

__all__ = ["RoomWatch"]

_EVERY_S = 5.0


class RoomWatch:
    """Asks every few seconds how many actors the cluster has room for.

    Args:
        room: How many actors fit on the cluster if it is idle; called with a connection.
        actors: For how many there was room in the beginning.
        follows: Whether the job is to grow with the cluster.
        wait_s: How long a job that has no actor waits for a node that fits.
        inventory: What the cluster has, in words.
        say: Takes sentences for people.
    """

    def __init__(
        self,
        room: Callable[[], int],
        *,
        actors: int,
        follows: bool,
        wait_s: float,
        inventory: Callable[[], str],
        say: Callable[[str], None],
    ) -> None:
        self._room = room
        self._actors = actors
        self._follows = follows
        self._wait_s = wait_s
        self._inventory = inventory
        self._say = say
        self._next_s = float("-inf")
        self._nothing_since_s: float | None = None

    def look(self, now_s: float, actors_ready: int) -> RoomFound | None:
        """Looks again if it is time.

        Args:
            now_s: Of a monotonic clock.
            actors_ready: Actors at work.

        Returns:
            That there is room for more actors than ever before, if so.

        Raises:
            ClusterError: No actor works, and no node has been there that fits one for too long.
        """
        if now_s < self._next_s:
            return None
        self._next_s = now_s + _EVERY_S
        room: int | None = None
        # A head node that is away for a moment is no reason to give up; calls of actors will tell.
        with contextlib.suppress(RayError, OSError, RuntimeError, ClusterError):
            room = self._room()
        if room is None:
            return None
        self._judge(now_s, room or actors_ready)
        if not self._follows or room <= self._actors:
            return None
        self._say(f"the cluster has room for {room} actors now, for {self._actors} before")
        self._actors = room
        return RoomFound(at_s=now_s, actors=room)

    def _judge(self, now_s: float, possible: int) -> None:
        if possible:
            self._nothing_since_s = None
            return
        if self._nothing_since_s is None:
            self._nothing_since_s = now_s
            if self._wait_s:
                self._say(
                    f"no node is there that fits an actor, the cluster has {self._inventory()}: "
                    f"waiting up to {self._wait_s:g} s for one"
                )
        waited_s = now_s - self._nothing_since_s
        if waited_s >= self._wait_s:
            raise ClusterError(
                f"no node has been there for {waited_s:.0f} s that fits an actor, the cluster has "
                f"{self._inventory()}",
                "what is done stays done: the same command goes on with it once there are nodes",
            )
