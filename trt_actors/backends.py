"""Which engine executes a job's network here, and why none of the better ones does."""

from __future__ import annotations

import os
from typing import Literal

from ..errors import BackendError, UsageError
from .engine import Engine
from .onnxruntime_engine import OnnxRuntimeEngine, cuda_missing
from .task import ScoreTask

__all__ = ["BACKENDS", "check_backend", "open_engine", "wants_gpu"]

BACKENDS = ("auto", "tensorrt", "onnxruntime-cuda", "onnxruntime-cpu")
"""What may be asked for; behind ``auto``, in order of preference."""

_NO_TENSORRT = "this version of trtfleet has no TensorRT engine"


def check_backend(name: str) -> None:
    """Refuses a backend that no node can have.

    Raises:
        UsageError: The name is unknown.
        BackendError: This version cannot run it.
    """
    if name not in BACKENDS:
        raise UsageError(f"backend {name!r} is unknown", f"choose one of {', '.join(BACKENDS)}")
    if name == "tensorrt":
        raise BackendError(f"backend tensorrt is not available: {_NO_TENSORRT}", "choose --backend auto")


def wants_gpu(name: str, gpus: float) -> bool:
    """Whether actors of a backend are given a GPU each, on a cluster with so many of them."""
    return name in ("tensorrt", "onnxruntime-cuda") or (name == "auto" and gpus >= 1)


def open_engine(task: ScoreTask) -> tuple[Engine, str]:
    """Opens the best engine that the task allows on this device.

    Returns:
        The open engine, and why the better ones were not taken (empty when the best was).

    Raises:
        BackendError: The backend asked for is not available.
        ModelError: The network cannot be loaded.
    """
    check_backend(task.backend)
    if task.backend == "onnxruntime-cuda":
        return _onnxruntime(task, "cuda").open(), ""
    if task.backend == "onnxruntime-cpu":
        return _onnxruntime(task, "cpu").open(), ""
    reasons = [f"tensorrt: {_NO_TENSORRT}"]
    if not os.environ.get("CUDA_VISIBLE_DEVICES"):
        reasons.append("onnxruntime-cuda: this actor was given no GPU")
    elif missing := cuda_missing():
        reasons.append(f"onnxruntime-cuda: {missing}")
    else:
        try:
            return _onnxruntime(task, "cuda").open(), "; ".join(reasons)
        except BackendError as error:
            reasons.append(f"onnxruntime-cuda: {error.fact}")
    return _onnxruntime(task, "cpu").open(), "; ".join(reasons)


def _onnxruntime(task: ScoreTask, device: Literal["cpu", "cuda"]) -> OnnxRuntimeEngine:
    network = task.network
    return OnnxRuntimeEngine(
        network.model_bytes,
        inputs=network.inputs,
        outputs=network.outputs,
        device=device,
        threads=task.threads,
        external_folder=network.external_folder,
    )
