"""From a network to everything that runs it: the partition, and a plan for each TensorRT segment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from ...errors import ModelError
from ..partition.partition import Partition
from ..partition.partitioner import partition_model
from ..partition.support import ParserProcess
from ..runtime.program import NetworkProgram, SegmentProgram
from .builder import BuiltPlan, build_plan
from .flavour import Flavour
from .monitor import Progress
from .options import BuildOptions, Profile
from .profiles import ShapeBook, input_profiles

__all__ = ["BuiltNetwork", "build_network", "partition_network"]


@dataclass(frozen=True, kw_only=True)
class BuiltNetwork:
    """A network with its plans.

    Attributes:
        program: The segments in the order in which they run.
        partition: How the network was cut.
        profiles: The shapes that each TensorRT segment was built for, by segment.
        plans: The built plans by segment.
        seconds: What everything took.
    """

    program: NetworkProgram = field(repr=False)
    partition: Partition
    profiles: Mapping[str, tuple[Profile, ...]]
    plans: Mapping[str, BuiltPlan]
    seconds: float

    @property
    def plan_bytes(self) -> int:
        """Bytes of all plans."""
        return sum(len(plan.plan) for plan in self.plans.values())

    def facts(self) -> dict[str, Any]:
        """What a cache entry says of itself besides its identity, in plain values."""
        return {
            "partition": self.partition.as_json(),
            "profiles": {name: list(map(str, profiles)) for name, profiles in self.profiles.items()},
            "plans": {
                name: {"bytes": len(plan.plan), "build_s": plan.seconds, "types": dict(plan.types)}
                for name, plan in self.plans.items()
            },
            "build_s": self.seconds,
        }


def partition_network(
    model: onnx.ModelProto,
    options: BuildOptions,
    flavour: Flavour,
    *,
    original: onnx.ModelProto | None = None,
) -> Partition:
    """Cuts a network that `to_precision` made.

    Args:
        model: The network, cleaned.
        options: Which operators stay native, and how small a segment may be.
        flavour: Whose parser is asked.
        original: What the network was made from, for the report.

    Raises:
        BackendError: The process that asks the parser does not start.
    """
    with ParserProcess(flavour.name) as query:
        return partition_model(
            model,
            query,
            original=original or model,
            flavour=str(flavour),
            min_subgraph_size=options.min_subgraph_size,
            exclude_ops=options.exclude_ops,
        )


def build_network(
    model: onnx.ModelProto,
    options: BuildOptions,
    flavour: Flavour,
    *,
    original: onnx.ModelProto | None = None,
    timing_cache: bytes | None = None,
    progress: Callable[[str], Progress] | None = None,
) -> BuiltNetwork:
    """Partitions a network and builds every TensorRT segment.

    Args:
        model: As `to_precision` made it.
        options: What to build.
        flavour: Who builds.
        original: What the network was made from, for the report.
        timing_cache: What an earlier build learned.
        progress: Called with a segment's name, returns who is told how far its build is.

    Raises:
        ModelError: The network cannot be cut or built, or TensorRT takes nothing of it.
        UsageError: A profile is missing or does not fit.
    """
    start = time.monotonic()
    partition = partition_network(model, options, flavour, original=original)
    if not partition.tensorrt:
        reason = partition.native[0].reason if partition.native else "it has no nodes"
        raise ModelError(f"{flavour} takes no part of the network: {reason}", "see `trtfleet partition`")
    book = ShapeBook(partition, input_profiles(partition.cleaned, options), options)
    plans: dict[str, BuiltPlan] = {}
    profiles: dict[str, tuple[Profile, ...]] = {}
    programs = []
    for segment in partition.segments:
        data = partition.model_of(segment).SerializeToString(deterministic=True)
        plan = None
        if segment.kind == "tensorrt":
            profiles[segment.name] = book.of(segment)
            built = build_plan(
                flavour,
                data,
                options,
                profiles[segment.name],
                timing_cache=timing_cache,
                progress=progress(segment.name) if progress else None,
            )
            timing_cache = built.timing_cache or timing_cache
            plans[segment.name], plan = built, built.plan
        programs.append(
            SegmentProgram(
                kind=segment.kind,
                inputs=segment.inputs,
                outputs=segment.outputs,
                plan=plan,
                onnx=data,
            )
        )
    _check_precision(options, plans.values())
    return BuiltNetwork(
        program=NetworkProgram(segments=tuple(programs)),
        partition=partition,
        profiles=profiles,
        plans=plans,
        seconds=time.monotonic() - start,
    )


def _check_precision(options: BuildOptions, plans: Iterable[BuiltPlan]) -> None:
    """Compares what was asked for with the types that TensorRT gave the multiplying layers."""
    wanted = {"fp16": "HALF", "int8": None, "fp32": "FLOAT"}[options.precision]
    found: dict[str, int] = {}
    for plan in plans:
        for name, count in plan.types.items():
            found[name] = found.get(name, 0) + count
    if wanted and found and wanted not in found:
        shown = ", ".join(f"{count} {name}" for name, count in found.items())
        raise ModelError(
            f"precision {options.precision} was asked for, TensorRT's multiplying layers are: {shown}",
            "the model's own types decide: export it in the precision wanted",
        )
