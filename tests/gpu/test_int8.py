"""From calibration to INT8 answers on a real GPU through ONNX Runtime; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import trtfleet

pytestmark = [
    pytest.mark.ray,
    pytest.mark.gpu("onnxruntime", "pycuda"),
    pytest.mark.usefixtures("ray_gpu"),
]


def test_calibrated_and_scored_on_cuda_int8_agrees_with_the_cpu(
    digits: tuple[Path, Path], tmp_path: Path
) -> None:
    model, data = digits
    table = tmp_path / "table.json"
    summary = trtfleet.calibrate(model, data, table, normalize="0:16", backend="onnxruntime-cuda", actors=1)
    assert summary.backend == "onnxruntime-cuda"
    options = {"normalize": "0:16", "keep": "id", "emit": "argmax", "precision": "int8", "actors": 1}
    on_gpu = trtfleet.score(model, data, tmp_path / "gpu", backend="onnxruntime-cuda", **options)
    trtfleet.score(model, data, tmp_path / "cpu", backend="onnxruntime-cpu", table=table, **options)
    assert summary.stored in on_gpu.calibration
    gpu, cpu = (pq.read_table(tmp_path / name) for name in ("gpu", "cpu"))
    (name,) = [name for name in gpu.column_names if name != "id"]
    pairs = zip(gpu[name].to_pylist(), cpu[name].to_pylist(), strict=True)
    assert sum(a == b for a, b in pairs) >= 0.99 * len(gpu)


def test_a_table_does_not_depend_on_the_run(digits: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = digits
    for name in ("one.json", "two.json"):
        trtfleet.calibrate(
            model, data, tmp_path / name, normalize="0:16", backend="onnxruntime-cuda", actors=1
        )
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_networks_are_compared_on_cuda(digits: tuple[Path, Path]) -> None:
    model, data = digits
    trtfleet.calibrate(model, data, normalize="0:16", backend="onnxruntime-cuda", actors=1)
    found = trtfleet.compare(
        model,
        model,
        data,
        normalize="0:16",
        precision_b="int8",
        per_layer=True,
        backend="onnxruntime-cuda",
        actors=1,
    )
    assert found.outcome.backend == "onnxruntime-cuda"
