"""Every error trtfleet raises on purpose, and the exit code the command line gives it.

    TrtfleetError                  1   anything below, caught as one
    ├── UsageError                 2   options that are malformed or contradict each other
    ├── ModelError                 3   the model file is unreadable, invalid or not supported
    ├── DatasetError               4   the data is unreadable, malformed or changed under the job
    │   └── EmptyDatasetError      5   there is no row to score
    ├── MismatchError              6   model inputs and dataset columns do not fit
    ├── OutputError                7   the output location cannot be written or read
    │   ├── FingerprintError       8   the output belongs to a job with other options or data
    │   └── RecordsGoneError       7   what a job wrote down was removed, as its end does, while it was needed
    ├── ClusterError               9   Ray cannot be reached, refuses us, or lacks the resources
    │   ├── ActorStartError       10   no actor could load the model
    │   ├── ActorStuckError        9   an actor gave itself up: a batch took longer than --batch-timeout
    │   └── ActorSpentError        9   an actor gave itself up: it grew beyond --memory-per-actor
    ├── BackendError              11   the backend asked for is not available here
    ├── HookError                 12   a user's hook cannot be imported or misbehaves
    ├── BadRowsError              13   more bad rows than --max-bad-rows allows
    ├── ShardFailedError          14   a shard kept failing and its cause is not one row
    ├── CacheError                15   the engine cache cannot be used or does not hold what its manifest says
    ├── CalibrationError          16   calibration statistics or a table cannot be made, read or used here
    ├── ParityError               17   a network differs from the one it stands in for by more than --max-drop
    └── InternalError             70   a defect of trtfleet itself

An interrupt (Ctrl-C) exits with 130. A message states the fact with its numbers; ``hint`` says what to do.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "ActorSpentError",
    "ActorStartError",
    "ActorStuckError",
    "BackendError",
    "BadRowsError",
    "CacheError",
    "CalibrationError",
    "ClusterError",
    "DatasetError",
    "EmptyDatasetError",
    "FingerprintError",
    "HookError",
    "InternalError",
    "MismatchError",
    "ModelError",
    "OutputError",
    "ParityError",
    "RecordsGoneError",
    "ShardFailedError",
    "TrtfleetError",
    "UsageError",
]


class TrtfleetError(Exception):
    """A failure with one clear cause.

    Args:
        fact: What happened, with the numbers and names that matter, in one line.
        hint: What the user can do about it; may be empty.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, fact: str, hint: str = "") -> None:
        # Every argument goes to Exception.args, so that the error survives pickling between processes.
        super().__init__(fact, hint)
        self.fact = fact
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.fact} (hint: {self.hint})" if self.hint else self.fact


class UsageError(TrtfleetError):
    """Options are malformed or contradict each other."""

    exit_code = 2


class ModelError(TrtfleetError):
    """The model file is unreadable, invalid or not supported."""

    exit_code = 3


class DatasetError(TrtfleetError):
    """The data is unreadable, malformed or changed under the job."""

    exit_code = 4


class EmptyDatasetError(DatasetError):
    """There is no row to score."""

    exit_code = 5


class MismatchError(TrtfleetError):
    """Model inputs and dataset columns do not fit."""

    exit_code = 6


class OutputError(TrtfleetError):
    """The output location cannot be written or read."""

    exit_code = 7


class FingerprintError(OutputError):
    """The output belongs to a job with other options or other data."""

    exit_code = 8


class RecordsGoneError(OutputError):
    """What a job had written down is not there any more: another run of the same job ended and cleaned up."""


class ClusterError(TrtfleetError):
    """Ray cannot be reached, refuses the connection, or lacks the resources."""

    exit_code = 9


class ActorStartError(ClusterError):
    """No actor could load the model."""

    exit_code = 10


class ActorStuckError(ClusterError):
    """An actor gave itself up because a batch took longer than ``batch_timeout``."""


class ActorSpentError(ClusterError):
    """An actor gave itself up because it grew beyond ``memory_per_actor``."""


class BackendError(TrtfleetError):
    """The backend asked for is not available here."""

    exit_code = 11


class HookError(TrtfleetError):
    """A user's hook cannot be imported or misbehaves."""

    exit_code = 12


class BadRowsError(TrtfleetError):
    """More rows failed than ``max_bad_rows`` allows."""

    exit_code = 13


class ShardFailedError(TrtfleetError):
    """A shard kept failing and its cause is not one row."""

    exit_code = 14


class CacheError(TrtfleetError):
    """The engine cache cannot be used or does not hold what its manifest says."""

    exit_code = 15


class CalibrationError(TrtfleetError):
    """Calibration statistics or a table cannot be made, read or used here."""

    exit_code = 16


class ParityError(TrtfleetError):
    """A network differs from the one it stands in for by more than ``max_drop`` allows."""

    exit_code = 17


class InternalError(TrtfleetError):
    """A defect of trtfleet itself."""

    exit_code = 70
