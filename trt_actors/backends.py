"""Which engine executes a job's network here, and why none of the better ones does."""

from __future__ import annotations

import os
from typing import Literal

from ..errors import BackendError, TrtfleetError, UsageError
from .engine import Engine
from .onnxruntime_engine import OnnxRuntimeEngine, cuda_missing
from .prepared import Prepared
from .task import TensorRTSettings

__all__ = ["BACKENDS", "check_backend", "open_backend", "open_engine", "wants_gpu", "why_not"]

BACKENDS = ("auto", "tensorrt", "onnxruntime-cuda", "onnxruntime-cpu")
"""What may be asked for; behind ``auto``, in order of preference."""

_NO_GPU = "this process was given no GPU"


def check_backend(name: str) -> None:
    """Refuses a backend that there is not.

    Raises:
        UsageError: The name is unknown.
    """
    if name not in BACKENDS:
        raise UsageError(f"backend {name!r} is unknown", f"choose one of {', '.join(BACKENDS)}")


def wants_gpu(name: str, gpus: float) -> bool:
    """Whether actors of a backend are given a GPU each, on a cluster with so many of them."""
    return name in ("tensorrt", "onnxruntime-cuda") or (name == "auto" and gpus >= 1)


def why_not(name: str, *, has_gpu: bool) -> str | None:
    """Why a backend cannot be used in this process, or None when nothing speaks against it.

    Args:
        name: The backend.
        has_gpu: Whether this process may use a GPU.
    """
    if name == "onnxruntime-cpu":
        return None
    if not has_gpu:
        return _NO_GPU
    if name == "onnxruntime-cuda":
        return cuda_missing()
    # Imported here: it brings the ONNX library along, which actors without TensorRT do not need.
    from .tensorrt_backend import tensorrt_missing

    return tensorrt_missing()


def open_backend(name: str, network: Prepared, *, settings: TensorRTSettings, threads: int) -> Engine:
    """Opens one backend's engine for a network.

    Raises:
        BackendError: The backend is not available here.
        ModelError: The network cannot be loaded or built.
        CacheError: The engine cache cannot be used.
    """
    if name == "tensorrt":
        from .tensorrt_backend import open_tensorrt

        return open_tensorrt(network, settings)
    return _onnxruntime(network, "cuda" if name == "onnxruntime-cuda" else "cpu", threads).open()


def open_engine(
    backend: str, network: Prepared, *, settings: TensorRTSettings, threads: int
) -> tuple[Engine, str]:
    """Opens the best engine for a network that is allowed on this device.

    ``auto`` passes over a backend that is not available or cannot take the network, and says why.

    Returns:
        The open engine, and why the better ones were not taken (empty when the best was).

    Raises:
        BackendError: The backend asked for is not available.
        ModelError: The network cannot be loaded.
        CacheError: TensorRT was asked for, and the engine cache cannot be used.
    """
    check_backend(backend)
    if backend != "auto":
        return open_backend(backend, network, settings=settings, threads=threads), ""
    has_gpu = bool(os.environ.get("CUDA_VISIBLE_DEVICES"))
    reasons: list[str] = []
    for name in BACKENDS[1:]:
        reason = why_not(name, has_gpu=has_gpu)
        if reason is None:
            try:
                engine = open_backend(name, network, settings=settings, threads=threads)
            except TrtfleetError as error:
                if name == BACKENDS[-1]:
                    raise
                reason = error.fact
            else:
                return engine, "; ".join(reasons)
        reasons.append(f"{name}: {reason}")
    raise BackendError("no backend is available", "; ".join(reasons))


def _onnxruntime(network: Prepared, device: Literal["cpu", "cuda"], threads: int) -> Engine:
    if device == "cuda" and network.external_folder is None:
        # Imported here: it brings the ONNX library along, which actors on CPUs do not need.
        from .cuda_backend import whole_on_cuda

        engine = whole_on_cuda(network, threads)
        if engine is not None:
            return engine
    return OnnxRuntimeEngine(
        network.model_bytes,
        inputs=network.inputs,
        outputs=network.outputs,
        device=device,
        threads=threads,
        external_folder=network.external_folder,
    )
