"""Runs trials on the devices of this process: each in processes of its own, so that none harms the next."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..event_log import EventLog, actor_log
from ..runtime.libcuda import driver_missing, gpus
from .nvml import Watch, load_nvml
from .process import VISIBLE, TrialFailed, TrialProcess
from .statistics import Estimate, median_estimate, quantile_estimate, rate_estimate
from .task import HostInfo, HostTask, Measurement, Order

__all__ = ["TrialHost", "run_trial"]


class TrialHost:
    """Runs one trial after the other on the devices that this process was given.

    Args:
        task: What to log, and as part of which run.
    """

    def __init__(self, task: HostTask | None = None) -> None:
        task = task or HostTask()
        self._log = actor_log(task.log_format, task.run)
        self._devices = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
        visible = [] if not self._devices or driver_missing() else gpus()
        self.info = HostInfo(
            node=socket.gethostname(),
            device=visible[0].name if visible else _cpu_name(),
            gpus=len(visible),
            pid=os.getpid(),
        )
        self._log.tell("host_ready", device=self.info.device, gpus=self.info.gpus)

    def run(self, order: Order) -> Measurement:
        """Runs a trial; whatever its network does comes back as a measurement."""
        log = self._log.bound(trial=order.name)
        log.tell("attempt_started", backend=order.backend, batch_size=order.batch_size)
        found = run_trial(order, self._devices, log)
        seconds = round(found.seconds or 0.0, 3)
        if found.error is None:
            log.tell("attempt_done", executed=found.executed, seconds=seconds)
        else:
            log.tell("attempt_failed", level="warning", reason=found.error, seconds=seconds)
        return replace(found, node=self.info.node, device_name=self.info.device)


def run_trial(order: Order, devices: Sequence[str], log: EventLog | None = None) -> Measurement:
    """Runs a trial in processes of its own.

    Args:
        order: The trial.
        devices: GPUs, as in ``CUDA_VISIBLE_DEVICES``, one for each actor; none for trials on the CPU.
        log: Gets what these processes log; nobody does by default.

    Returns:
        What was measured; with ``error`` set where the trial failed.
    """
    start_s = time.monotonic()
    deadline_s = start_s + order.measure.timeout_s
    watch = Watch(devices, load_nvml() if devices else None)
    try:
        with contextlib.ExitStack() as stack:
            children = [
                stack.enter_context(TrialProcess(order, number, devices[number] if devices else "", log))
                for number in range(order.actors)
            ]
            found = _measured(order, children, watch, deadline_s)
    except TrialFailed as error:
        return Measurement(error=str(error), seconds=time.monotonic() - start_s)
    return Measurement(**found, **watch.seen(), seconds=time.monotonic() - start_s)  # type: ignore[arg-type]


def _measured(
    order: Order, children: Sequence[TrialProcess], watch: Watch, deadline_s: float
) -> dict[str, Any]:
    """Fields of ``Measurement`` that the processes of a trial found out."""
    mode, folders = order.measure.mode, [child.folder for child in children]
    found: dict[str, Any] = {}
    if order.rows is None or mode != "throughput":
        found = _opened(_ask(children, "prepare", deadline_s))
    if mode != "throughput":
        with watch:
            _ask(children, "latency", deadline_s)
        _ask(children, "end_latency", deadline_s)
        found |= _latency(folders)
    if mode != "latency":
        if order.rows is not None:
            was_steady = found.get("is_steady", True)
            found |= _opened(_ask(children, "feed", deadline_s))
            found["is_steady"] &= was_steady
        with watch:
            _ask(children, "throughput", deadline_s)
        told = _ask(children, "end_throughput", deadline_s)
        found |= _throughput(folders)
        if order.rows is not None:
            found["bad_rows"] = sum(one["bad_rows"] for one in told)
    return found


def _opened(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "executed": told[0]["executed"],
        "not_taken": told[0]["not_taken"],
        "load_s": max(one["load_s"] for one in told),
        "warm_up_s": max(one["warm_up_s"] for one in told),
        "warm_up_runs": sum(one["warm_up_runs"] for one in told),
        "is_steady": all(one["is_steady"] for one in told),
    }


def _ask(children: Sequence[TrialProcess], what: str, deadline_s: float) -> list[dict[str, Any]]:
    """Has all children do something at once."""
    for child in children:
        child.send(what)
    return [child.receive(deadline_s) for child in children]


def _latency(folders: Sequence[Path]) -> dict[str, Any]:
    samples = np.concatenate([np.load(folder / "latency.npy") for folder in folders], axis=1)
    samples = samples[:, np.argsort(samples[0], kind="stable")]
    found: dict[str, Any] = {"latency_runs": samples.shape[1]}
    for name, seconds in (("host", samples[1]), ("engine", samples[2])):
        times_ms = 1000 * seconds
        found |= _named(f"{name}_p50", median_estimate(times_ms), "_ms")
        found[f"{name}_p90_ms"] = quantile_estimate(times_ms, 0.9).value
        found |= _named(f"{name}_p99", quantile_estimate(times_ms, 0.99), "_ms")
    return found


def _named(name: str, estimate: Estimate, unit: str) -> dict[str, float | None]:
    return {
        f"{name}{unit}": estimate.value,
        f"{name}_low{unit}": estimate.low,
        f"{name}_high{unit}": estimate.high,
    }


def _throughput(folders: Sequence[Path]) -> dict[str, Any]:
    streams: list[np.ndarray] = []
    for folder in folders:
        with np.load(folder / "throughput.npz") as arrays:
            streams += [arrays[name] for name in arrays.files]
    # Only while all of them ran: a stream alone on a device is faster.
    first_s, last_s = max(s[0, 0] for s in streams), min(s[0, -1] for s in streams)
    ends, rows = np.concatenate([s[:, (s[0] >= first_s) & (s[0] <= last_s)] for s in streams], axis=1)
    if len(ends) < 2:
        raise TrialFailed(f"the {len(streams)} contexts did not run at the same time: raise --seconds")
    estimate = rate_estimate(ends, rows, len(streams))
    return {**_named("rows_per_s", estimate, ""), "throughput_runs": len(ends)}


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
