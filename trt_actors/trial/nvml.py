"""Clocks, temperature, power and throttling of GPUs while a trial is measured, by NVML where it is there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

__all__ = ["Watch", "load_nvml"]

_EVERY_S = 0.1
_REASONS = {
    "SwPowerCap": "power limit",
    "HwSlowdown": "hardware slowdown",
    "HwThermalSlowdown": "heat (hardware)",
    "SwThermalSlowdown": "heat (software)",
    "HwPowerBrakeSlowdown": "power brake",
    "ApplicationsClocksSetting": "application clocks",
    "SyncBoost": "sync boost",
}


def load_nvml() -> Any | None:
    """NVML's bindings, ready for use, or None where they or the driver are missing."""
    try:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

        pynvml.nvmlInit()
    except Exception:
        return None
    return pynvml


class Watch:
    """Samples GPUs ten times a second; a context manager around what is measured.

    What a GPU or driver does not tell is left out, and NVML's errors never end a trial.

    Args:
        devices: As in ``CUDA_VISIBLE_DEVICES``: numbers or UUIDs.
        nvml: The bindings, or None for a watch that sees nothing.
    """

    def __init__(self, devices: Sequence[str], nvml: Any | None) -> None:
        self._nvml = nvml
        self._handles = [] if nvml is None else [h for h in map(self._handle, devices) if h is not None]
        self._samples: dict[str, list[float]] = {}
        self._reasons: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)

    def __enter__(self) -> Self:
        if self._handles:
            self._over.clear()
            self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def seen(self) -> dict[str, float | str]:
        """What was seen, as fields of ``Measurement``; empty when nothing was."""
        found: dict[str, float | str] = {}
        for name, how in (
            ("gpu_clock_mhz", np.median),
            ("memory_clock_mhz", np.median),
            ("temperature_c", np.max),
            ("power_w", np.mean),
        ):
            if name in self._samples:
                found[name] = float(how(self._samples[name]))
        if found:
            found["throttled"] = ", ".join(sorted(self._reasons))
        return found

    def _handle(self, device: str) -> Any | None:
        assert self._nvml is not None
        try:
            if device.isdigit():
                return self._nvml.nvmlDeviceGetHandleByIndex(int(device))
            return self._nvml.nvmlDeviceGetHandleByUUID(device)
        except Exception:
            return None

    def _run(self) -> None:
        while True:
            for handle in self._handles:
                self._sample(handle)
            if self._over.wait(_EVERY_S):
                return

    def _sample(self, handle: Any) -> None:
        nvml = self._nvml
        assert nvml is not None
        questions: dict[str, Callable[[], float]] = {
            "gpu_clock_mhz": lambda: float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            "memory_clock_mhz": lambda: float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            "temperature_c": lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        }
        for name, ask in questions.items():
            try:
                sample = ask()
            except Exception:
                continue
            self._samples.setdefault(name, []).append(sample)
        try:
            bits = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        except Exception:
            return
        for constant, words in _REASONS.items():
            if bits & getattr(nvml, f"nvmlClocksThrottleReason{constant}", 0):
                self._reasons.add(words)
