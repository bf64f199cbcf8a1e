"""Sweeps on a real GPU through ONNX Runtime, in real processes; skipped where there is none."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import trtfleet
from trtfleet.jobs.sweep.job import SweepSummary
from trtfleet.trt_actors.trial.nvml import load_nvml

pytestmark = [
    pytest.mark.ray,
    pytest.mark.gpu("onnxruntime", "pycuda"),
    pytest.mark.usefixtures("ray_gpu"),
]

QUICK = {"repeats": 1, "runs": 20, "seconds": 0.3, "warm_up_s": 3.0, "backends": "onnxruntime-cuda"}
FLAGS = [
    "--repeats",
    "1",
    "--runs",
    "20",
    "--seconds",
    "0.3",
    "--warm-up",
    "3",
    "--backends",
    "onnxruntime-cuda",
]
NET = """
import torch

def make():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 64), torch.nn.ReLU())
"""


def sweep(model: Path, out: Path, **options: Any) -> SweepSummary:
    return trtfleet.sweep(model, out, **{**QUICK, **options})


def test_precisions_and_contexts_are_measured_on_cuda(digits: tuple[Path, Path], tmp_path: Path) -> None:
    model, _ = digits
    summary = sweep(model, tmp_path / "out", batch_sizes="1,64", precisions="fp32,fp16", contexts="1,2")
    assert summary.failed == []
    assert len(summary.rows) == 8
    for row in summary.rows:
        found = row.found
        assert found.executed == "onnxruntime-cuda"
        assert None not in (found.engine_p50_ms, found.host_p50_ms, found.rows_per_s)
        # By the device's own clock, without the copies.
        assert 0 < (found.engine_p50_ms or 0) < (found.host_p50_ms or 0)
    table = pq.read_table(tmp_path / "out" / "results.parquet")
    assert any(table["is_pareto"].to_pylist())
    assert (tmp_path / "out" / "report.html").stat().st_size > 10000


def test_clocks_heat_and_power_are_recorded(digits: tuple[Path, Path], tmp_path: Path) -> None:
    if load_nvml() is None:
        pytest.skip("nvidia-ml-py is not installed here")
    (row,) = sweep(digits[0], tmp_path / "out", batch_sizes="64").rows
    found = row.found
    assert found.error is None
    for reading in (found.gpu_clock_mhz, found.memory_clock_mhz, found.temperature_c, found.power_w):
        assert reading is not None
        assert reading > 0
    assert found.throttled is not None


def test_a_dataset_is_scored_on_cuda(digits: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = digits
    summary = sweep(
        model,
        tmp_path / "out",
        data=data,
        normalize="0:16",
        emit="argmax",
        batch_sizes="64",
        precisions="fp32,fp16",
        contexts="1,2",
    )
    assert summary.failed == []
    assert all((row.found.rows_per_s or 0) > 0 and row.found.bad_rows == 0 for row in summary.rows)


def test_a_killed_sweep_goes_on_where_it_was_on_cuda(digits: tuple[Path, Path], tmp_path: Path) -> None:
    import ray

    model, out, sizes = digits[0], tmp_path / "out", "1,2,4,8,16,32"
    address = ray.get_runtime_context().gcs_address
    arguments = ["sweep", str(model), "-o", str(out), "--batch-sizes", sizes, "--address", address, *FLAGS]
    killed = subprocess.Popen(
        [sys.executable, "-c", "from trtfleet.jobs.cli import main; main()", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    committed = "_trtfleet/g0001/commits/*.json"
    try:
        deadline_s = time.monotonic() + 120
        while not list(out.glob(committed)):
            assert killed.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    kept = {path.name: path.read_bytes() for path in out.glob(committed)}
    summary = sweep(model, out, batch_sizes=sizes)
    assert summary.before == len(kept)
    assert summary.failed == []
    assert [row.trial.batch_size for row in summary.rows] == [1, 2, 4, 8, 16, 32]
    assert kept.items() <= {path.name: path.read_bytes() for path in out.glob(committed)}.items()


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed here")
def test_pytorch_is_a_baseline_on_cuda(
    digits: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets_for_sweep.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    summary = sweep(
        digits[0],
        tmp_path / "out",
        batch_sizes="64",
        precisions="fp32,fp16",
        torch="nets_for_sweep:make",
        baseline="torch",
    )
    assert summary.failed == []
    assert {row.found.executed for row in summary.rows} == {"onnxruntime-cuda", "torch-cuda"}
    assert any("(x" in line for line in summary.lines())
