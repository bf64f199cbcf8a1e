"""Why calls of actors fail, out of what Ray raises, and what a failed job raises."""

from __future__ import annotations

from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from ..errors import (
    ActorStartError,
    BackendError,
    BadRowsError,
    ClusterError,
    InternalError,
    ShardFailedError,
    TrtfleetError,
)
from .events import Fail, FailureKind

__all__ = ["cause_of", "error_of", "is_node_lost", "reason_of"]

_NODE_LOST = "its node has died"
_MOST_WORDS = 300


def cause_of(error: BaseException) -> BaseException:
    """What an actor raised, where Ray wraps it; else the error itself."""
    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, BaseException) else error
    return error


def is_node_lost(error: BaseException) -> bool:
    """Whether an actor is gone because its node is, rather than by itself.

    Where a process alone ends, its node tells so within moments. Where nobody does, the actor is at first out
    of reach, and long afterwards dead with its node, of which Ray tells in words alone.
    """
    if isinstance(error, ActorUnavailableError):
        return True
    return isinstance(error, RayActorError) and (error.preempted or _NODE_LOST in str(error))


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, TrtfleetError):
        return error.fact
    if isinstance(error, ActorUnavailableError):
        return "it is out of reach: its node was lost or cut off"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Ray begins with what happened and puts the cause behind what it knows of the actor.
    causes = [line for line in lines if line.startswith("The actor") and " because " in line]
    first = next(iter([*causes, *lines]), "")
    return f"{type(error).__name__}: {first}"[:_MOST_WORDS] if first else type(error).__name__


def error_of(failure: Fail, known: TrtfleetError | None, unfit: BackendError | None) -> TrtfleetError:
    """What a job raises that has failed.

    Args:
        failure: How.
        known: The last error of the shard to blame.
        unfit: The last error of an actor that its machine cannot run.
    """
    reason = failure.reason
    match failure.kind:
        case FailureKind.BAD_ROWS:
            return BadRowsError(
                reason, "see them with `trtfleet status OUT`, or allow more with --max-bad-rows"
            )
        case FailureKind.SHARD_DATA:
            return known or ShardFailedError(
                reason, "see `trtfleet status OUT`; the same command tries again"
            )
        case FailureKind.SHARD_DEATHS:
            hint = "does the model or a hook crash or hang, or need more memory than there is?"
            return ShardFailedError(reason, hint)
        case FailureKind.NO_FIT if unfit is not None:
            return unfit
        case FailureKind.ACTOR_STARTS:
            return ActorStartError(reason, "see Ray's logs of that worker")
        case FailureKind.ACTOR_DEATHS:
            return ClusterError(reason, "see Ray's logs for why workers die")
        case _:
            return InternalError(reason, "this is a defect of trtfleet; please report it")
