"""What one node of a cluster tells of itself: the question that ``trtfleet cluster`` asks there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from ..errors import TrtfleetError
from ..trt_actors.cache.warmth import CacheIndex, Warmth, gpu_class
from ..trt_actors.machine import Machine, look

__all__ = ["NodeReport", "report"]


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """A node as a process on it sees it.

    Attributes:
        machine: What it has.
        cache: The engine cache as this node finds it; empty where it was not asked to look.
        warmth: What that holds for each of its kinds of GPU.
        cache_failure: Why the cache cannot be read there; empty where it can.
    """

    machine: Machine
    cache: str = ""
    warmth: Mapping[str, Warmth] = field(default_factory=dict)
    cache_failure: str = ""

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {**asdict(self), "machine": self.machine.as_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Reads what ``as_json`` gave, perhaps in another version of trtfleet.

        Raises:
            ValueError: The values are no report.
        """
        try:
            return cls(
                machine=Machine.from_json(values["machine"]),
                cache=str(values.get("cache", "")),
                warmth={name: Warmth.from_json(each) for name, each in values.get("warmth", {}).items()},
                cache_failure=str(values.get("cache_failure", "")),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"what it answers is no report: {error}") from error

    def warmed_by(self, index: CacheIndex) -> dict[str, Warmth]:
        """What a cache holds for each of the node's kinds of GPU."""
        return {gpu_class(gpu): index.warmth(gpu, self.machine.flavour) for gpu in self.machine.gpus}


def report(cache: str | None, looks_at_cache: bool) -> dict[str, Any]:
    """Looks at the machine that this runs on; plain values, so that other versions can read them.

    Args:
        cache: Engine cache; None for the default of this machine.
        looks_at_cache: Whether to look into it.
    """
    found = NodeReport(machine=look())
    if not looks_at_cache:
        return found.as_json()
    try:
        index = CacheIndex.read(cache)
    except TrtfleetError as error:
        return NodeReport(machine=found.machine, cache=cache or "", cache_failure=error.fact).as_json()
    return NodeReport(machine=found.machine, cache=index.url, warmth=found.warmed_by(index)).as_json()
