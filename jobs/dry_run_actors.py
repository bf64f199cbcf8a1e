"""What dry runs of all kinds have in common: the actors they would get, and the columns they would read."""

from __future__ import annotations

import pyarrow as pa

from ..cluster.planning import ThisMachine
from ..cluster.session import Session
from .dry_run import Actors
from .network import Fitted
from .progress import Silent
from .room import Room

__all__ = ["Notes", "actors_of", "columns_of"]

_LONGEST_TYPE = 60


class Notes(Silent):
    """Keeps what a job would say."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """Keeps the line."""
        self.said.append(text)


def actors_of(room: Room, session: Session) -> Actors:
    """The same in numbers, and where they would be."""
    is_here = isinstance(session, ThisMachine)
    return Actors(
        count=room.actors,
        cpus=room.resources.cpus,
        gpus=room.resources.gpus,
        threads=room.threads,
        cluster=f"this machine with {session.inventory}" if is_here else f"Ray at {session.address}",
        starts_ray=is_here,
        per_machine=min(
            room.actors, max((node.room_for(room.resources) for node in session.nodes), default=0)
        ),
    )


def columns_of(fitted: Fitted, schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """For each input that columns feed, what feeds it: ``image (binary)``."""
    found = {
        binding.input.name: tuple(f"{name} ({_type(schema, name)})" for name in binding.columns)
        for binding in fitted.bindings or ()
    }
    return {**found, **{mask.name: ("the attention mask",) for mask in fitted.masks}}


def _type(schema: pa.Schema, column: str) -> str:
    text = str(schema.field(column).type)
    return text if len(text) <= _LONGEST_TYPE else f"{text[: _LONGEST_TYPE - 1]}…"
