"""Connecting to Ray: the cluster that is there, or one of our own on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from ..errors import ClusterError

__all__ = ["Resources", "Session", "connect"]

_QUIET = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
_ANSWER_S = 5.0
_RAY_WINDOW = "RAY_gcs_server_port_wait_time_s"
_RAY_WINDOW_S = "3"
_TOKEN_HINT = (
    "if the head node asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) "
    "to its token; `ray get-auth-token` on the head node prints it"
)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one actor, or one node, has.

    Attributes:
        cpus: Logical CPUs.
        gpus: GPUs.
    """

    cpus: float
    gpus: float


@dataclass(frozen=True, kw_only=True)
class Session:
    """A connection to Ray.

    Attributes:
        is_embedded: Whether the cluster is ours and ends with the session.
        address: Where the cluster's head is.
    """

    is_embedded: bool
    address: str

    @property
    def nodes(self) -> list[Resources]:
        """What each living node has."""
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return [Resources(cpus=node.get("CPU", 0.0), gpus=node.get("GPU", 0.0)) for node in alive]

    @property
    def gpus(self) -> float:
        """GPUs of the whole cluster."""
        return sum(node.gpus for node in self.nodes)

    def cpus_beside(self, gpus: float) -> int:
        """An actor's share of its node's CPUs when every GPU is taken: for one without GPU, a single one."""
        shares = [node.cpus * gpus / node.gpus for node in self.nodes if node.gpus >= gpus > 0]
        return max(1, int(min(shares, default=1.0)))

    def room_for(self, actor: Resources) -> int:
        """How many such actors fit at once on an idle cluster.

        Raises:
            ClusterError: Not one fits on any node.
        """

        def fits(node: Resources) -> int:
            per_cpu = node.cpus // actor.cpus if actor.cpus else float("inf")
            per_gpu = node.gpus // actor.gpus if actor.gpus else float("inf")
            return int(min(per_cpu, per_gpu, 1 << 20))

        room = sum(map(fits, self.nodes))
        if not room:
            largest = ", ".join(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in self.nodes)
            raise ClusterError(
                f"an actor wants {actor.cpus:g} CPUs and {actor.gpus:g} GPUs, the nodes have: {largest}",
                "lower --cpus-per-actor or choose another backend",
            )
        return room


@contextlib.contextmanager
def connect(address: str | None = None) -> Iterator[Session]:
    """Connects to Ray and disconnects at the end; a connection that was there already is used and kept.

    Args:
        address: A running cluster; None takes ``RAY_ADDRESS``, and without it starts a cluster on this
            machine for the time of the session.

    Raises:
        ClusterError: The cluster cannot be reached, refuses the connection, or does not start.
    """
    if ray.is_initialized():
        yield Session(is_embedded=False, address=ray.get_runtime_context().gcs_address)
        return
    target = address or os.environ.get("RAY_ADDRESS") or None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        context = _init_there(target) if target else _init_here()
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise _explain(error, target) from error
    try:
        yield Session(is_embedded=target is None, address=context.address_info["gcs_address"])
    finally:
        ray.shutdown()


def _init_here() -> Any:
    return ray.init("local", include_dashboard=False, **_QUIET)


def _init_there(target: str) -> Any:
    if "://" in target:
        raise ClusterError(
            f"{target} is no address of a head node", "write HOST:PORT; rows never pass through Ray Client"
        )
    host, _, port = target.rpartition(":")
    if host and port.isdigit():
        # Where nothing listens, Ray itself would try for a quarter of an hour.
        try:
            socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
        except (OSError, OverflowError, ValueError) as error:
            raise ClusterError(
                f"nothing answers at {target}: {error}", "is the head node up, and is this its address?"
            ) from error
    # Ray takes a refusal for a head node that is still starting and asks 20 times; the port is open already.
    before = os.environ.get(_RAY_WINDOW)
    os.environ[_RAY_WINDOW] = before or _RAY_WINDOW_S
    try:
        return ray.init(target, **_QUIET)
    finally:
        if before is None:
            del os.environ[_RAY_WINDOW]


def _explain(error: Exception, target: str | None) -> ClusterError:
    text = str(error).strip().splitlines()
    reason = text[0].split(". ")[0] if text else type(error).__name__
    if target is None:
        return ClusterError(f"cannot start Ray on this machine: {reason}", "see `ray start --head`")
    if isinstance(error, ConnectionError) and reason.startswith("Failed to connect"):
        reason = "it does not let this client in, as when the token is missing or wrong"
    return ClusterError(f"cannot connect to Ray at {target}: {reason}", _TOKEN_HINT)
