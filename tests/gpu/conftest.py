"""What all tests on a real GPU share: the reason why they do not run where there is none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from trtfleet.trt_actors import onnxruntime_engine
from trtfleet.trt_actors.runtime import cuda
from trtfleet.trt_actors.runtime.libcuda import driver_missing
from trtfleet.trt_actors.tensorrt_backend import tensorrt_missing

_MISSING: dict[str, Callable[[], str | None]] = {
    "pycuda": cuda.cuda_missing,
    "onnxruntime": onnxruntime_engine.cuda_missing,
    "tensorrt": tensorrt_missing,
}


@functools.cache
def why_not(*libraries: str) -> str | None:
    """Why tests that need a GPU and some libraries do not run here, or None when they do."""
    reasons = (check() for check in (driver_missing, *(_MISSING[name] for name in libraries)))
    return next((reason for reason in reasons if reason is not None), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests of this folder, also those that name no libraries."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.gpu)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test before any of its fixtures is made."""
    libraries = {name for mark in item.iter_markers("gpu") for name in mark.args}
    reason = why_not(*sorted(libraries))
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what tests measure and build out of the user's engine cache."""
    monkeypatch.setenv("TRTFLEET_CACHE", str(tmp_path / "engines"))


@pytest.fixture
def ray_gpu(ray_session: None) -> None:
    """A running Ray that has a GPU to give."""
    import ray

    if not ray.cluster_resources().get("GPU"):
        pytest.skip("Ray sees no GPU on this machine")
