"""``--image-decoder``: what it refuses, and that it is part of what a job is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from trtfleet.errors import BackendError, UsageError
from trtfleet.jobs.plan import feed_identity, make_plan
from trtfleet.jobs.spec import ScoreSpec
from trtfleet.trt_actors.scorer import Scorer


def test_an_unknown_decoder_is_refused() -> None:
    with pytest.raises(UsageError, match="image_decoder must be one of auto, cpu, gpu, got 'gpus'"):
        ScoreSpec.of({"model": "m.onnx", "data": "d", "out": "o", "image_decoder": "gpus"})


def test_a_gpu_is_insisted_on(
    planned: Callable[..., object], linear_model: Callable[..., Path], vectors: Callable[..., Path]
) -> None:
    job = planned(linear_model(), vectors(), image_decoder="gpu")
    with pytest.raises(BackendError, match="images cannot be decoded on a GPU here"):
        Scorer(job.task)  # type: ignore[attr-defined]


def test_it_decides_the_output_but_not_the_calibration(
    tmp_path: Path, linear_model: Callable[..., Path], vectors: Callable[..., Path]
) -> None:
    specs = [
        ScoreSpec.of(
            {
                "model": str(linear_model()),
                "data": str(vectors()),
                "out": str(tmp_path / "o"),
                "image_decoder": decoder,
            }
        )
        for decoder in ("auto", "cpu")
    ]
    fingerprints = [dict(make_plan(spec).fingerprint) for spec in specs]
    assert fingerprints[0] != fingerprints[1]
    assert feed_identity(specs[0]) == feed_identity(specs[1])
