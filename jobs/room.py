"""How many actors of a job there are, and what each of them gets of the cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..cluster.room_watch import RoomWatch
from ..cluster.session import Resources, Session
from ..errors import BackendError
from ..trt_actors.backends import wants_gpu
from .progress import Reporter

__all__ = ["ActorOptions", "Room", "find_room", "room_of"]

_AUTOSCALER_S = 600.0
_COME_BACK_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Room:
    """The actors of a job.

    Attributes:
        actors: How many to run at once, to begin with.
        resources: What Ray reserves for each.
        follows: Whether there are to be more when the cluster grows.
        wait_s: How long the job waits for a node that fits while it has no actor.
    """

    actors: int
    resources: Resources
    follows: bool = False
    wait_s: float = _COME_BACK_S

    @property
    def threads(self) -> int:
        """CPU threads of an actor: at least one, also where several share a CPU."""
        return max(1, int(self.resources.cpus))

    def watch(self, session: Session, shown: Reporter) -> RoomWatch | None:
        """What looks at the cluster while the job runs; None for a cluster that cannot change."""
        if session.is_embedded:
            return None
        return RoomWatch(
            lambda: session.count_room(self.resources),
            actors=self.actors,
            follows=self.follows,
            wait_s=self.wait_s,
            inventory=lambda: session.inventory,
            say=shown.say,
        )


class ActorOptions(Protocol):
    """What a user may say about the actors of a job; see ``CalibrateSpec``."""

    @property
    def address(self) -> str | None:
        """Ray cluster."""

    @property
    def backend(self) -> str:
        """``auto`` or one backend's name."""

    @property
    def actors(self) -> int | None:
        """How many; None for as many as fit."""

    @property
    def cpus_per_actor(self) -> float | None:
        """CPUs of each."""

    @property
    def gpus_per_actor(self) -> float:
        """GPUs of each on a backend that uses them."""


def room_of(options: ActorOptions, session: Session, shown: Reporter) -> Room:
    """The actors of a job on a cluster.

    Raises:
        TrtfleetError: There is no room for any.
    """
    return find_room(
        session,
        shown,
        backend=options.backend,
        actors=options.actors,
        cpus_per_actor=options.cpus_per_actor,
        gpus_per_actor=options.gpus_per_actor,
    )


def find_room(
    session: Session,
    shown: Reporter,
    *,
    backend: str,
    actors: int | None,
    cpus_per_actor: float | None,
    gpus_per_actor: float,
    wait_for_nodes_s: float | None = None,
) -> Room:
    """Settles what a job leaves open.

    Args:
        session: The cluster.
        shown: Told when there is room for fewer actors than wanted.
        backend: ``auto`` or one backend's name.
        actors: How many are wanted; None for as many as fit, then and later.
        cpus_per_actor: CPUs of each; None for its share of the node where it has a GPU, else one.
        gpus_per_actor: GPUs of each on a backend that uses them.
        wait_for_nodes_s: How long to wait for a node that fits where there is none; None for as long as the
            cluster's autoscaler may need, if it tells that it could bring one, else not at all.

    Raises:
        BackendError: The backend needs a GPU, and the cluster has none and is not waited for.
        ClusterError: Not one actor fits on any node, and none is waited for.
    """
    could_bring_gpu = bool(
        not session.gpus and session.could_bring(Resources(cpus=cpus_per_actor or 1, gpus=gpus_per_actor))
    )
    gpus = gpus_per_actor if wants_gpu(backend, session.gpus or float(could_bring_gpu)) else 0.0
    resources = Resources(cpus=float(cpus_per_actor or session.cpus_beside(gpus)), gpus=gpus)
    room = session.count_room(resources)
    wait_s = _COME_BACK_S if wait_for_nodes_s is None else wait_for_nodes_s
    if not room:
        if wait_for_nodes_s is None:
            wait_s = _AUTOSCALER_S if session.could_bring(resources) else 0.0
        if not wait_s or session.is_embedded:
            raise _no_room(session, backend, resources)
        # Whoever waits asks for something: without a demand an autoscaler brings nothing.
        return Room(actors=actors or 1, resources=resources, follows=actors is None, wait_s=wait_s)
    wanted = actors or room
    if wanted > room:
        shown.say(f"the cluster has room for {room} of {wanted} actors; the others wait for it")
    return Room(
        actors=wanted,
        resources=resources,
        follows=actors is None and not session.is_embedded,
        wait_s=wait_s,
    )


def _no_room(session: Session, backend: str, resources: Resources) -> Exception:
    if resources.gpus and not session.gpus:
        return BackendError(
            f"backend {backend} is not available: the cluster has no GPU, only {session.inventory}",
            "choose --backend auto, or add a node with a GPU",
        )
    return session.no_room(resources)
