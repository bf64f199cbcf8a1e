"""The class of a device: what it is called, and that batch sizes are agreed upon class by class."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from trtfleet.trt_actors.device_name import CPU, device_of, slug_of
from trtfleet.trt_actors.runtime.libcuda import GpuInfo

H100 = GpuInfo(
    index=0,
    name="NVIDIA H100 80GB HBM3",
    compute_capability=(9, 0),
    memory_bytes=80 << 30,
    cuda="13.0",
    driver="580.1",
)


def engine(device_s: float | None) -> Any:
    return SimpleNamespace(device_s=device_s)


def test_a_gpu_is_told_with_its_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtfleet.trt_actors.device_name.gpus", lambda: [H100])
    assert device_of(engine(0.0)) == "NVIDIA H100 80GB HBM3 (9.0)"


def test_an_engine_on_the_cpu_is_one_whatever_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtfleet.trt_actors.device_name.gpus", lambda: [H100])
    assert device_of(engine(None)) == CPU


def test_a_class_makes_a_part_of_a_file_name() -> None:
    assert slug_of("NVIDIA H100 80GB HBM3 (9.0)") == "nvidia-h100-80gb-hbm3-9-0"
    assert slug_of("NVIDIA L4 (8.9)") != slug_of("NVIDIA L40 (8.9)")
