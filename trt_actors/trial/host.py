"""Runs trials on the devices of this process: each in processes of its own, so that none harms the next."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import platform
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..runtime.libcuda import driver_missing, gpus
from .nvml import Watch, load_nvml
from .statistics import Estimate, median_estimate, quantile_estimate, rate_estimate
from .task import HostInfo, Measurement, Order

__all__ = ["TrialHost", "run_trial"]

_CHILD = "trtfleet.trt_actors.trial.child"
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class TrialFailed(Exception):  # noqa: N818
    """A trial came to nothing, for the reason given."""


class TrialHost:
    """Runs one trial after the other on the devices that this process was given."""

    def __init__(self) -> None:
        self._devices = [name for name in os.environ.get(_VISIBLE, "").split(",") if name]
        visible = [] if not self._devices or driver_missing() else gpus()
        self.info = HostInfo(
            node=socket.gethostname(),
            device=visible[0].name if visible else _cpu_name(),
            gpus=len(visible),
        )

    def run(self, order: Order) -> Measurement:
        """Runs a trial; whatever its network does comes back as a measurement."""
        found = run_trial(order, self._devices)
        return replace(found, node=self.info.node, device_name=self.info.device)


def run_trial(order: Order, devices: Sequence[str]) -> Measurement:
    """Runs a trial in processes of its own.

    Args:
        order: The trial.
        devices: GPUs, as in ``CUDA_VISIBLE_DEVICES``, one for each actor; none for trials on the CPU.

    Returns:
        What was measured; with ``error`` set where the trial failed.
    """
    start_s = time.monotonic()
    deadline_s = start_s + order.measure.timeout_s
    watch = Watch(devices, load_nvml() if devices else None)
    try:
        with contextlib.ExitStack() as stack:
            children = [
                stack.enter_context(_Child(order, number, devices[number] if devices else ""))
                for number in range(order.actors)
            ]
            found = _measured(order, children, watch, deadline_s)
    except TrialFailed as error:
        return Measurement(error=str(error), seconds=time.monotonic() - start_s)
    return Measurement(**found, **watch.seen(), seconds=time.monotonic() - start_s)  # type: ignore[arg-type]


def _measured(order: Order, children: Sequence[_Child], watch: Watch, deadline_s: float) -> dict[str, Any]:
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


def _ask(children: Sequence[_Child], what: str, deadline_s: float) -> list[dict[str, Any]]:
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


class _Child:
    """One process of a trial; a context manager that ends it."""

    def __init__(self, order: Order, number: int, device: str) -> None:
        self._order = order
        self._number = number
        self._device = device
        self._temporary = tempfile.TemporaryDirectory(prefix="trtfleet-trial-")
        self.folder = Path(self._temporary.name)

    def __enter__(self) -> Self:
        (self.folder / "order.pickle").write_bytes(pickle.dumps(self._order))
        self._errors = (self.folder / "stderr").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", _CHILD, str(self.folder), str(self._number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, _VISIBLE: self._device},
        )
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._temporary.cleanup()

    def send(self, what: str) -> None:
        """Tells it what to do; a process that is gone is noticed by ``receive``."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(f"{what}\n".encode())
            self._process.stdin.flush()

    def receive(self, deadline_s: float) -> dict[str, Any]:
        """Its answer.

        Raises:
            TrialFailed: The trial failed there, the process is gone, or the time is over.
        """
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], max(0.0, deadline_s - time.monotonic()))
        if not ready:
            raise TrialFailed(f"it took more than {self._order.measure.timeout_s:g} s")
        line = stdout.readline()
        if not line.endswith(b"\n"):
            raise TrialFailed(self._end())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise TrialFailed(answer["error"])
        return answer

    def _end(self) -> str:
        code = self._process.wait()
        said = (self.folder / "stderr").read_bytes().decode(errors="replace").strip().splitlines()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        last = " ".join(said[-1].split())[:300] if said else ""
        return f"its process ended with {how}" + (f": {last}" if last else "")


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
