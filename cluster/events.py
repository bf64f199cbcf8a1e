"""What the scheduler is told (events) and what it asks for (actions).

Times are seconds of one monotonic clock, the shell's; the scheduler has none of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

__all__ = [
    "Action",
    "ActorDied",
    "ActorFailedToStart",
    "ActorReady",
    "Dispatch",
    "Event",
    "Fail",
    "FailureKind",
    "Finish",
    "Incident",
    "RoomFound",
    "ShardDone",
    "ShardError",
    "StartActor",
    "StopActor",
    "StopRequested",
    "Tick",
    "WakeAt",
    "incidents_since",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorReady:
    """A started actor has loaded its model and takes shards.

    Attributes:
        at_s: When the shell learnt of it.
        actor: The actor.
        kind: What it runs on: actors of one kind are taken to be about equally fast until they are measured.
    """

    at_s: float
    actor: str
    kind: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorFailedToStart:
    """A started actor will never be ready.

    Attributes:
        at_s: When the shell learnt of it.
        actor: The actor.
        reason: The cause, in one line.
        is_node_lost: Whether it went with its node, which is nobody's fault.
        is_unfit: Whether the machine that it was given can never run it, while another one might.
    """

    at_s: float
    actor: str
    reason: str
    is_node_lost: bool = False
    is_unfit: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorDied:
    """An actor is gone, and with it every attempt it had in flight.

    Attributes:
        at_s: When the shell learnt of it.
        actor: The actor.
        reason: The cause, in one line.
        is_node_lost: Whether it went with its node, for which its shards are not to blame.
        is_spent: Whether it had grown too large; after good work that counts as no failure.
    """

    at_s: float
    actor: str
    reason: str
    is_node_lost: bool = False
    is_spent: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class RoomFound:
    """So many actors could run on the cluster at once; less than before changes nothing."""

    at_s: float
    actors: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardDone:
    """A shard is committed, by this attempt or by an earlier one.

    Attributes:
        at_s: When the shell learnt of it.
        actor: The actor that reports.
        shard: The shard's key.
        attempt: The attempt that reports.
        rows: Rows of the shard, as its commit record counts them.
        bad_rows: Rows of the shard that went to quarantine.
    """

    at_s: float
    actor: str
    shard: str
    attempt: int
    rows: int
    bad_rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardError:
    """An attempt ended without a commit, and its actor lives on.

    Attributes:
        at_s: When the shell learnt of it.
        actor: The actor that reports.
        shard: The shard's key.
        attempt: The attempt that failed.
        reason: Its cause, in one line.
        retryable: Whether another attempt could fare better.
    """

    at_s: float
    actor: str
    shard: str
    attempt: int
    reason: str
    retryable: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """Time has passed."""

    at_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StopRequested:
    """The user wants the job to end now."""

    at_s: float
    reason: str


Event = (
    ActorReady | ActorFailedToStart | ActorDied | RoomFound | ShardDone | ShardError | Tick | StopRequested
)


class FailureKind(StrEnum):
    """Why a job failed."""

    BAD_ROWS = "bad_rows"
    SHARD_DATA = "shard_data"
    SHARD_DEATHS = "shard_deaths"
    ACTOR_DEATHS = "actor_deaths"
    ACTOR_STARTS = "actor_starts"
    NO_FIT = "no_fit"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True, slots=True)
class StartActor:
    """Start an actor under this name, which was never used before."""

    actor: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Dispatch:
    """Hand a shard to a ready actor; attempts of one shard count from 1."""

    actor: str
    shard: str
    attempt: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StopActor:
    """Stop an actor, and let go what it holds of the cluster; it is not heard any more.

    Attributes:
        actor: The actor.
        graceful: True when it is ready and idle; else it had better be killed than waited for.
    """

    actor: str
    graceful: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class WakeAt:
    """Send a Tick at this time; replaces the WakeAt before it."""

    at_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Finish:
    """Every shard is committed; the last action, which leaves the idle actors to the shell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fail:
    """The job has failed; the last action.

    Attributes:
        kind: Which budget ran out.
        reason: The cause, with numbers, in one line.
        shard: The shard to blame, where there is one.
    """

    kind: FailureKind
    reason: str
    shard: str | None = None


Action = StartActor | Dispatch | StopActor | WakeAt | Finish | Fail


class Incident(NamedTuple):
    """One thing that went wrong, for the display and the report; `subject` is a shard or an actor."""

    at_s: float
    subject: str
    reason: str


def incidents_since(incidents: Sequence[Incident], last: Incident | None) -> list[Incident]:
    """Those that came after ``last``, this very object; all where it is not among them any more.

    Args:
        incidents: The latest ones, oldest first.
        last: The last that was seen; None for none.
    """
    new: list[Incident] = []
    for incident in reversed(incidents):
        if incident is last:
            break
        new.append(incident)
    return new[::-1]
