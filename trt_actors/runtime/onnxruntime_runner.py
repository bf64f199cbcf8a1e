"""Segments that ONNX Runtime executes: on host arrays, or on device memory in stream order."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import helper

from ...datasets.storage import one_line
from ...errors import BackendError, ModelError
from .device import Device, Stream
from .memory import Pool
from .native_graphs import NativeGraphs, check_recording
from .session_tensors import KnownOutput, known_outputs, numpy_dtype
from .values import DeviceArray, Place, Value

__all__ = ["HostRunner", "NativeRunner"]

_FATAL_ONLY = 4
_MOST_BINDINGS = 64
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

_Key = tuple[tuple[str, int, tuple[int, ...]], ...]


def _session(model: bytes, providers: Sequence[Any], threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    # Spinning threads would steal the cores of readers, writers and other actors.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model, options, providers=list(providers))
    except Exception as error:
        raise ModelError(
            f"ONNX Runtime {ort.__version__} cannot load a segment: {one_line(error)}",
            "does the model run in onnxruntime by itself?",
        ) from error


def _prefer_nhwc(model: bytes) -> str:
    """Convolutions on tensor cores want channels last: ResNet-50 in FP16 runs 1.4 times faster.

    ONNX Runtime 1.31 turns the axes of a network with quantizers wrongly: it crashes or refuses to run.
    """
    return "0" if b"QuantizeLinear" in model or b"DequantizeLinear" in model else "1"


class HostRunner:
    """Runs a segment on the CPU, from host arrays to host arrays.

    Args:
        model: Serialized ModelProto.
        outputs: What to compute.
        threads: CPU threads of one operator.
    """

    def __init__(self, model: bytes, *, outputs: Sequence[str], threads: int = 1) -> None:
        self._session: Any = _session(model, [_CPU], threads)
        self._outputs = tuple(outputs)

    def run(self, values: Mapping[str, Value], place: Place | None = None) -> dict[str, Value]:
        """Runs at once; what ONNX Runtime raises passes through, as it may be one row's fault."""
        found = self._session.run(list(self._outputs), dict(values))
        return dict(zip(self._outputs, map(np.asarray, found), strict=True))

    def close(self) -> None:
        """Drops the session."""
        self._session = None


class _Held:
    """Keeps a value of ONNX Runtime, whose memory goes back to the session's own pool in stream order.

    Args:
        value: The value.
        stream: What to wait for before, when the session does not run on it.
    """

    def __init__(self, value: Any, stream: Stream | None) -> None:
        self._value = value
        self._stream = stream

    def release(self) -> None:
        if self._value is not None and self._stream is not None:
            self._stream.synchronize()
        self._value = None


