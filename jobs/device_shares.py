"""What each class of devices did for a job: engines, batch sizes and speeds differ from class to class."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ..trt_actors.task import ActorInfo, Receipt

__all__ = ["DeviceShare", "DeviceShares", "sized"]


@dataclass(frozen=True, kw_only=True)
class DeviceShare:
    """The part of a job that one class of devices did.

    Attributes:
        device: ``CPU``, or a GPU's name with its compute capability.
        backend: What executed there; several are joined by a comma.
        actors: Actors that took part.
        batch_size: Rows a batch, to begin with.
        rows: Rows that they committed.
        rows_per_s: These by the seconds from the first of them being ready to the last commit of theirs.
    """

    device: str
    backend: str
    actors: int
    batch_size: int
    rows: int
    rows_per_s: float

    def line(self, all_rows: int) -> str:
        """The share in words, of so many rows in all."""
        share, actors = self.rows / max(1, all_rows), f"{self.actors} actor{'s' if self.actors > 1 else ''}"
        return (
            f"{self.device}: {share:.0%} of the rows, {self.rows_per_s:,.0f} rows/s on {actors}, "
            f"{self.backend}, batch size {self.batch_size}"
        )


def sized(rows: int, origin: str) -> str:
    """A batch size with where it comes from, unless the user said it."""
    return f"{rows} ({origin})" if origin in ("measured", "remembered") else str(rows)


@dataclass
class _Class:
    infos: list[ActorInfo] = field(default_factory=list)
    ready_s: float = 0.0
    last_s: float = 0.0
    rows: int = 0


class DeviceShares:
    """Keeps account by class of devices."""

    def __init__(self) -> None:
        self._devices: dict[str, str] = {}
        self._classes: dict[str, _Class] = {}

    def actor_started(self, name: str, info: ActorInfo) -> str:
        """An actor is ready; returns what is new, in words, if it is the first of a further class."""
        known = self._classes.setdefault(info.device, _Class())
        is_first = not known.infos
        if is_first:
            known.ready_s = known.last_s = time.monotonic()
        known.infos.append(info)
        self._devices[name] = info.device
        if not is_first or len(self._classes) == 1:
            return ""
        reason = f" ({info.not_taken})" if info.not_taken else ""
        size = sized(info.batch_size, info.batch_origin)
        return f"on {info.device}: backend {info.backend}, batch size {size}{reason}"

    def shard_done(self, name: str, receipt: Receipt) -> None:
        """An actor answered for a shard."""
        if receipt.won:
            known = self._classes[self._devices[name]]
            known.rows += receipt.record.rows
            known.last_s = time.monotonic()

    def shares(self) -> tuple[DeviceShare, ...]:
        """The shares, the largest first."""
        found = [
            DeviceShare(
                device=device,
                backend=", ".join(sorted({info.backend for info in known.infos})),
                actors=len(known.infos),
                batch_size=max(info.batch_size for info in known.infos),
                rows=known.rows,
                rows_per_s=known.rows / max(1e-9, known.last_s - known.ready_s),
            )
            for device, known in self._classes.items()
        ]
        return tuple(sorted(found, key=lambda share: (-share.rows, share.device)))
