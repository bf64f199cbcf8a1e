"""What actors would run with, on every kind of machine that a job may get."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from ..cluster.asking import ask
from ..cluster.nodes import Node, nodes
from ..cluster.planning import ThisMachine
from ..cluster.session import Session
from ..errors import BackendError
from ..trt_actors.expectation import Expectation, Inquiry, expect
from .room import Room

__all__ = ["Machines", "expected_machines"]

_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What was found.

    Attributes:
        kinds: What each kind of machine would do, those that do the same together.
        notes: What could not be found out.
    """

    kinds: tuple[Expectation, ...]
    notes: tuple[str, ...] = ()

    @property
    def batch_sizes(self) -> dict[str, int | None]:
        """The batch size that is remembered for each kind of device."""
        return {kind.device: kind.batch_size for kind in self.kinds}


def expected_machines(session: Session, room: Room, inquiry: Inquiry) -> Machines:
    """Asks one node of each kind on which an actor fits; this machine alone where there is no cluster.

    Args:
        session: The cluster, or what stands in for one.
        room: The job's actors.
        inquiry: The job.

    Raises:
        BackendError: The backend that was asked for can be used on none of them.
    """
    notes: list[str] = []
    if isinstance(session, ThisMachine):
        found = [expect(inquiry)]
    else:
        asked = _one_of_each(nodes(), room)
        answers = ask(asked, functools.partial(expect, inquiry), _TIMEOUT_S)
        found = [answers[node.id].value for node in asked if not answers[node.id].failure]
        notes = [
            f"{node.address} does not tell what it has: {answers[node.id].failure}"
            for node in asked
            if answers[node.id].failure
        ]
    kinds = tuple({(kind.device, kind.backend, kind.engine): kind for kind in found}.values())
    if kinds and not any(kind.backend for kind in kinds):
        raise BackendError(
            f"backend {inquiry.backend} is not available: {kinds[0].not_taken}", "choose --backend auto"
        )
    return Machines(kinds=kinds, notes=tuple(notes))


def _one_of_each(found: Sequence[Node], room: Room) -> list[Node]:
    """The first node of each kind of GPU among those on which an actor fits."""
    wanted = room.resources
    fitting = [
        node for node in found if node.is_alive and node.cpus >= wanted.cpus and node.gpus >= wanted.gpus
    ]
    kinds: dict[tuple[str, bool], Node] = {}
    for node in fitting:
        kinds.setdefault((node.accelerator_type, node.gpus > 0), node)
    return list(kinds.values())
