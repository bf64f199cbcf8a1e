"""What every actor of a calibration job is told, once, and what it answers about each unit of a sample."""

from __future__ import annotations

from dataclasses import dataclass

from ..task import FeedTask
from .observed import ObservedNetwork

__all__ = ["BadSample", "CalibrateTask", "CalibratorInfo", "UnitReceipt"]


@dataclass(frozen=True, kw_only=True)
class CalibrateTask(FeedTask):
    """One calibration job, as an actor needs it.

    Attributes:
        observed: The network with the tensors to observe as its outputs; ``network`` is the same network.
        backend: ``auto``, ``onnxruntime-cuda`` or ``onnxruntime-cpu``.
    """

    observed: ObservedNetwork
    backend: str = "auto"


@dataclass(frozen=True, kw_only=True)
class CalibratorInfo:
    """What an actor found when it started.

    Attributes:
        backend: The backend it took.
        not_taken: Why it did not take a better one; empty when it did.
        node: Host name.
        pid: Process id.
    """

    backend: str
    not_taken: str
    node: str
    pid: int


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
