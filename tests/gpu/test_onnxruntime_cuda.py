"""ONNX Runtime on a real GPU; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import trtfleet

pytestmark = [
    pytest.mark.ray,
    pytest.mark.gpu("onnxruntime"),
    pytest.mark.usefixtures("ray_gpu"),
]


def test_auto_takes_cuda_and_agrees_with_the_cpu(digits: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = digits
    options = {"normalize": "0:16", "keep": "id", "batch_size": 128, "shard_bytes": 20_000}
    on_gpu = trtfleet.score(model, data, tmp_path / "gpu", actors=1, **options)
    trtfleet.score(model, data, tmp_path / "cpu", actors=1, backend="onnxruntime-cpu", **options)
    assert on_gpu.backend == "onnxruntime-cuda"
    assert "tensorrt" in on_gpu.not_taken
    gpu, cpu = pq.read_table(tmp_path / "gpu"), pq.read_table(tmp_path / "cpu")
    assert gpu["id"].equals(cpu["id"])
    differences = [
        abs(a - b)
        for left, right in zip(gpu["logits"].to_pylist(), cpu["logits"].to_pylist(), strict=True)
        for a, b in zip(left, right, strict=True)
    ]
    assert max(differences) < 0.05
