"""What a dry run and ``trtfleet cluster`` say of a real GPU; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import trtfleet
from trtfleet.jobs.cluster_survey import survey
from trtfleet.trt_actors.cache.warmth import gpu_class
from trtfleet.trt_actors.runtime.libcuda import gpus

pytestmark = [
    pytest.mark.ray,
    pytest.mark.gpu("onnxruntime", "pycuda"),
    pytest.mark.usefixtures("ray_gpu"),
]


def test_the_run_is_as_it_was_told(digits: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = digits
    options = {"normalize": "0:16", "backend": "onnxruntime-cuda", "actors": 1}
    told = trtfleet.score(model, data, tmp_path / "one", dry_run=True, **options)
    (machine,) = told.machines
    assert (machine.device, machine.backend) == (gpu_class(gpus()[0]), "onnxruntime-cuda")
    assert (told.actors.gpus, told.batch_size) == (1.0, None)
    assert told.memory.device_bytes > 0
    assert not (tmp_path / "one").exists()
    assert not (tmp_path / "engines").exists()
    summary = trtfleet.score(model, data, tmp_path / "one", **options)
    assert summary.backend == "onnxruntime-cuda"
    told = trtfleet.score(model, data, tmp_path / "two", dry_run=True, **options)
    assert told.batch == f"auto: {told.batch_size:,} (remembered)"
    assert told.batch_size == summary.batch_size


def test_the_cluster_shows_the_gpu_and_what_is_remembered_for_it(
    digits: tuple[Path, Path], tmp_path: Path
) -> None:
    model, data = digits
    # Named, for the nodes' own default is that of the process which started Ray.
    cache = str(tmp_path / "engines")
    options = {"normalize": "0:16", "backend": "onnxruntime-cuda", "actors": 1, "cache": cache}
    trtfleet.score(model, data, tmp_path / "out", **options)
    found = survey(cache=cache)
    (view,) = found.nodes
    assert view.failure == ""
    assert [gpu_class(gpu) for gpu in view.gpus] == [gpu_class(gpu) for gpu in gpus()]
    (kind,) = found.classes
    assert (kind.gpus, kind.warmth.batch_sizes) == (len(gpus()), 1)
    assert kind.drivers == (gpus()[0].driver,)
    assert found.lines()
