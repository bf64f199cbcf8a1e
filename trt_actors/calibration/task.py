"""What every actor of a calibration job is told, once, and what it answers about each unit of a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..task import FeedTask
from .observed import ObservedNetwork

__all__ = ["BadSample", "CalibrateTask", "CalibratorInfo", "SampleTask", "UnitReceipt"]


@dataclass(frozen=True, kw_only=True)
class SampleTask(FeedTask):
    """One job over a sample of a dataset, as an actor needs it.

    Attributes:
        backend: ``auto`` or the name of one backend that such a job may run on.
        run: The run's name, for the actor's own log.
        log_format: Of that log, one of ``LOG_FORMATS``.
    """

    backend: str = "auto"
    run: str = ""
    log_format: str = "text"


@dataclass(frozen=True, kw_only=True)
class CalibrateTask(SampleTask):
    """One calibration job, as an actor needs it; its backends are ONNX Runtime's.

    Attributes:
        observed: The network with the tensors to observe as its outputs; ``network`` is the same network.
    """

    observed: ObservedNetwork


@dataclass(frozen=True, kw_only=True)
class CalibratorInfo:
    """What an actor found when it started.

    Attributes:
        backend: The backend it took.
        not_taken: Why it did not take a better one; empty when it did.
        node: Host name.
        pid: Process id.
        start_s: Seconds it needed to load its networks.
    """

    backend: str
    not_taken: str
    node: str
    pid: int
    start_s: float = 0.0

    @property
    def told(self) -> dict[str, Any]:
        """What a log tells of the start, besides who it was."""
        return {
            "backend": self.backend,
            "not_taken": self.not_taken or None,
            "seconds": round(self.start_s, 3),
        }


@dataclass(frozen=True, kw_only=True)
class BadSample:
    """A sampled row that cannot become a tensor.

    Attributes:
        file: URL of its file.
        row: Its number in the file.
        column: The column to blame; empty when it is the row as a whole.
        reason: Why, in one line.
    """

    file: str
    row: int
    column: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class UnitReceipt:
    """The statistics of a unit.

    Attributes:
        statistics: As ``statistics.encode`` gives them; the same bytes whoever computed them.
        rows: Rows that were observed.
        bad: Rows that could not be.
        seconds: What it took.
    """

    statistics: bytes
    rows: int
    bad: tuple[BadSample, ...]
    seconds: float
