"""ONNX Runtime on CUDA with pinned slots and overlapping copies: a network as one native segment."""

from __future__ import annotations

from .prepared import Prepared
from .runtime.cuda import CudaDevice, cuda_missing
from .runtime.device import Device
from .runtime.program import NetworkProgram, SegmentProgram
from .runtime.segmented import SegmentedEngine

__all__ = ["whole_on_cuda"]


def whole_on_cuda(network: Prepared, threads: int, device: Device | None = None) -> SegmentedEngine | None:
    """An engine for a network on a GPU, not open; None where PyCUDA cannot be used, which it copies with.

    Args:
        network: What to run.
        threads: CPU threads of operators that have no kernel on the device.
        device: Where it runs, not open; GPU 0 by default.
    """
    if device is None and cuda_missing() is not None:
        return None
    whole = SegmentProgram(
        kind="native",
        inputs=tuple(spec.name for spec in network.inputs),
        outputs=tuple(spec.name for spec in network.outputs),
        onnx=network.model_bytes,
    )
    return SegmentedEngine(
        NetworkProgram(segments=(whole,)),
        inputs=network.inputs,
        outputs=network.outputs,
        device=device or CudaDevice(),
        threads=threads,
    )
