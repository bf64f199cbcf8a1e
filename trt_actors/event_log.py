"""What happens in a run as one JSON object a line, the same from the driver and from its actors."""

from __future__ import annotations

import contextlib
import html
import json
import logging
import math
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, Self, TextIO

from ..errors import UsageError

__all__ = [
    "LOG_FORMATS",
    "EventLog",
    "NullLog",
    "actor_log",
    "check_log_format",
    "event_log",
    "without_secrets",
]

LOG_FORMATS = ("text", "json")
"""``text`` is for people; its actors write nothing of their own."""

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_SECRET_NAME = re.compile(r"(?i)(secret|token|password|passwd|credential|_key(_id)?$)")
_NAMES_A_FILE = ("_PATH", "_FILE", "_ID", "_MODE")
_SHORTEST_SECRET = 8
_IN_URLS = (
    (re.compile(r"(://)[^/\s:@\"]+:[^/\s@\"]+@"), r"\1***@"),
    (re.compile(r"(?i)(x-amz-(?:signature|credential|security-token)=)[^&\s\"]+"), r"\1***"),
)


def without_secrets(text: str) -> str:
    """The text with ``***`` in place of secrets of this process's environment, and of those in URLs.

    Secret is what stands in a variable whose name says so: ``AWS_SECRET_ACCESS_KEY``, ``RAY_AUTH_TOKEN``,
    ``TRTFLEET_CACHE_KEY`` and the like.
    """
    for secret in _secrets():
        # Also as it stands inside JSON and HTML.
        for written in (secret, json.dumps(secret)[1:-1], html.escape(secret)):
            text = text.replace(written, "***")
    for pattern, instead in _IN_URLS:
        text = pattern.sub(instead, text)
    return text


def _secrets() -> list[str]:
    found = []
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name) and not name.endswith(_NAMES_A_FILE):
            found.append(value)
    # A secret may be a part of another one.
    return sorted(found, key=len, reverse=True)


class EventLog:
    """Writes events; called by any thread, each line in one piece.

    Args:
        stream: Where to; standard error by default, the one of the moment.
        bound: Facts of every line, ``run`` for example.
    """

    is_on = True

    def __init__(self, stream: TextIO | None = None, **bound: Any) -> None:
        self._stream = stream
        self._bound = bound

    def bound(self, **facts: Any) -> Self:
        """The same log with further facts in every line."""
        return type(self)(self._stream, **{**self._bound, **facts})

    def tell(self, event: str, text: str = "", *, level: str = "info", **facts: Any) -> None:
        """Writes one event.

        Args:
            event: What happened, one of the names in ``docs/metrics.md``.
            text: The same for people; may be empty.
            level: ``debug``, ``info``, ``warning`` or ``error``.
            facts: Plain values; those that are None are left out. They stand for what the log itself would
                say, ``time`` too where something is told later than it happened.
        """
        now_s = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(now_s % 1 * 1000):03d}Z",
            "level": level,
            "event": event,
        }
        if text:
            line["message"] = text
        line |= {name: _plain(value) for name, value in {**self._bound, **facts}.items() if value is not None}
        written = without_secrets(json.dumps(line, default=str))
        stream = self._stream or sys.stderr
        try:
            stream.write(f"{written}\n")
            stream.flush()
        except (OSError, ValueError):
            # A log that cannot be written must not end the work.
            return

    @contextlib.contextmanager
    def attempt(self, **facts: Any) -> Iterator[dict[str, Any]]:
        """Tells of an attempt: that it begins, and as the block ends whether it is done or failed.

        Args:
            facts: Told when it begins.

        Yields:
            What is told when it is done besides its seconds; empty, to be filled in.
        """
        start_s = time.monotonic()
        found: dict[str, Any] = {}
        self.tell("attempt_started", **facts)
        try:
            yield found
        except Exception as error:
            self.tell("attempt_failed", level="warning", error=type(error).__name__, reason=str(error))
            raise
        self.tell("attempt_done", **found, seconds=round(time.monotonic() - start_s, 3))

    @contextlib.contextmanager
    def taking_over(self, name: str = "trtfleet") -> Iterator[None]:
        """Inside the block, writes also what a logger of the standard library gets, as the event ``log``."""
        logger, handler = logging.getLogger(name), _Records(self)
        before = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before[0])
            logger.propagate = before[1]


class NullLog(EventLog):
    """Writes nothing."""

    is_on = False

    def tell(self, event: str, text: str = "", *, level: str = "info", **facts: Any) -> None:
        """Does nothing."""

    @contextlib.contextmanager
    def taking_over(self, name: str = "trtfleet") -> Iterator[None]:
        """Does nothing."""
        yield


def event_log(log_format: str, stream: TextIO | None = None, **bound: Any) -> EventLog:
    """The log of an actor in one of ``LOG_FORMATS``; the other arguments are those of ``EventLog``."""
    return EventLog(stream, **bound) if log_format == "json" else NullLog()


def actor_log(log_format: str, run: str) -> EventLog:
    """The log of this process as an actor of a run: every line tells which, and where it is."""
    return event_log(log_format, run=run, node=socket.gethostname(), pid=os.getpid())


def check_log_format(log_format: str) -> None:
    """Makes sure that a format is one of ``LOG_FORMATS``.

    Raises:
        UsageError: It is not.
    """
    if log_format not in LOG_FORMATS:
        known = ", ".join(LOG_FORMATS)
        raise UsageError(
            f"log_format must be one of {known}, got {log_format!r}", "json is for programs, text for people"
        )


class _Records(logging.Handler):
    def __init__(self, log: EventLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        # The standard library has levels between those of ours.
        level = max(
            (name for name, number in _LEVELS.items() if number <= record.levelno), key=_LEVELS.__getitem__
        )
        self._log.tell("log", record.getMessage(), level=level, logger=record.name)


def _plain(value: Any) -> Any:
    # JSON has no NaN.
    return None if isinstance(value, float) and not math.isfinite(value) else value
