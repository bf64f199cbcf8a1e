"""A run's own account in storage, by which ``trtfleet status`` knows of it."""

from __future__ import annotations

import time

from ..cluster.scheduler import Scheduler
from ..datasets.output import Output
from ..datasets.records import RunRecord

__all__ = ["RunLog"]

_EVERY_S = 5.0
_FAILURES_KEPT = 20


class RunLog:
    """Writes how a run goes, each time over what it wrote before.

    Args:
        output: What the run writes.
        run: Its name.

    Attributes:
        started_s: Unix time at which the run began.
    """

    def __init__(self, output: Output, run: str) -> None:
        self._output = output
        self._run = run
        self._written_s = float("-inf")
        self.started_s = time.time()

    def is_due(self, now_s: float) -> bool:
        """Whether it was last written some seconds ago.

        Args:
            now_s: By the monotonic clock.
        """
        return now_s - self._written_s >= _EVERY_S

    def write(self, scheduler: Scheduler | None, state: str, error: str = "") -> None:
        """Writes it.

        Args:
            scheduler: What knows of actors, shards and failures; None before there is one.
            state: ``running``, ``finished``, ``failed`` or ``stopped``.
            error: Why the run failed.

        Raises:
            OutputError: The storage failed.
        """
        self._written_s = time.monotonic()
        # The scheduler's clock is the monotonic one.
        offset_s = time.time() - self._written_s
        failures = list(scheduler.failures)[-_FAILURES_KEPT:] if scheduler else []
        self._output.report_run(
            RunRecord(
                run=self._run,
                state=state,
                started_s=self.started_s,
                actors=scheduler.actors_ready if scheduler else 0,
                shards_done=scheduler.shards_done if scheduler else 0,
                failures=[
                    {"at_s": incident.at_s + offset_s, "subject": incident.subject, "reason": incident.reason}
                    for incident in failures
                ],
                error=error,
            )
        )
