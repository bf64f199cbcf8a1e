"""``trtfleet cluster``: a cluster's nodes as actors would find them, and what is cached for their GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..cluster.nodes import Node
from ..trt_actors.cache.warmth import Warmth, gpu_class
from ..trt_actors.machine import Machine
from ..trt_actors.runtime.libcuda import GpuInfo
from .cache_contents import size_text
from .columns_text import in_columns
from .node_report import NodeReport
from .value_text import counted

__all__ = ["ClusterView", "GpuClass", "NodeView"]

_NODES = ("node", "CPUs", "GPUs", "memory free", "sees", "driver", "TensorRT", "ONNX Runtime", "auto takes")
_CLASSES = (
    "kind of GPU",
    "Ray calls it",
    "GPUs",
    "nodes",
    "memory",
    "engines ready",
    "others",
    "batch sizes",
)
_ID_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class NodeView:
    """One node.

    Attributes:
        node: What Ray knows of it.
        report: What it tells of itself; None where it does not answer.
        failure: Why it does not; empty where it does.
        differs: In which versions it differs from the driver, in words.
    """

    node: Node
    report: NodeReport | None
    failure: str = ""
    differs: tuple[str, ...] = ()

    @property
    def gpus(self) -> tuple[GpuInfo, ...]:
        """The GPUs that it says it sees."""
        return () if self.report is None else self.report.machine.gpus


@dataclass(frozen=True, kw_only=True)
class GpuClass:
    """One kind of GPU of the cluster.

    Attributes:
        name: Name and compute capability.
        accelerator_type: As Ray calls it; empty where it knows none.
        gpus: How many, over all nodes that answered.
        nodes: On how many of these.
        memory_bytes: Of one GPU.
        drivers: Versions of the driver.
        warmth: What the cache holds for it: on the node with the least, where nodes have caches of their own.
    """

    name: str
    accelerator_type: str
    gpus: int
    nodes: int
    memory_bytes: int
    drivers: tuple[str, ...]
    warmth: Warmth


@dataclass(frozen=True, kw_only=True)
class ClusterView:
    """A cluster.

    Attributes:
        address: Of its head.
        is_embedded: Whether it is this machine alone, with Ray started for the moment.
        nodes: All of them, the dead ones last.
        classes: The kinds of GPUs, by name.
        cache: The engine cache that was looked at.
        cache_failure: Why it could not be read; empty where it could.
        is_cache_shared: Whether it is the same for all nodes, an object store.
    """

    address: str
    is_embedded: bool
    nodes: tuple[NodeView, ...]
    classes: tuple[GpuClass, ...]
    cache: str
    cache_failure: str
    is_cache_shared: bool

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "address": self.address,
            "is_embedded": self.is_embedded,
            "cache": self.cache,
            "cache_failure": self.cache_failure,
            "is_cache_shared": self.is_cache_shared,
            "classes": [asdict(each) for each in self.classes],
            "nodes": [
                {
                    **asdict(view.node),
                    "failure": view.failure,
                    "differs": list(view.differs),
                    "report": None if view.report is None else view.report.as_json(),
                }
                for view in self.nodes
            ],
        }

    def lines(self) -> list[str]:
        """Everything in words, as tables."""
        return [
            self._summary(),
            "",
            *in_columns([_NODES, *map(_node_words, self._alive)]),
            *self._remarks(),
            "",
            *self._kinds(),
        ]

    @property
    def _alive(self) -> list[NodeView]:
        # A cluster that grows and shrinks remembers many that are gone.
        return [view for view in self.nodes if view.node.is_alive]

    def _summary(self) -> str:
        alive = self._alive
        silent, gone = sum(1 for view in alive if view.report is None), len(self.nodes) - len(alive)
        cpus, gpus = sum(view.node.cpus for view in alive), sum(view.node.gpus for view in alive)
        where = "this machine, Ray started for the moment" if self.is_embedded else f"Ray at {self.address}"
        words = f"{where}: {counted(len(alive), 'node')}, {cpus:g} CPUs, {gpus:g} GPUs"
        words += f"; {silent} did not answer" if silent else ""
        return f"{words}; {counted(gone, 'node')} left before" if gone else words

    def _remarks(self) -> Iterator[str]:
        for view in self._alive:
            where = f"{view.node.address} {view.node.id[:_ID_SHOWN]}"
            if view.failure:
                yield f"{where}: {view.failure}"
            if view.differs:
                yield f"{where}: {'; '.join(view.differs)}"
            if view.report is not None:
                yield from (f"{where}: {words}" for words in _doubts(view, view.report))

    def _kinds(self) -> Iterator[str]:
        if self.classes:
            yield from in_columns([_CLASSES, *map(_class_words, self.classes)])
        else:
            yield "no GPU was seen"
        is_by_node = bool(self.classes) and not self.is_cache_shared
        where = ", each node its own; the least is told" if is_by_node else ""
        yield f"engine cache {self.cache or 'none'}{where}"
        if self.cache_failure:
            yield f"the cache cannot be read: {self.cache_failure}"


def _node_words(view: NodeView) -> list[str]:
    node = view.node
    words = [node.address, f"{node.cpus:g}", f"{node.gpus:g}"]
    if view.report is None:
        return [*words, "does not answer"]
    machine = view.report.machine
    memory = f"{size_text(machine.free_bytes)} of {size_text(machine.memory_bytes)}"
    return [
        *words,
        memory if machine.memory_bytes else "unknown",
        _seen(machine),
        ", ".join(sorted({gpu.driver for gpu in machine.gpus if gpu.driver})),
        machine.flavour,
        _onnxruntime(machine),
        machine.takes,
    ]


def _seen(machine: Machine) -> str:
    names = [gpu_class(gpu) for gpu in machine.gpus]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "no GPU"


def _onnxruntime(machine: Machine) -> str:
    version = machine.packages.get("onnxruntime-gpu") or machine.packages.get("onnxruntime", "")
    has_cuda = not machine.backends.get("onnxruntime-cuda", "unknown")
    return f"{version}, CUDA" if has_cuda else version


def _doubts(view: NodeView, report: NodeReport) -> Iterator[str]:
    """What may surprise whoever runs a job there."""
    machine, node = report.machine, view.node
    if node.gpus and not machine.gpus:
        yield f"Ray gives away {node.gpus:g} GPUs there, a process sees none: {machine.no_gpu}"
    elif node.gpus and node.gpus != len(machine.gpus):
        yield f"Ray gives away {node.gpus:g} GPUs there, a process sees {len(machine.gpus)}"
    elif machine.gpus and not node.gpus:
        yield f"a process sees {len(machine.gpus)} GPUs there, Ray gives none of them away"
    reason = machine.backends.get("tensorrt", "")
    if machine.gpus and reason:
        yield f"no tensorrt: {reason}"
    if report.cache_failure:
        yield f"the cache cannot be read: {report.cache_failure}"


def _class_words(kind: GpuClass) -> list[str]:
    warmth = kind.warmth
    return [
        kind.name,
        kind.accelerator_type,
        str(kind.gpus),
        str(kind.nodes),
        size_text(kind.memory_bytes),
        f"{warmth.ready:,} ({size_text(warmth.ready_bytes)})" if warmth.ready else "0",
        f"{warmth.others:,}",
        f"{warmth.batch_sizes:,}",
    ]
