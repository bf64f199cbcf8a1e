"""What executes a job's network on an actor, for its report: the runtime, and how the network was cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from .engine import Engine
from .onnxruntime_engine import onnxruntime_version
from .task import EngineFacts, SegmentFacts

__all__ = ["engine_facts"]

_SEGMENTS_KEPT = 60
_REASONS_KEPT = 20
_LONGEST_REASON = 300


@runtime_checkable
class _Cut(Protocol):
    """An engine of several segments; see ``SegmentedEngine``."""

    @property
    def kinds(self) -> Sequence[str]:
        """The runtime of each segment."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What its maker wrote down."""


def engine_facts(engine: Engine) -> EngineFacts:
    """Describes an open engine."""
    if not isinstance(engine, _Cut):
        whole = (SegmentFacts(name="whole", kind="native"),)
        return EngineFacts(runtimes=(_onnxruntime(),), segments=whole, segments_total=1)
    facts = engine.facts
    partition = facts.get("partition") or {}
    kinds = list(engine.kinds)
    listed: list[Mapping[str, Any]] = list(partition.get("segments") or ())
    if len(listed) != len(kinds):
        names = ["whole"] if len(kinds) == 1 else [f"{kind}-{place}" for place, kind in enumerate(kinds)]
        listed = [{"name": name, "kind": kind} for name, kind in zip(names, kinds, strict=True)]
    runtimes = [str(facts["flavour"])] if facts.get("flavour") else []
    runtimes += [_onnxruntime()] if "native" in kinds else []
    reasons: dict[str, int] = {}
    for node in partition.get("native") or ():
        reason = str(node.get("reason", ""))[:_LONGEST_REASON]
        reasons[reason] = reasons.get(reason, 0) + 1
    most = sorted(reasons.items(), key=lambda found: -found[1])
    return EngineFacts(
        runtimes=tuple(runtimes),
        segments=tuple(
            SegmentFacts(
                name=str(one.get("name", "")),
                kind=str(one.get("kind", "")),
                nodes=one.get("nodes"),
                multiply_adds=one.get("multiply_adds"),
            )
            for one in listed[:_SEGMENTS_KEPT]
        ),
        segments_total=len(listed),
        native=tuple(most[:_REASONS_KEPT]),
        origin=str(facts.get("origin", "")),
    )


def _onnxruntime() -> str:
    return f"onnxruntime {onnxruntime_version()}"
