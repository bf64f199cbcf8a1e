"""A head node that is silent, comes back, or is another one; and the real one."""

from __future__ import annotations

import pytest
import ray
from ray.exceptions import RpcError
from trtfleet.cluster.head_watch import HeadWatch
from trtfleet.errors import ClusterError


class Head:
    """What asking the head node comes to."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked = 0

    def __call__(self) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def head(ray_session: None) -> Head:
    """One that answers; errors name the address of the real one."""
    return Head()


def test_one_that_answers_is_asked_every_few_seconds(head: Head) -> None:
    watch = HeadWatch(head, 10.0)
    assert all(watch.look(tenths / 10) for tenths in range(100))
    assert head.asked == 2


def test_one_that_comes_back_is_waited_for(head: Head) -> None:
    watch = HeadWatch(head, 10.0)
    head.error = RpcError("Timed out")
    assert not any(watch.look(float(second)) for second in range(10))
    head.error = None
    assert watch.look(10.0)
    head.error = RpcError("Timed out")
    assert not watch.look(20.0)
    assert not watch.is_lost


def test_one_that_stays_silent_is_given_up(head: Head) -> None:
    watch = HeadWatch(head, 10.0)
    head.error = RpcError("Timed out")
    assert not watch.look(0.0)
    with pytest.raises(ClusterError, match=r"has not answered for 10 s") as caught:
        watch.look(10.0)
    assert ray.get_runtime_context().gcs_address in caught.value.fact
    assert watch.is_lost


def test_another_one_is_given_up_at_once(head: Head) -> None:
    watch = HeadWatch(head, 10.0)
    head.error = RpcError("RPC error: WrongClusterID: it was restarted")
    with pytest.raises(ClusterError, match=r"was restarted and has forgotten this job"):
        watch.look(0.0)


def test_one_that_must_answer_now(head: Head) -> None:
    watch = HeadWatch(head, 10.0)
    watch.require()
    head.error = RpcError("Timed out")
    with pytest.raises(ClusterError, match=r"has not answered"):
        watch.require()


def test_the_real_one(ray_session: None) -> None:
    assert HeadWatch().look(0.0)


@pytest.mark.parametrize(("ray_waits", "patience_s"), [("28", 8.0), ("12", 5.0), ("soon", 40.0)])
def test_the_job_ends_before_ray_would_end_it(
    monkeypatch: pytest.MonkeyPatch, head: Head, ray_waits: str, patience_s: float
) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", ray_waits)
    watch = HeadWatch(head)
    head.error = RpcError("Timed out")
    assert not watch.look(0.0)
    assert not watch.look(patience_s - 0.5)
    with pytest.raises(ClusterError):
        watch.look(patience_s + 1.0)
