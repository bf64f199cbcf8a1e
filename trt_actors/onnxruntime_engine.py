"""ONNX Runtime behind the engine contract, on the CPU or on a CUDA device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
import onnxruntime as ort

from ..datasets.signature import TensorSpec
from ..datasets.storage import one_line
from ..errors import BackendError, ModelError
from .trace import Tracer

__all__ = ["OnnxRuntimeEngine", "cuda_missing", "onnxruntime_version"]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_FATAL_ONLY = 4


def cuda_missing() -> str | None:
    """Why ONNX Runtime cannot use CUDA in this process, or None when it can."""
    if _PROVIDERS["cuda"] not in ort.get_available_providers():
        return "the installed onnxruntime has no CUDA provider (install onnxruntime-gpu)"
    return None


def onnxruntime_version() -> str:
    """The version of ONNX Runtime in this process."""
    return str(ort.__version__)


class _HostSlot:
    """Inputs in host memory, borrowed or own; outputs as the session returns them."""

    def __init__(self, capacity: Mapping[str, int]) -> None:
        self._capacity = capacity
        self._own: dict[str, np.ndarray] = {}
        self._dtypes: dict[str, np.dtype] = {}
        self.inputs: dict[str, np.ndarray] = {}
        self.outputs: dict[str, np.ndarray] = {}

    def declare(self, spec: TensorSpec) -> None:
        self._dtypes[spec.name] = spec.dtype

    def buffer(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        own = self._own.get(name)
        if own is None or own.shape[1:] != shape[1:] or len(own) < shape[0]:
            own = np.empty((max(shape[0], self._capacity.get(name, 0)), *shape[1:]), self._dtypes[name])
            self._own[name] = own
        self.inputs[name] = own[: shape[0]]
        return self.inputs[name]

    def bind(self, name: str, array: np.ndarray) -> None:
        if array.flags.c_contiguous and array.dtype == self._dtypes[name]:
            self.inputs[name] = array
        else:
            self.buffer(name, array.shape)[:] = array


class OnnxRuntimeEngine:
    """One ONNX Runtime session.

    Args:
        model: Serialized ModelProto.
        inputs: Its inputs; all with a free batch dimension, or all with the same fixed one.
        outputs: Which of its outputs to compute.
        device: Where to execute.
        threads: CPU threads of one operator.
        external_folder: Where weights lie that the model only refers to.
    """

    def __init__(
        self,
        model: bytes,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        device: Literal["cpu", "cuda"] = "cpu",
        threads: int = 1,
        external_folder: str | None = None,
    ) -> None:
        self._model: bytes | None = model
        self._device = device
        self._threads = threads
        self._external_folder = external_folder
        self._session: Any = None
        self._names = [spec.name for spec in outputs]
        self.backend = f"onnxruntime-{device}"
        self.inputs = inputs
        self.outputs = outputs
        self.max_batch_size = inputs[0].batch
        self.depth = 1
        self.full_rows: int | None = None
        self.device_s: float | None = None

    def open(self) -> Self:
        """Creates the session; see ``Engine.open``."""
        missing = cuda_missing() if self._device == "cuda" else None
        if missing:
            raise BackendError(f"{self.backend} is not available: {missing}", "choose --backend auto")
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL_ONLY
        # Spinning threads would steal the cores of readers, writers and other actors.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self._external_folder:
            folder_key = "session.model_external_initializers_file_folder_path"
            options.add_session_config_entry(folder_key, self._external_folder)
        providers = list(dict.fromkeys([_PROVIDERS[self._device], _PROVIDERS["cpu"]]))
        try:
            self._session = ort.InferenceSession(self._model, options, providers=providers)
        except Exception as error:
            raise ModelError(
                f"ONNX Runtime {ort.__version__} cannot load the model: {one_line(error)}",
                "does the model run in onnxruntime by itself?",
            ) from error
        self._model = None
        if self._device == "cuda" and _PROVIDERS["cuda"] not in self._session.get_providers():
            raise BackendError(
                f"{self.backend} is not available: the CUDA provider did not load",
                "check the driver and the CUDA and cuDNN libraries",
            )
        return self

    def slot(self) -> _HostSlot:
        """A slot in host memory, which borrows contiguous inputs instead of copying them."""
        slot = _HostSlot({spec.name: spec.batch or 0 for spec in self.inputs})
        for spec in self.inputs:
            slot.declare(spec)
        return slot

    def trace(self, tracer: Tracer) -> None:
        """Tells nothing: the engine thread itself executes."""

    def enqueue(self, slot: Any, rows: int) -> None:
        """Runs the batch at once; a fixed batch size is filled up with the last row and cut again."""
        feeds: dict[str, np.ndarray] = slot.inputs
        fixed = self.max_batch_size
        if fixed is not None and rows < fixed:
            feeds = {name: _padded(array[:rows], fixed) for name, array in feeds.items()}
        found = self._session.run(self._names, feeds)
        slot.outputs = {name: array[:rows] for name, array in zip(self._names, found, strict=True)}

    def wait(self, slot: Any) -> None:
        """Returns at once: ``enqueue`` ran the batch."""

    def close(self) -> None:
        """Drops the session."""
        self._session = None


def _padded(array: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])