class NativeRunner:
    """Runs a segment on device memory, on our stream; outputs stay on the device.

    Args:
        model: Serialized ModelProto.
        outputs: What to compute.
        device: Open; its context is current in every call.
        stream: What the work is added to.
        pool: Where to take an address for empty arrays from.
        threads: CPU threads of one operator that has no kernel on the device.
        use_graphs: Whether batches whose addresses come again may become CUDA graphs, as where the segment is
            the whole network. Outputs whose shape only an execution finds out rule that out.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
        BackendError: It cannot use the device.

    Attributes:
        recorded: Its CUDA graphs; None where there will be none.
    """

    def __init__(
        self,
        model: bytes,
        *,
        outputs: Sequence[str],
        device: Device,
        stream: Stream,
        pool: Pool,
        threads: int = 1,
        use_graphs: bool = False,
    ) -> None:
        self._outputs = tuple(outputs)
        self._stream = stream
        self._kind, self._index = device.memory_kind, device.index
        self._is_in_order = self._kind == "cuda"
        self._empty = pool.take(1)
        providers: list[Any] = [_CPU]
        if self._is_in_order:
            if _CUDA not in ort.get_available_providers():
                raise BackendError(
                    f"onnxruntime {ort.__version__} has no CUDA provider, which native segments need",
                    "pip install onnxruntime-gpu",
                )
            settings = {
                "device_id": str(device.index),
                "user_compute_stream": str(stream.handle),
                "prefer_nhwc": _prefer_nhwc(model),
            }
            providers.insert(0, (_CUDA, settings))
        self._session: Any = _session(model, providers, threads)
        if self._is_in_order and _CUDA not in self._session.get_providers():
            raise BackendError(
                "ONNX Runtime's CUDA provider did not load, which native segments need",
                "check the driver and the CUDA and cuDNN libraries",
            )
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._known = known_outputs(self._session, self._outputs) if use_graphs else None
        self._bindings: OrderedDict[_Key, Any] = OrderedDict()
        self.recorded: NativeGraphs | None = None
        if self._known is not None:
            self.recorded = NativeGraphs(device, stream, check_recording if self._is_in_order else None)

    def run(self, values: Mapping[str, Value], place: Place | None = None) -> dict[str, Value]:
        """Adds the segment to the stream; what ONNX Runtime raises passes through."""
        given = {name: value for name, value in values.items() if isinstance(value, DeviceArray)}
        known, recorded = self._known, self.recorded
        if known is None or recorded is None or place is None or len(given) < len(values):
            return self._run_anywhere(values)
        try:
            return self._run_in_place(given, known, place, recorded)
        except Exception:
            if recorded.captures:
                raise
        # A shape that the model declares may not be true. If the batch is to blame, this raises too.
        found = self._run_anywhere(values)
        self._known = None
        return found

    def _run_anywhere(self, values: Mapping[str, Value]) -> dict[str, Value]:
        binding = self._bound(values)
        for name in self._outputs:
            binding.bind_output(name, self._kind, self._index)
        self._execute(binding)
        return dict(zip(self._outputs, map(self._taken, binding.get_outputs()), strict=True))

    def _execute(self, binding: Any) -> None:
        if not self._is_in_order:
            self._stream.synchronize()
        self._session.run_with_iobinding(binding, self._options)

    def _bound(self, values: Mapping[str, Value]) -> Any:
        """A binding of the inputs."""
        binding = self._session.io_binding()
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, np.ascontiguousarray(value).reshape(value.shape))
            else:
                element = helper.np_dtype_to_tensor_dtype(value.dtype)
                pointer = value.pointer or self._empty.pointer
                binding.bind_input(name, self._kind, self._index, element, list(value.shape), pointer)
        return binding

    def _run_in_place(
        self,
        values: Mapping[str, DeviceArray],
        known: Mapping[str, KnownOutput],
        place: Place,
        recorded: NativeGraphs,
    ) -> dict[str, Value]:
        """As ``run``, with every output in memory that is not the session's, by graph once there is one."""
        rows = next(iter(values.values())).shape[0]
        placed = {name: place(name, output.shape(rows), output.dtype) for name, output in known.items()}
        addressed = {**values, **placed}
        key = tuple((name, value.pointer, value.shape) for name, value in addressed.items())
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bindings[key] = self._bound(values)
            for name, value in placed.items():
                element = helper.np_dtype_to_tensor_dtype(value.dtype)
                binding.bind_output(name, self._kind, self._index, element, list(value.shape), value.pointer)
            if len(self._bindings) > _MOST_BINDINGS:
                self._bindings.popitem(last=False)
        recorded.execute(key, lambda: self._execute(binding), list(placed.values()))
        return dict(placed)

    def _taken(self, value: Any) -> DeviceArray:
        dtype = numpy_dtype(value.data_type())
        if dtype is None:
            raise ModelError(
                f"a native segment makes a value of type {value.data_type()}",
                "such values cannot leave a segment",
            )
        return DeviceArray(
            pointer=value.data_ptr() or self._empty.pointer,
            shape=tuple(value.shape()),
            dtype=dtype,
            owner=_Held(value, None if self._is_in_order else self._stream),
        )

    def close(self) -> None:
        """Drops the session; its outputs must be released before."""
        if self.recorded is not None:
            self.recorded.close()
        self._bindings.clear()
        self._session = None
        self._empty.release()
