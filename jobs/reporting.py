"""What jobs have in common when they tell how they do: who is told, and of which failures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from ..cluster.events import Incident, incidents_since
from ..cluster.scheduler import Scheduler
from .progress import JsonLines, Reporter, Silent, telling_failure

__all__ = ["Failures", "reporting"]


@contextlib.contextmanager
def reporting(reporter: Reporter | None, log_format: str) -> Iterator[Reporter]:
    """Opens a job's reporter.

    Args:
        reporter: Where progress is shown, by someone who also tells of a failure; None where there is nobody.
        log_format: What takes its place: ``json`` a log on standard error, to its end, and ``text`` nothing.
    """
    if reporter is not None or log_format != "json":
        with reporter or Silent() as shown:
            yield shown
        return
    with JsonLines() as log, telling_failure(log):
        yield log


class Failures:
    """Tells of what fails on the way, each time once.

    Args:
        shown: Who is told.
        subject: What fails, as facts, from the name of a piece of work or of an actor.
    """

    def __init__(self, shown: Reporter, subject: Callable[[str], dict[str, str]]) -> None:
        self._shown = shown
        self._subject = subject
        self._last: Incident | None = None

    def look(self, scheduler: Scheduler) -> None:
        """Tells of what failed since the last look, as far as the scheduler still knows."""
        new = incidents_since(scheduler.failures, self._last)
        for incident in new:
            facts = self._subject(incident.subject)
            self._shown.tell("failure", level="warning", reason=incident.reason, **facts)
        if new:
            self._last = new[-1]
