"""What a sweep measures together: trials that need the same of the same kind of device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...cluster.session import Resources
from .grid import Device, Trial
from .plan import SweepPlan

__all__ = ["Group", "groups_of", "problems_of", "unit_name", "units_of"]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Measurements that run at the same time, as many as there is room for.

    Attributes:
        device: The kind of device.
        wanted: What Ray reserves for each.
        units: Their trials, by name.
    """

    device: Device
    wanted: Resources
    units: Mapping[str, Trial] = field(repr=False)

    @property
    def at_once(self) -> int:
        """How many run at once."""
        return min(self.device.room_for(self.wanted), len(self.units))

    def __str__(self) -> str:
        measurements = f"{len(self.units)} measurement{'s' if len(self.units) > 1 else ''}"
        return f"{measurements} on {self.device.name}, {self.at_once} at once, each with {self.wanted}"


def unit_name(trial: Trial, number: int) -> str:
    """The name of one of a trial's measurements in storage."""
    return f"{trial.key}-{number}"


def units_of(trials: Sequence[Trial], repeats: int) -> dict[str, Trial]:
    """Every measurement of a sweep, in order."""
    # A trial's repeats are far apart in time: what else the machine does changes meanwhile.
    return {unit_name(trial, number): trial for number in range(repeats) for trial in trials}


def groups_of(
    units: Mapping[str, Trial], devices: Mapping[str, Device], cpus_per_actor: int | None
) -> list[Group]:
    """Measurements by what they need, in order; none may have a problem."""
    groups: dict[tuple[str, Resources], dict[str, Trial]] = {}
    for key, trial in units.items():
        wanted = devices[trial.device].resources(trial, cpus_per_actor)
        groups.setdefault((trial.device, wanted), {})[key] = trial
    return [
        Group(device=devices[name], wanted=wanted, units=members)
        for (name, wanted), members in groups.items()
    ]


def problems_of(
    plan: SweepPlan, trials: Sequence[Trial], devices: Mapping[str, Device]
) -> dict[str, list[Trial]]:
    """The trials that are known to fail, by the reason."""
    problems: dict[str, list[Trial]] = {}
    for trial in trials:
        problem = plan.problem(trial) or _lacks(trial, devices.get(trial.device), plan.spec.cpus_per_actor)
        if problem:
            problems.setdefault(problem, []).append(trial)
    return problems


def _lacks(trial: Trial, device: Device | None, cpus_per_actor: int | None) -> str:
    """What the cluster lacks for a trial; empty when it has all."""
    if device is None:
        return f"the cluster has no {trial.device.upper()}, which {trial.backend} needs"
    if not device.nodes:
        return "no node of the cluster has a CPU to reserve"
    wanted, most = device.resources(trial, cpus_per_actor), device.nodes[0]
    if device.room_for(wanted):
        return ""
    return f"{trial.actors} actors need {wanted} of one node, the largest has {most}"
