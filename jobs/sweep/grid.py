"""The trials of a sweep: every combination of what it varies, and what each needs of the cluster."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product

from ...cluster.session import Resources
from ...trt_actors.backends import wants_gpu
from ...trt_actors.trial.task import TORCH
from .spec import SweepSpec

__all__ = ["CPU", "Device", "Trial", "devices_of", "grid"]

CPU = "cpu"
_GPU = "gpu"


@dataclass(frozen=True, kw_only=True)
class Device:
    """A kind of device of the cluster.

    Attributes:
        name: The kind of accelerator as Ray calls it, ``gpu`` where Ray does not know, or ``cpu``.
        accelerator: What Ray is asked for; None where any node will do.
        nodes: What each node with such devices has, most devices first.
    """

    name: str
    accelerator: str | None
    nodes: tuple[Resources, ...]

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.name != CPU

    def resources(self, trial: Trial, cpus_per_actor: int | None) -> Resources:
        """What Ray reserves for a trial: a GPU for each actor, or the CPUs of a whole node."""
        best = self.nodes[0]
        if self.is_gpu:
            cpus = cpus_per_actor or max(1, int(best.cpus / best.gpus))
            return Resources(cpus=float(cpus * trial.actors), gpus=float(trial.actors))
        # Also the CPUs that it does not use: a neighbour would take memory bandwidth and caches from it.
        return Resources(cpus=max(best.cpus, float(trial.actors * (cpus_per_actor or 1))), gpus=0.0)

    def room_for(self, wanted: Resources) -> int:
        """How many trials that need so much run at once on its idle nodes."""
        return sum(node.room_for(wanted) for node in self.nodes)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One combination.

    Attributes:
        model: The model's name in the sweep.
        precision: What it computes in.
        backend: That was asked for.
        batch_size: Rows a batch.
        contexts: Engines of a process.
        actors: Processes.
        device: Name of the kind of device.
    """

    model: str
    precision: str
    backend: str
    batch_size: int
    contexts: int
    actors: int
    device: str

    @property
    def key(self) -> str:
        """The trial's name in storage; the same for the same combination."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:20]

    @property
    def devices(self) -> int:
        """How many devices it has: a GPU for each actor, or one CPU for all."""
        return 1 if self.device == CPU else self.actors

    def __str__(self) -> str:
        parts = [self.model, self.precision, self.backend, self.device, f"batch {self.batch_size}"]
        parts += [f"{self.contexts} contexts"] if self.contexts > 1 else []
        parts += [f"{self.actors} actors"] if self.actors > 1 else []
        return ", ".join(parts)


def devices_of(nodes: Sequence[Resources]) -> Mapping[str, Device]:
    """The kinds of devices of a cluster, GPUs first.

    Args:
        nodes: What each living node has.

    Returns:
        Devices by name; ``cpu`` is always among them.
    """
    groups: dict[str, tuple[str | None, list[Resources]]] = {}
    for node in sorted(nodes, key=lambda node: (node.accelerator, -node.gpus, -node.cpus)):
        if node.gpus >= 1:
            kind = node.accelerator
            _, members = groups.setdefault(kind or _GPU, (kind or None, []))
            members.append(Resources(cpus=node.cpus, gpus=node.gpus))
    by_cpus = sorted((node.cpus for node in nodes if node.cpus >= 1), reverse=True)
    groups[CPU] = (None, [Resources(cpus=cpus, gpus=0.0) for cpus in by_cpus])
    return {
        name: Device(name=name, accelerator=accelerator, nodes=tuple(members))
        for name, (accelerator, members) in groups.items()
    }


def grid(spec: SweepSpec, models: Sequence[str], devices: Sequence[str]) -> list[Trial]:
    """Every trial of a sweep, in the order in which they run.

    A backend for GPUs runs on every kind of GPU, ``auto`` and ``torch`` too where there is one; where there
    is none, the trials of a backend for GPUs stand under ``gpu``, for their error.

    Args:
        spec: The sweep.
        models: Names of its models.
        devices: Names of the cluster's kinds of devices.
    """
    gpus = [name for name in devices if name != CPU]
    found = []
    for model, precision, backend in product(models, spec.precisions, spec.tried):
        on_gpus = wants_gpu("auto" if backend == TORCH else backend, len(gpus))
        places = (gpus or [_GPU]) if on_gpus else [CPU]
        found += [
            Trial(
                model=model,
                precision=precision,
                backend=backend,
                batch_size=batch_size,
                contexts=contexts,
                actors=actors,
                device=device,
            )
            for device, actors, contexts, batch_size in product(
                places, spec.actors, spec.contexts, spec.batch_sizes
            )
        ]
    return found
