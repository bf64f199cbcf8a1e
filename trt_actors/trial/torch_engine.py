"""PyTorch in eager mode behind the engine contract: what trials of other backends are compared with.

It runs a module that the user makes, not one that is converted from the ONNX file, since what matters is how
fast the network is as it would run in PyTorch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from ...datasets.signature import TensorSpec
from ...datasets.storage import one_line
from ...errors import BackendError, HookError
from ..hooks import load_hook
from ..trace import Tracer
from .task import TorchModule

__all__ = ["TorchEngine"]

_ON_DEVICE = 2
"""Batches at once on a GPU: the next one's kernels are launched while one runs."""


class TorchEngine:
    """One module of the user's, on the GPU that this process was given, else on the CPU.

    Args:
        module: What runs, called with the inputs in the order of the ONNX model.
        inputs: These; floating ones are converted to half precision on the device where ``module`` says so.
        threads: CPU threads of one operator.
    """

    def __init__(self, module: TorchModule, *, inputs: tuple[TensorSpec, ...], threads: int) -> None:
        self._made_by = module
        self._threads = threads
        self._torch: Any = None
        self._module: Any = None
        self._stream: Any = None
        self._is_half = module.precision == "fp16"
        self._is_cuda = bool(os.environ.get("CUDA_VISIBLE_DEVICES"))
        self.backend = "torch-cuda" if self._is_cuda else "torch-cpu"
        self.inputs = inputs
        # A module's results have no names; trials only take them.
        self.outputs: tuple[TensorSpec, ...] = ()
        self.max_batch_size = inputs[0].batch
        self.depth = _ON_DEVICE if self._is_cuda else 1
        self.full_rows: int | None = None
        self.device_s: float | None = 0.0 if self._is_cuda else None

    def open(self) -> Self:
        """Makes the module; see ``Engine.open``.

        Raises:
            HookError: The user's function cannot be imported, raises, or returns something else.
            BackendError: PyTorch is not installed here, or sees no GPU where this process was given one.
        """
        self._torch = torch = _import_torch()
        if self._is_cuda and not torch.cuda.is_available():
            raise BackendError(
                f"torch is not available: PyTorch {torch.__version__} sees no GPU here",
                "install a build of it for CUDA on the GPU nodes",
            )
        name = self._made_by.factory
        factory = load_hook(name, self._made_by.folder)
        try:
            module = factory()
        except Exception as error:
            raise HookError(f"{name} raised {type(error).__name__}: {one_line(error)}") from error
        if not isinstance(module, torch.nn.Module):
            raise HookError(f"{name} returned {type(module).__name__}, no module", "return a torch.nn.Module")
        if not self._is_cuda:
            torch.set_num_threads(self._threads)
        self._stream = torch.cuda.Stream() if self._is_cuda else None
        with self._running():
            module = module.eval().to("cuda" if self._is_cuda else "cpu")
            self._module = module.half() if self._is_half else module
        return self

    def slot(self) -> _Slot:
        """A slot in host memory, pinned where there is a GPU."""
        return _Slot(self._torch, {spec.name: spec.dtype for spec in self.inputs}, is_pinned=self._is_cuda)

    def trace(self, tracer: Tracer) -> None:
        """Tells nothing."""

    def enqueue(self, slot: Any, rows: int) -> None:
        """Runs the batch on the CPU, or starts it on the GPU."""
        with self._running():
            tensors = [slot.tensors[spec.name][:rows] for spec in self.inputs]
            if self._is_cuda:
                tensors = [tensor.to("cuda", non_blocking=True) for tensor in tensors]
            if self._is_half:
                tensors = [t.half() if t.is_floating_point() else t for t in tensors]
            slot.start(self._stream)
            results = list(_flat(self._module(*tensors)))
            slot.finish(results, self._stream)

    def wait(self, slot: Any) -> None:
        """Returns when the slot's outputs are valid."""
        if self.device_s is not None:
            self.device_s += slot.wait()

    def close(self) -> None:
        """Drops the module."""
        self._module = None

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Inference without gradients, on this engine's own stream where there is a GPU."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._torch.inference_mode())
            if self._stream is not None:
                stack.enter_context(self._torch.cuda.stream(self._stream))
            yield


class _Slot:
    """Tensors in host memory that numpy fills and reads, and the device's clock around a batch."""

    def __init__(self, torch: Any, dtypes: Mapping[str, np.dtype], *, is_pinned: bool) -> None:
        self._torch = torch
        self._dtypes = dtypes
        self._is_pinned = is_pinned
        self._results: list[Any] = []
        self._kept: list[Any] = []
        self._clock = [torch.cuda.Event(enable_timing=True) for _ in range(3)] if is_pinned else []
        self.tensors: dict[str, Any] = {}

    def buffer(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor = self.tensors.get(name)
        if tensor is None or tuple(tensor.shape) != shape:
            tensor = self._torch.from_numpy(np.empty(shape, self._dtypes[name]))
            self.tensors[name] = tensor = tensor.pin_memory() if self._is_pinned else tensor
        return np.asarray(tensor.numpy())

    def bind(self, name: str, array: np.ndarray) -> None:
        self.buffer(name, array.shape)[...] = array

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        return {str(place): tensor.numpy() for place, tensor in enumerate(self._results)}

    def start(self, stream: Any) -> None:
        if self._clock:
            self._clock[0].record(stream)

    def finish(self, results: Sequence[Any], stream: Any) -> None:
        if not self._clock:
            self._results = list(results)
            return
        self._clock[1].record(stream)
        if [(r.shape, r.dtype) for r in results] != [(r.shape, r.dtype) for r in self._results]:
            self._results = [self._torch.empty(r.shape, dtype=r.dtype, pin_memory=True) for r in results]
        for ours, theirs in zip(self._results, results, strict=True):
            ours.copy_(theirs, non_blocking=True)
        self._clock[2].record(stream)

    def wait(self) -> float:
        """Seconds of execution, once results are in host memory."""
        self._clock[2].synchronize()
        return float(self._clock[0].elapsed_time(self._clock[1])) / 1000


def _import_torch() -> Any:
    try:
        import torch  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise BackendError(
            f"torch is not available: {one_line(error)}", "install torch on the nodes"
        ) from error
    return torch


def _flat(result: Any) -> Iterator[Any]:
    """The tensors in what a module returned: one, or tuples, lists and dicts of them."""
    if isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, list | tuple):
        for one in result:
            yield from _flat(one)
    elif hasattr(result, "detach"):
        yield result
