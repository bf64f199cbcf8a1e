"""Noticing that the cluster's head node is gone, before Ray ends this process for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ray.exceptions import RayError

from .nodes import ask_head, head_lost, is_other_head

__all__ = ["HeadWatch"]

_EVERY_S = 5.0
_EVERY_WHILE_SILENT_S = 1.0
_RAY_WAITS = "RAY_gcs_rpc_server_reconnect_timeout_s"
_RAY_WAITS_S = 60.0
_TO_LEAVE_S = 20.0
_LEAST_S = 5.0


def _patience_s() -> float:
    """How long a head node may be away: so long that enough is left to leave before Ray gives up, too."""
    try:
        ray_waits_s = float(os.environ[_RAY_WAITS])
    except (KeyError, ValueError):
        ray_waits_s = _RAY_WAITS_S
    return max(_LEAST_S, ray_waits_s - _TO_LEAVE_S)


class HeadWatch:
    """Asks the head node every few seconds whether it is there.

    When it is away for a minute, Ray ends this process from a thread of its own, whatever it is doing; so the
    job must end earlier, with words. One that comes back as the same cluster, as a head node does that keeps
    its state elsewhere, is waited for.

    Args:
        ask: Asks the head node something; returns within seconds. Ray's own call by default.
        patience_s: How long it may be silent; by default 20 s less than Ray waits.

    Attributes:
        is_lost: Whether it was given up.
    """

    def __init__(self, ask: Callable[[], object] = ask_head, patience_s: float | None = None) -> None:
        self._ask = ask
        self._patience_s = _patience_s() if patience_s is None else patience_s
        self._next_s = float("-inf")
        self._silent_since_s: float | None = None
        self.is_lost = False

    def look(self, now_s: float) -> bool:
        """Asks again if it is time.

        Args:
            now_s: Of a monotonic clock.

        Returns:
            Whether the head node answered when it was asked last.

        Raises:
            ClusterError: It was restarted as another cluster, or has been silent for too long.
        """
        if now_s < self._next_s:
            return self._silent_since_s is None
        try:
            self._ask()
        except RayError as error:
            if self._silent_since_s is None:
                self._silent_since_s = now_s
            silent_s = now_s - self._silent_since_s
            if is_other_head(error) or silent_s >= self._patience_s:
                self.is_lost = True
                raise head_lost(error, silent_s) from error
            self._next_s = now_s + _EVERY_WHILE_SILENT_S
            return False
        self._next_s, self._silent_since_s = now_s + _EVERY_S, None
        return True

    def require(self) -> None:
        """Asks at once, and once only.

        Raises:
            ClusterError: It does not answer.
        """
        self._next_s, self._patience_s = float("-inf"), 0.0
        self.look(time.monotonic())
