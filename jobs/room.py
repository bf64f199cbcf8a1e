"""How many actors of a job there are, and what each of them gets of the cluster."""

from __future__ import annotations

from dataclasses import dataclass

from ..cluster.session import Resources, Session
from ..errors import BackendError
from ..trt_actors.backends import wants_gpu
from .progress import Reporter

__all__ = ["Room", "find_room"]


@dataclass(frozen=True, kw_only=True)
class Room:
    """The actors of a job.

    Attributes:
        actors: How many to run at once.
        resources: What Ray reserves for each.
    """

    actors: int
    resources: Resources

    @property
    def threads(self) -> int:
        """CPU threads of an actor: at least one, also where several share a CPU."""
        return max(1, int(self.resources.cpus))


def find_room(
    session: Session,
    shown: Reporter,
    *,
    backend: str,
    actors: int | None,
    cpus_per_actor: float | None,
    gpus_per_actor: float,
) -> Room:
    """Settles what a job leaves open.

    Args:
        session: The cluster.
        shown: Told when there is room for fewer actors than wanted.
        backend: ``auto`` or one backend's name.
        actors: How many are wanted; None for as many as fit.
        cpus_per_actor: CPUs of each; None for its share of the node where it has a GPU, else one.
        gpus_per_actor: GPUs of each on a backend that uses them.

    Raises:
        BackendError: The backend needs a GPU and the cluster has none.
        ClusterError: Not one actor fits on any node.
    """
    gpus = gpus_per_actor if wants_gpu(backend, session.gpus) else 0.0
    if gpus and not session.gpus:
        raise BackendError(
            f"backend {backend} is not available: the cluster has no GPU", "choose --backend auto"
        )
    resources = Resources(cpus=float(cpus_per_actor or session.cpus_beside(gpus)), gpus=gpus)
    room = session.room_for(resources)
    wanted = actors or room
    if wanted > room:
        shown.say(f"the cluster has room for {room} of {wanted} actors; the others wait for it")
    return Room(actors=wanted, resources=resources)
