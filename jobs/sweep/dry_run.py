"""The dry run of a sweep: which trials there would be, where, and what they need; nothing is run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...cluster.planning import ThisMachine, look_only
from ...datasets.output import Output
from ...trt_actors.runtime.libcuda import gpus
from ..cache_contents import size_text
from ..value_text import counted
from .grid import Trial, devices_of, grid
from .groups import Group, groups_of, problems_of, units_of
from .plan import SweepPlan, make_sweep_plan
from .results import read_rows, trials_text
from .spec import SweepSpec

__all__ = ["SweepDryRun", "dry_run_sweep"]


@dataclass(frozen=True, kw_only=True)
class SweepDryRun:
    """A sweep that was planned and not run.

    Attributes:
        out: Where results would go.
        is_begun: Whether this very sweep was begun there.
        cluster: Where trials would run.
        trials: All combinations.
        repeats: How often each is measured.
        done: Measurements that an earlier run made.
        groups: The missing ones, by what they need.
        problems: Trials that would fail at once, by the reason.
        networks: Bytes of each network, by model and precision; None where it cannot be had.
        measuring_s: Seconds of measuring alone, besides loading, building and warming up.
        most_s: Seconds that no sweep takes longer than, as each trial may take ``timeout_s``.
    """

    out: str
    is_begun: bool
    cluster: str
    trials: Sequence[Trial] = field(repr=False)
    repeats: int
    done: int
    groups: Sequence[Group] = field(repr=False)
    problems: dict[str, list[Trial]] = field(repr=False)
    networks: dict[str, int | None]
    measuring_s: float
    most_s: float

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        return {
            "out": self.out,
            "is_begun": self.is_begun,
            "cluster": self.cluster,
            "trials": [asdict(trial) for trial in self.trials],
            "repeats": self.repeats,
            "measurements": {"done": self.done, "missing": sum(len(group.units) for group in self.groups)},
            "groups": [
                {
                    "device": group.device.name,
                    "measurements": len(group.units),
                    "at_once": group.at_once,
                    "cpus": group.wanted.cpus,
                    "gpus": group.wanted.gpus,
                }
                for group in self.groups
            ],
            "fail": {reason: [asdict(trial) for trial in trials] for reason, trials in self.problems.items()},
            "network_bytes": self.networks,
            "measuring_s": self.measuring_s,
            "most_s": self.most_s,
        }

    def lines(self) -> list[str]:
        """The plan in words."""
        again = f", {self.done} of them made before" if self.done else ""
        lines = [
            f"sweep     {counted(len(self.trials), 'trial')} x {self.repeats} = "
            f"{counted(len(self.trials) * self.repeats, 'measurement')}{again}",
            f"cluster   {self.cluster}",
        ]
        lines += [f"run       {group}" for group in self.groups]
        for name, size in self.networks.items():
            lines.append(f"network   {name}: {'not to be had' if size is None else size_text(size)}")
        lines += [f"fail      {trials_text(trials)}: {reason}" for reason, trials in self.problems.items()]
        lines += [f"trial     {trial}" for trial in self.trials]
        least, most = _time(self.measuring_s), _time(self.most_s)
        lines.append(f"time      {least} of measuring, besides engines and warming up; {most} at most")
        lines.append(f"out       {self.out}{', begun before, would be resumed' if self.is_begun else ''}")
        return [*lines, "nothing was run"]


def dry_run_sweep(spec: SweepSpec) -> SweepDryRun:
    """Finds out what a sweep would do. Reads models and what is there already, and writes nothing anywhere.

    Ray is not started; a cluster is asked where one is named.

    Raises:
        TrtfleetError: Whatever would make the sweep as a whole fail and can be seen without running it.
    """
    if spec.compare is not None:
        read_rows(spec.compare)
    plan = make_sweep_plan(spec)
    with look_only(spec.address, len(gpus())) as session:
        nodes = session.nodes
        is_here = isinstance(session, ThisMachine)
        cluster = f"this machine with {session.inventory}" if is_here else f"Ray at {session.address}"
        cluster += ", where Ray would be started" if is_here else f" with {session.inventory}"
    devices = devices_of(nodes)
    output = Output.latest(plan.storage)
    if output is not None and spec.overwrite:
        output.require_kind(plan.fingerprint)
        output = None
    names: Sequence[str] = list(devices)
    if output is not None:
        output.require(plan.fingerprint)
        names = output.job.resolved["devices"]
    trials = grid(spec, list(plan.models), names)
    committed = set() if output is None else set(output.committed())
    missing = {key: trial for key, trial in units_of(trials, spec.repeats).items() if key not in committed}
    problems = problems_of(plan, list(dict.fromkeys(missing.values())), devices)
    failing = {trial for those in problems.values() for trial in those}
    runnable = {key: trial for key, trial in missing.items() if trial not in failing}
    groups = groups_of(runnable, devices, spec.cpus_per_actor)
    turns = sum(math.ceil(len(group.units) / group.at_once) for group in groups)
    return SweepDryRun(
        out=plan.storage.url,
        is_begun=output is not None,
        cluster=cluster,
        trials=trials,
        repeats=spec.repeats,
        done=len(committed),
        groups=groups,
        problems=problems,
        networks=_networks(plan),
        measuring_s=turns * spec.seconds * (2 if spec.mode == "both" else 1),
        most_s=turns * spec.timeout_s,
    )


def _networks(plan: SweepPlan) -> dict[str, int | None]:
    return {
        f"{model} in {precision}": None if network.prepared is None else len(network.prepared.model_bytes)
        for (model, precision, is_torch), network in plan.networks.items()
        if not is_torch
    }


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
