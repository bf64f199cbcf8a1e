"""Connecting to Ray, each time from a process of its own: a process connects to one cluster only."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from trtfleet.cluster.session import Resources, Session, connect
from trtfleet.errors import ClusterError

_CONNECT = """
import json, os, sys, time
from trtfleet.cluster.session import connect
from trtfleet.errors import ClusterError

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
before, start_s = dict(os.environ), time.monotonic()
try:
    with connect(sys.argv[1] if sys.argv[1:] else None) as session:
        import ray
        found = {"embedded": session.is_embedded, "address": session.address}
        found["cpus"] = sum(node.cpus for node in session.nodes)
        found["answer"] = ray.get(ray.remote(lambda x: -x).remote(-3))
    assert not ray.is_initialized()
except ClusterError as error:
    assert dict(os.environ) == before
    found = {"fact": error.fact, "hint": error.hint}
print(json.dumps({**found, "seconds": time.monotonic() - start_s}))
"""


def _connect(environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-c", textwrap.dedent(_CONNECT), *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def no_token(without_ray: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """An environment without a token, not even Ray's own file below the home folder."""
    return {**without_ray, "HOME": str(tmp_path)}


@pytest.mark.ray
def test_an_existing_cluster_with_its_token(ray_head: Any, no_token: dict[str, str], tmp_path: Path) -> None:
    by_variable = {**no_token, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ray_head.token}
    found = _connect({**by_variable, "RAY_ADDRESS": ray_head.address})
    assert (found["embedded"], found["cpus"], found["answer"]) == (False, 4, 3)
    assert found["address"] == ray_head.address

    (tmp_path / "token").write_text(ray_head.token)
    by_file = {**no_token, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    assert _connect(by_file, ray_head.address)["answer"] == 3


@pytest.mark.ray
@pytest.mark.parametrize(
    ("auth", "says"),
    [
        ({}, "the token is missing or wrong"),
        ({"RAY_AUTH_MODE": "disabled"}, "the token is missing or wrong"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 32}, "the token is missing or wrong"),
        ({"RAY_AUTH_MODE": "token"}, "no authentication token was found"),
    ],
    ids=["none", "disabled", "wrong", "promised"],
)
def test_without_the_token_the_error_says_what_to_do(
    ray_head: Any, no_token: dict[str, str], auth: dict[str, str], says: str
) -> None:
    found = _connect({**no_token, **auth}, ray_head.address)
    assert ray_head.address in found["fact"]
    assert says in found["fact"]
    assert "RAY_AUTH_MODE=token" in found["hint"]
    assert "RAY_AUTH_TOKEN" in found["hint"]
    # Left to itself, Ray asks for 20 s before it gives up.
    assert found["seconds"] < 20


@pytest.mark.ray
def test_without_an_address_ray_starts_here_and_ends(without_ray: dict[str, str]) -> None:
    found = _connect(without_ray)
    assert found["embedded"]
    assert found["answer"] == 3
    host, _, port = found["address"].rpartition(":")
    with pytest.raises(OSError), socket.create_connection((host, int(port)), 2):
        pass


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", "nothing answers at 127.0.0.1:1"),
        ("127.0.0.1:99999", "nothing answers at 127.0.0.1:99999"),
        ("no-such-host.invalid:6379", "nothing answers at no-such-host.invalid:6379"),
        ("ray://127.0.0.1:10001", "is no address of a head node"),
        ("gibberish", "Invalid address format"),
    ],
)
def test_an_address_where_no_cluster_is(no_token: dict[str, str], address: str, says: str) -> None:
    start_s = time.monotonic()
    found = _connect({**no_token, "RAY_ADDRESS": address})
    assert says in found["fact"]
    assert found["hint"]
    # Left to itself, Ray tries for a quarter of an hour.
    assert time.monotonic() - start_s < 60


def test_a_connection_that_is_there_is_used_and_kept(ray_session: None) -> None:
    import ray

    with connect() as session:
        assert not session.is_embedded
        assert sum(node.cpus for node in session.nodes) == 4
        assert session.gpus == 0
    assert ray.is_initialized()


def test_room_for_actors(ray_session: None) -> None:
    with connect() as session:
        assert session.room_for(Resources(cpus=1, gpus=0)) == 4
        assert session.room_for(Resources(cpus=3, gpus=0)) == 1
        with pytest.raises(ClusterError) as caught:
            session.room_for(Resources(cpus=5, gpus=0))
        assert "5 CPUs" in caught.value.fact
        assert "4 CPUs" in caught.value.fact
        with pytest.raises(ClusterError) as caught:
            session.room_for(Resources(cpus=1, gpus=1))
        assert caught.value.fact == "an actor wants 1 CPU and 1 GPU, the cluster has 1 node with 4 CPUs"
        assert "GPU" in caught.value.hint


class _Mixed(Session):
    """A cluster of several kinds of nodes."""

    @property
    def nodes(self) -> list[Resources]:
        return [
            *[Resources(cpus=16, gpus=4, accelerator="A100")] * 2,
            Resources(cpus=8, gpus=1),
            Resources(cpus=64, gpus=0),
        ]


def test_a_cluster_is_told_by_kinds_of_nodes_and_has_room_on_each() -> None:
    session = _Mixed(is_embedded=False, address="a:1")
    assert session.inventory == (
        "2 nodes with 16 CPUs and 4 A100, 1 node with 64 CPUs, 1 node with 8 CPUs and 1 GPU"
    )
    assert session.count_room(Resources(cpus=4, gpus=1)) == 9
    assert session.count_room(Resources(cpus=2, gpus=0.5)) == 18
    assert session.count_room(Resources(cpus=17, gpus=1)) == 0
    assert session.count_room(Resources(cpus=17, gpus=0)) == 3


def test_what_the_autoscaler_could_bring(ray_session: None) -> None:
    from ray._private.worker import global_worker
    from ray._raylet import GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, GCS_AUTOSCALER_STATE_NAMESPACE
    from ray.core.generated import autoscaler_pb2

    where = (GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode(), GCS_AUTOSCALER_STATE_NAMESPACE.encode())
    config = autoscaler_pb2.ClusterConfig()
    config.node_group_configs.add(resources={"CPU": 16, "GPU": 2}, max_count=4, name="gpus")
    config.node_group_configs.add(resources={"CPU": 64}, max_count=-1, name="cpus")
    config.node_group_configs.add(resources={"CPU": 256}, max_count=0, name="none")
    with connect() as session:
        assert not session.could_bring(Resources(cpus=1, gpus=1))
        global_worker.gcs_client.internal_kv_put(where[0], config.SerializeToString(), True, where[1])
        try:
            assert session.could_bring(Resources(cpus=16, gpus=1))
            assert not session.could_bring(Resources(cpus=17, gpus=1))
            assert session.could_bring(Resources(cpus=64, gpus=0))
            assert not session.could_bring(Resources(cpus=65, gpus=0))
        finally:
            global_worker.gcs_client.internal_kv_del(where[0], False, where[1])
        assert not session.could_bring(Resources(cpus=1, gpus=0))


def test_a_session_is_plain_data() -> None:
    assert Session(is_embedded=True, address="a:1") == Session(is_embedded=True, address="a:1")
