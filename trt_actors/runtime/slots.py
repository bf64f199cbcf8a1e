"""One batch's memory on its way through a segmented engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...datasets.signature import TensorSpec
from .device import Buffer, Device, HostBuffer, Stream
from .device_rows import DeviceRows
from .values import DeviceArray, Value, nbytes, release, view

__all__ = ["DeviceSlot", "HostSlot"]


class HostSlot:
    """Inputs in host memory, borrowed or own; see ``Slot``.

    Args:
        inputs: What will be fed.
    """

    def __init__(self, inputs: Sequence[TensorSpec]) -> None:
        self._specs = {spec.name: spec for spec in inputs}
        self._fed: dict[str, np.ndarray] = {}
        self.outputs: dict[str, np.ndarray] = {}

    def buffer(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Memory to fill; see ``Slot.buffer``."""
        spec = self._specs[name]
        rows = max(shape[0], spec.batch or 0)
        whole = self._memory(name, (rows, *shape[1:]), spec.dtype)
        self._fed[name] = whole[: shape[0]]
        return self._fed[name]

    def bind(self, name: str, array: np.ndarray) -> None:
        """Borrows a C-contiguous array of the right type, copies any other; see ``Slot.bind``."""
        if array.flags.c_contiguous and array.dtype == self._specs[name].dtype:
            self._fed[name] = array
        else:
            self.buffer(name, array.shape)[:] = array

    def fed(self, rows: int) -> dict[str, np.ndarray]:
        """The inputs of a batch; one of fixed size is filled up with its last row."""
        return {name: _filled(array[:rows], self._specs[name].batch) for name, array in self._fed.items()}

    def _memory(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return np.empty(shape, dtype)


def _filled(array: np.ndarray, rows: int | None) -> np.ndarray:
    if rows is None or len(array) >= rows:
        return array
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])


class DeviceSlot(HostSlot):
    """Pinned host inputs and outputs, device inputs and outputs, and the events that order them.

    Memory grows with the largest batch and stays until ``close``.

    Args:
        inputs: What will be fed.
        device: Open.
        full_rows: Smaller batches are filled up to so many rows; None for only what the inputs fix.
    """

    def __init__(self, inputs: Sequence[TensorSpec], device: Device, full_rows: int | None = None) -> None:
        filled = [replace(spec, batch=spec.batch or full_rows) for spec in inputs]
        super().__init__(filled)
        self._device = device
        self._pinned: dict[str, HostBuffer] = {}
        self._results: dict[str, HostBuffer] = {}
        self._buffers: dict[str, Buffer] = {}
        self._placed: dict[str, DeviceRows] = {}
        self._held: list[Value] = []
        self.is_in_flight = False
        self.pending: dict[str, np.ndarray] = {}
        with device.current():
            self.begun = device.event()
            self.uploaded = device.event()
            self.started = device.event()
            self.computed = device.event()
            self.done = device.event()

    def buffer(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Pinned memory to fill; see ``Slot.buffer``."""
        self._placed.pop(name, None)
        return super().buffer(name, shape)

    def place(self, name: str, rows: DeviceRows) -> None:
        """Takes an input that lies on the device already, and keeps it until the slot's next batch.

        Args:
            name: Of the input.
            rows: Of its dtype; all pixels must be there. They are copied when the batch is enqueued.
        """
        self._fed.pop(name, None)
        self._placed[name] = rows

    def placed(self, rows: int, stream: Stream) -> dict[str, DeviceArray]:
        """The inputs that lay on the device already, copied to this slot's memory in a stream's order.

        One of fixed size is filled up with its last row. The device's context must be current.
        """
        found = {}
        for name, given in self._placed.items():
            some, full = given[:rows], max(rows, self._specs[name].batch or 0)
            target = self.on_device(name, (full, *given.shape[1:]), given.dtype)
            some.copy_to(target.pointer, stream)
            some.fill_up(target.pointer, full, stream)
            found[name] = target
        return found

    def bind(self, name: str, array: np.ndarray) -> None:
        """Copies an array into pinned memory; see ``Slot.bind``."""
        self.buffer(name, array.shape)[:] = array

    def fed(self, rows: int) -> dict[str, np.ndarray]:
        """As ``HostSlot.fed``, inside pinned memory: that of a fixed batch has room for all rows."""
        found = {}
        for name, array in self._fed.items():
            batch = self._specs[name].batch
            if batch is not None and rows < batch:
                array = view(self._pinned[name], (batch, *array.shape[1:]), array.dtype)
                array[rows:] = array[rows - 1]
            found[name] = array if batch is not None and batch == len(array) else array[:rows]
        return found

    def _memory(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        with self._device.current():
            return view(_grown(self._pinned, name, nbytes(shape, dtype), self._device), shape, dtype)

    def result(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Pinned memory for an output; the device's context must be current."""
        return view(_grown(self._results, name, nbytes(shape, dtype), self._device), shape, dtype)

    def on_device(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> DeviceArray:
        """This slot's own device memory for an input or output; the device's context must be current."""
        size = max(nbytes(shape, dtype), 1)
        found = self._buffers.get(name)
        if found is None or found.size_bytes < size:
            if found is not None:
                del self._buffers[name]
                found.close()
            found = self._buffers[name] = self._device.allocate(size)
        return DeviceArray(pointer=found.pointer, shape=shape, dtype=dtype)

    def hold(self, values: Mapping[str, Value]) -> None:
        """Keeps outputs until they are copied to the host."""
        self._held.extend(values.values())

    def let_go(self) -> None:
        """Gives back what ``hold`` kept; nothing may still read it."""
        while self._held:
            release(self._held.pop())

    def close(self) -> None:
        """Frees everything; the device's context must be current. Harmless when repeated."""
        self.let_go()
        self.outputs = {}
        self.pending = {}
        self._fed.clear()
        self._placed.clear()
        for buffers in (self._pinned, self._results, self._buffers):
            while buffers:
                buffers.popitem()[1].close()
        for event in (self.begun, self.uploaded, self.started, self.computed, self.done):
            event.close()


def _grown(buffers: dict[str, HostBuffer], name: str, size_bytes: int, device: Device) -> HostBuffer:
    found = buffers.get(name)
    if found is None or len(found.array) < size_bytes:
        if found is not None:
            del buffers[name]
            found.close()
        found = buffers[name] = device.host(size_bytes)
    return found
