"""Watching GPUs: without the library, and with one that answers as NVML does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from trtfleet.trt_actors.trial.nvml import Watch


def bindings(**changes: Any) -> SimpleNamespace:
    """Functions and constants under the names of nvidia-ml-py."""

    def refuse(*_: object) -> Any:
        raise RuntimeError("Not Supported")

    api = {
        "NVML_CLOCK_SM": 1,
        "NVML_CLOCK_MEM": 2,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlClocksThrottleReasonSwPowerCap": 4,
        "nvmlClocksThrottleReasonSwThermalSlowdown": 0x20,
        "nvmlDeviceGetHandleByIndex": lambda index: f"GPU {index}",
        "nvmlDeviceGetHandleByUUID": refuse,
        "nvmlDeviceGetClockInfo": lambda handle, kind: {1: 1980, 2: 2619}[kind],
        "nvmlDeviceGetTemperature": lambda handle, sensor: 61 if handle == "GPU 0" else 66,
        "nvmlDeviceGetPowerUsage": lambda handle: 400_000,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: 0x24,
    }
    return SimpleNamespace(**{**api, **changes})


def seen(nvml: Any, *devices: str) -> dict[str, float | str]:
    watch = Watch(devices, nvml)
    with watch:
        pass
    with watch:
        pass
    return watch.seen()


def test_clocks_heat_power_and_throttling_are_seen_over_all_devices() -> None:
    assert seen(bindings(), "0", "1") == {
        "gpu_clock_mhz": 1980.0,
        "memory_clock_mhz": 2619.0,
        "temperature_c": 66.0,
        "power_w": 400.0,
        "throttled": "heat (software), power limit",
    }


def test_what_a_gpu_does_not_tell_is_left_out() -> None:
    def refuse(*_: object) -> Any:
        raise RuntimeError("Not Supported")

    found = seen(
        bindings(nvmlDeviceGetPowerUsage=refuse, nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: 0), "0"
    )
    assert "power_w" not in found
    assert found["throttled"] == ""


def test_without_the_library_or_the_device_nothing_is_seen() -> None:
    assert seen(None, "0") == {}
    assert seen(bindings(), "GPU-1234") == {}
