"""A time of day that a process may be wrong about."""

from __future__ import annotations

import time

__all__ = ["install", "set_wrong"]

_true = time.time
_wrong_s = 0.0


def install() -> None:
    """Makes ``time.time`` of this process settable; to be called before anything remembers it."""
    time.time = lambda: _true() + _wrong_s


def set_wrong(by_s: float) -> None:
    """Sets it wrong by so many seconds."""
    global _wrong_s
    _wrong_s = by_s
