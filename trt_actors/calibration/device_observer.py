"""Observes a network on a GPU: ONNX Runtime leaves activations on the device, where a kernel counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from onnx import helper

from ...datasets.storage import one_line
from ...errors import BackendError, ModelError
from ..onnxruntime_engine import cuda_missing
from ..runtime.cuda import CudaDevice
from ..runtime.device import Buffer, Device, Stream
from .device_statistics import DeviceStatistics, DeviceValues
from .observed import ObservedNetwork
from .observer import counted_elements, filled
from .session import CPU, CUDA, open_session, run_in_order
from .statistics import Statistics

__all__ = ["DeviceObserver"]

_FLOATS: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}

Counters = Callable[[Device, Stream, Iterable[str]], DeviceStatistics]
"""Makes what counts on a device."""


class DeviceObserver:
    """ONNX Runtime on one GPU; see ``Observer``.

    Everything is added to one stream: the copy of a batch, the network, and the kernels that count. ONNX
    Runtime takes the memory of activations back in the order of that stream.

    Args:
        network: What to run.
        device: Where, not open; GPU 0 by default.
        counters: Makes what counts there.
    """

    def __init__(
        self, network: ObservedNetwork, device: Device | None = None, counters: Counters = DeviceStatistics
    ) -> None:
        self._network = network
        self._device: Device = device or CudaDevice()
        self._counters = counters
        self._stream: Stream | None = None
        self._session: Any = None
        self._staged = _Staged(self._device)
        self._idle: list[DeviceStatistics] = []
        self.backend = f"onnxruntime-{self._device.memory_kind}"

    def open(self) -> Self:
        """Retains the GPU's context and creates the session on a stream of its own."""
        is_cuda = self._device.memory_kind == "cuda"
        missing = cuda_missing() if is_cuda else None
        if missing:
            raise BackendError(f"{self.backend} is not available: {missing}", "choose --backend auto")
        self._device.open()
        try:
            with self._device.current():
                self._stream = self._device.stream()
                providers = [(CUDA, self._settings(self._stream)), CPU] if is_cuda else [CPU]
                self._session = open_session(self._network.network, providers)
            if is_cuda and CUDA not in self._session.get_providers():
                raise BackendError(
                    f"{self.backend} is not available: the CUDA provider did not load",
                    "check the driver and the CUDA and cuDNN libraries",
                )
        except BaseException:
            self.close()
            raise
        return self

    def _settings(self, stream: Stream) -> dict[str, str]:
        return {
            "device_id": str(self._device.index),
            "user_compute_stream": str(stream.handle),
            # An algorithm chosen by measuring, and with it the last bits, would be chance.
            "cudnn_conv_algo_search": "HEURISTIC",
            # Calibration describes single precision; TF32 has ten bits of mantissa.
            "use_tf32": "0",
        }

    def collection(self) -> DeviceCollection:
        """A new, empty collection, whose counters lie on the device."""
        assert self._stream is not None
        with self._device.current():
            if self._idle:
                counters = self._idle.pop()
                counters.reset()
            else:
                counters = self._counters(self._device, self._stream, self._network.tensors)
        return DeviceCollection(
            self._session,
            self._network,
            device=self._device,
            stream=self._stream,
            staged=self._staged,
            counters=counters,
            idle=self._idle,
        )

    def close(self) -> None:
        """Drops the session, then what it ran on; collections must be closed."""
        self._session = None
        stream, self._stream = self._stream, None
        if stream is not None:
            with self._device.current():
                stream.synchronize()
                while self._idle:
                    self._idle.pop().close()
                self._staged.close()
                stream.close()
        self._device.close()


class _Staged:
    """Device memory of a batch's inputs, reused for the next batch."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffers: dict[str, Buffer] = {}

    def upload(self, name: str, array: np.ndarray, stream: Stream) -> int:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size_bytes < array.nbytes:
            if buffer is not None:
                buffer.close()
            buffer = self._buffers[name] = self._device.allocate(max(1, array.nbytes))
        if array.nbytes:
            self._device.upload(buffer.pointer, array, stream)
        return buffer.pointer

    def close(self) -> None:
        for buffer in self._buffers.values():
            buffer.close()
        self._buffers.clear()


class DeviceCollection:
    """Statistics of activations on a GPU; see ``Collection``."""

    def __init__(
        self,
        session: Any,
        network: ObservedNetwork,
        *,
        device: Device,
        stream: Stream,
        staged: _Staged,
        counters: DeviceStatistics,
        idle: list[DeviceStatistics],
    ) -> None:
        self._session = session
        self._tensors = network.tensors
        self._fixed = network.network.inputs[0].batch
        self._device, self._stream, self._staged = device, stream, staged
        self._counters: DeviceStatistics | None = counters
        self._idle = idle

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Runs a batch and counts on the device; see ``Collection.add``."""
        assert self._counters is not None
        feeds, rows, batch = filled(arrays, self._fixed)
        with self._device.current():
            outputs = self._run(feeds)
            self._counters.add_all(
                DeviceValues(
                    name=tensor,
                    pointer=value.data_ptr(),
                    dtype=_FLOATS[value.data_type()],
                    count=counted_elements(value.shape(), rows, batch),
                )
                for tensor, value in zip(self._tensors, outputs, strict=True)
            )
            # The inputs' host memory is borrowed, and their device memory is the next batch's.
            self._stream.synchronize()

    def _run(self, feeds: Mapping[str, np.ndarray]) -> Sequence[Any]:
        """The tensors on the device, their values still being computed."""
        kind, index = self._device.memory_kind, self._device.index
        binding = self._session.io_binding()
        for name, array in feeds.items():
            pointer = self._staged.upload(name, array, self._stream)
            element = helper.np_dtype_to_tensor_dtype(array.dtype)
            binding.bind_input(name, kind, index, element, list(array.shape), pointer)
        for output in self._tensors.values():
            binding.bind_output(output, kind, index)
        if kind != "cuda":
            self._stream.synchronize()
        try:
            return run_in_order(self._session, binding)
        except Exception as error:
            raise ModelError(
                f"the network does not run on a batch: {one_line(error)}", "try a smaller --batch-size"
            ) from error

    def statistics(self) -> Statistics:
        """Fetches the counters; see ``Collection.statistics``."""
        assert self._counters is not None
        with self._device.current():
            return self._counters.statistics()

    def close(self) -> None:
        """Keeps the counters for the next collection."""
        counters, self._counters = self._counters, None
        if counters is not None:
            self._idle.append(counters)
