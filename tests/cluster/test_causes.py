"""What is made of Ray's errors: whose fault a lost actor is, and how it is told."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError
from trtfleet.cluster.causes import error_of, is_node_lost, reason_of
from trtfleet.cluster.events import Fail, FailureKind
from trtfleet.errors import BackendError, InternalError, OutputError, ShardFailedError

DIED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: ScoreActor\n\tactor_id: 83bd\n"
    "The actor {}"
)
NODE = DIED.format("died because its node has died. Node Id: 7f\n\tthe actor's node was terminated")
PROCESS = DIED.format("is dead because its worker process has died. Exit type: SYSTEM_ERROR")


@pytest.mark.parametrize(
    ("error", "lost", "reason"),
    [
        (
            RayActorError(error_msg=NODE),
            True,
            "RayActorError: The actor died because its node has died. Node Id: 7f",
        ),
        (
            RayActorError(error_msg=PROCESS),
            False,
            "RayActorError: The actor is dead because its worker process has died. Exit type: SYSTEM_ERROR",
        ),
        (RayActorError(error_msg="gone", preempted=True), True, "RayActorError: gone"),
        (
            ActorUnavailableError("RpcError: Socket closed", None),
            True,
            "it is out of reach: its node was lost or cut off",
        ),
        (
            ActorDiedError(),
            False,
            "ActorDiedError: The actor died unexpectedly before finishing this task.",
        ),
        (OutputError("the disk is full", "free some"), False, "the disk is full"),
        (ValueError(), False, "ValueError"),
    ],
)
def test_a_lost_node_is_told_from_a_dead_process(error: Exception, lost: bool, reason: str) -> None:
    assert is_node_lost(error) == lost
    assert reason_of(error) == reason


def test_a_failed_job_raises_what_is_known_best() -> None:
    known, unfit = OutputError("the disk is full"), BackendError("no kernel")
    data = Fail(kind=FailureKind.SHARD_DATA, reason="it failed 4 times", shard="s")
    assert error_of(data, known, None) is known
    assert isinstance(error_of(data, None, None), ShardFailedError)
    no_fit = Fail(kind=FailureKind.NO_FIT, reason="no kernel")
    assert error_of(no_fit, None, unfit) is unfit
    assert isinstance(error_of(no_fit, None, None), InternalError)
