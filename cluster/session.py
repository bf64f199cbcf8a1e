"""Connecting to Ray: the cluster that is there, or one of our own on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from ..errors import ClusterError
from .autoscaler import largest_nodes
from .nodes import nodes

__all__ = ["Resources", "Session", "connect"]

_QUIET = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
_ANSWER_S = 5.0
_KINDS_TOLD = 8
_RAY_WINDOW = "RAY_gcs_server_port_wait_time_s"
_RAY_WINDOW_S = "3"
_TOKEN_HINT = (
    "if the head node asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) "
    "to its token; `ray get-auth-token` on the head node prints it. The port of a head node is 6379 by "
    "default, 8265 that of its dashboard"
)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one actor, or one node, has.

    Attributes:
        cpus: Logical CPUs.
        gpus: GPUs.
        accelerator: What Ray calls a node's GPUs, ``H100`` for example; empty where it does not know, and for
            actors.
    """

    cpus: float
    gpus: float
    accelerator: str = ""

    def room_for(self, actor: Resources) -> int:
        """How many such actors fit on such a node at once."""
        per_cpu = self.cpus // actor.cpus if actor.cpus else float("inf")
        per_gpu = self.gpus // actor.gpus if actor.gpus else float("inf")
        return int(min(per_cpu, per_gpu, 1 << 20))

    def __str__(self) -> str:
        gpus = f"{self.gpus:g} {self.accelerator or 'GPU'}{'' if self.accelerator or self.gpus == 1 else 's'}"
        return f"{self.cpus:g} CPU{'' if self.cpus == 1 else 's'}" + (f" and {gpus}" if self.gpus else "")


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
        return [
            Resources(cpus=node.cpus, gpus=node.gpus, accelerator=node.accelerator_type)
            for node in nodes()
            if node.is_alive
        ]

    @property
    def gpus(self) -> float:
        """GPUs of the whole cluster."""
        return sum(node.gpus for node in self.nodes)

    def cpus_beside(self, gpus: float) -> int:
        """An actor's share of its node's CPUs when every GPU is taken: for one without GPU, a single one."""
        shares = [node.cpus * gpus / node.gpus for node in self.nodes if node.gpus >= gpus > 0]
        return max(1, int(min(shares, default=1.0)))

    @property
    def inventory(self) -> str:
        """The living nodes in words, those that are alike together."""
        alike = Counter(map(str, self.nodes))
        listed = [
            f"{count} node{'s' if count > 1 else ''} with {what}" for what, count in sorted(alike.items())
        ]
        if len(listed) > _KINDS_TOLD:
            listed[_KINDS_TOLD:] = [f"{len(listed) - _KINDS_TOLD} other kinds of nodes"]
        return ", ".join(listed) or "no node"

    def count_room(self, actor: Resources) -> int:
        """How many such actors fit at once on the idle cluster as it is now; may be none."""
        return sum(node.room_for(actor) for node in self.nodes)

    def could_bring(self, actor: Resources) -> bool:
        """Whether the cluster's autoscaler tells of a kind of node on which such an actor fits."""
        if self.is_embedded:
            return False
        return any(Resources(cpus=cpus, gpus=gpus).room_for(actor) for cpus, gpus in largest_nodes())

    def room_for(self, actor: Resources) -> int:
        """How many such actors fit at once on an idle cluster.

        Raises:
            ClusterError: Not one fits on any node.
        """
        room = self.count_room(actor)
        if not room:
            raise self.no_room(actor)
        return room

    def no_room(self, actor: Resources) -> ClusterError:
        """The error that no node fits such an actor, with what there is."""
        lacks_gpu = actor.gpus and not any(node.gpus >= actor.gpus for node in self.nodes)
        return ClusterError(
            f"an actor wants {actor}, the cluster has {self.inventory}",
            "add a node with a GPU, or choose --backend onnxruntime-cpu"
            if lacks_gpu
            else "lower --cpus-per-actor or choose another backend",
        )


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
