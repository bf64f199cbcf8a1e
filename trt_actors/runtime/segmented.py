"""The engine that runs a partitioned network: TensorRT and ONNX Runtime segments, one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

from ...datasets.signature import TensorSpec
from ...errors import BackendError, InternalError, UsageError
from ..building.flavour import Flavour
from ..trace import Tracer
from .chain import Chain, Runner
from .device import Device, Event, Stream
from .memory import Pool
from .program import NetworkProgram, read_order
from .slots import DeviceSlot, HostSlot
from .values import DeviceArray, Value

__all__ = ["SegmentedEngine"]

_DEPTH = 3
"""One batch on its way up, one executing, one on its way down."""


class SegmentedEngine:
    """Runs segments in order; what passes between them stays where it was made.

    With a device, three streams overlap the upload of one batch, the execution of another and the download of
    a third; all segments share the middle one. Without a device every segment runs in ONNX Runtime on the
    CPU, on host arrays.

    Args:
        program: The segments, in order.
        inputs: The network's inputs; all with a free batch dimension, or all with the same fixed one.
        outputs: The network's outputs.
        max_batch_size: Most rows a batch may have; None when only a fixed batch dimension limits it.
        flavour: Whose plans they are; needed with a device when there is a TensorRT segment.
        device: Where to execute, not open yet; None for host memory. The engine opens and closes it.
        threads: CPU threads of one operator.
        facts: What the program's maker wrote down of it, for reports.

    Attributes:
        kinds: The runtime of each segment, in order.
        facts: As given.

    Raises:
        ModelError: The segments do not fit each other.
    """

    def __init__(
        self,
        program: NetworkProgram,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        max_batch_size: int | None = None,
        flavour: Flavour | None = None,
        device: Device | None = None,
        threads: int = 1,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        names = [spec.name for spec in outputs]
        segments = program.segments
        drops = read_order(segments, [spec.name for spec in inputs], names)
        uses_tensorrt = any(segment.kind == "tensorrt" for segment in segments)
        if device is not None and uses_tensorrt and flavour is None:
            raise InternalError("a TensorRT segment without a flavour of TensorRT")
        self._fixed = inputs[0].batch
        self._device = device
        self._slots: list[DeviceSlot] = []
        self._chain = Chain(
            segments, drops=drops, outputs=names, flavour=flavour, device=device, threads=threads
        )
        self._lane: _Lane | None = None
        self._told: _Told | None = None
        self.backend = _backend(device, flavour if uses_tensorrt else None)
        self.kinds: Sequence[str] = tuple(segment.kind for segment in segments)
        self.facts: Mapping[str, Any] = facts or {}
        self.inputs = inputs
        self.outputs = outputs
        self.depth = 1 if device is None else _DEPTH
        self.full_rows: int | None = None
        self.device_s: float | None = None if device is None else 0.0
        limits = [limit for limit in (self._fixed, max_batch_size) if limit is not None]
        self.max_batch_size = min(limits) if limits else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of this run, each said once: segments that fell back, graphs refused."""
        return (*self._chain.notes, *(self._device.notes if self._device else ()))

    @property
    def device(self) -> Device | None:
        """Where it executes, open while the engine is; None for host memory."""
        return self._device

    @property
    def runners(self) -> Sequence[Runner]:
        """What executes the segments, while open."""
        return self._chain.runners

    def open(self) -> Self:
        """Acquires the device and loads every segment; see ``Engine.open``."""
        if self._device is None:
            self._chain.open(None, None)
            return self
        self._device.open()
        try:
            with self._device.current():
                self._lane = _Lane(self._device)
                self._chain.open(self._lane.compute, self._lane.pool)
        except BaseException:
            self.close()
            raise
        return self

    def trace(self, tracer: Tracer) -> None:
        """Tells a tracer from now on what the three streams do; nothing without a device."""
        if self._device is not None and self._lane is not None and tracer.is_on:
            with self._device.current():
                self._told = _Told(self._device, self._lane.compute, tracer)

    def slot(self) -> HostSlot:
        """A new slot: pinned memory with a device, else one that borrows contiguous inputs."""
        if self._device is None:
            return HostSlot(self.inputs)
        is_fixed = all(spec.is_static for spec in self.inputs)
        slot = DeviceSlot(self.inputs, self._device, self.full_rows if is_fixed else None)
        self._slots.append(slot)
        return slot

    def free_slots(self) -> None:
        """Frees the memory of every slot, and what is kept for values between segments.

        No batch may be on the engine, and no slot made before may be used again.
        """
        if self._device is None or self._lane is None:
            return
        with self._device.current():
            self._lane.drain()
            while self._slots:
                self._slots.pop().close()
            self._lane.pool.trim()

    def enqueue(self, slot: Any, rows: int) -> None:
        """Starts a batch; without a device, runs it at once.

        Raises:
            UsageError: It has more rows than ``max_batch_size``.
            BackendError: The device failed.
            MemoryError: The device has no memory left for it.
            Exception: What a runtime raises, which may be one row's fault.
        """
        if self.max_batch_size is not None and rows > self.max_batch_size:
            raise UsageError(
                f"a batch of {rows} rows is larger than max_batch_size {self.max_batch_size}",
                "lower --batch-size, or build with a larger --max-batch-size",
            )
        if self._device is None:
            found = self._chain.run(slot.fed(rows), None)
            slot.outputs = {name: self._cut(value, rows) for name, value in found.items()}
            return
        if self._lane is None:
            raise InternalError("a batch is enqueued on an engine that is not open")
        with self._device.current():
            if slot.is_in_flight:
                self._settle(slot)
            try:
                self._enqueue(self._device, self._lane, slot, rows)
            except BaseException:
                # What was enqueued must not run on into memory that the next batch is given.
                self._lane.drain()
                slot.let_go()
                raise
            slot.is_in_flight = True

    def _enqueue(self, device: Device, lane: _Lane, slot: DeviceSlot, rows: int) -> None:
        values: dict[str, Value] = {}
        slot.begun.record(lane.up)
        for name, array in slot.fed(rows).items():
            target = slot.on_device(name, array.shape, array.dtype)
            if array.nbytes:
                device.upload(target.pointer, array, lane.up)
            values[name] = target
        values |= slot.placed(rows, lane.up)
        slot.uploaded.record(lane.up)
        lane.compute.wait_for(slot.uploaded)
        slot.started.record(lane.compute)
        found = self._chain.run(values, slot.on_device)
        slot.hold(found)
        slot.computed.record(lane.compute)
        lane.down.wait_for(slot.computed)
        results = {}
        for name, value in found.items():
            result = slot.result(name, value.shape, value.dtype)
            if not isinstance(value, DeviceArray):
                result[...] = value
            elif value.nbytes:
                device.download(result, value.pointer, lane.down)
            results[name] = self._cut(result, rows)
        slot.done.record(lane.down)
        slot.pending = results

    def _cut(self, array: Any, rows: int) -> Any:
        return array[:rows] if self._fixed is not None or self.full_rows is not None else array

    def wait(self, slot: Any) -> None:
        """Waits for the slot's batch.

        Raises:
            BackendError: The device failed while executing it.
        """
        if self._device is not None and slot.is_in_flight:
            with self._device.current():
                self._settle(slot)

    def _settle(self, slot: DeviceSlot) -> None:
        slot.is_in_flight = False
        try:
            slot.done.synchronize()
        finally:
            slot.let_go()
        self.device_s = (self.device_s or 0.0) + slot.computed.seconds_since(slot.started)
        if self._told is not None:
            self._told.batch(slot)
        slot.outputs, slot.pending = slot.pending, {}

    def close(self) -> None:
        """Releases slots, segments, streams and device, all of them even when one of them fails."""
        if self._device is None:
            self._chain.close()
            return
        lane, self._lane = self._lane, None
        with contextlib.ExitStack() as last:
            last.callback(self._device.close)
            if lane is None:
                return
            last.enter_context(self._device.current())
            last.callback(lane.close)
            last.callback(self._chain.close)
            while self._slots:
                last.callback(self._slots.pop().close)
            if self._told is not None:
                last.callback(self._told.origin.close)
                self._told = None
            last.callback(lane.drain)


def _backend(device: Device | None, flavour: Flavour | None) -> str:
    if device is None:
        return "onnxruntime-cpu"
    return "onnxruntime-cuda" if flavour is None else flavour.name


class _Told:
    """Passes the times of a slot's events on to a tracer, related to one moment that both clocks know."""

    def __init__(self, device: Device, stream: Stream, tracer: Tracer) -> None:
        self._tracer = tracer
        self.origin: Event = device.event()
        self.origin.record(stream)
        self.origin.synchronize()
        self._origin_s = tracer.now_s()
        self._down_s = 0.0

    def batch(self, slot: DeviceSlot) -> None:
        points = (slot.begun, slot.uploaded, slot.started, slot.computed, slot.done)
        begun, uploaded, started, computed, done = (
            self._origin_s + point.seconds_since(self.origin) for point in points
        )
        self._tracer.complete("upload", "H2D", begun, uploaded - begun, category="copying")
        self._tracer.complete("execute", "compute", started, computed - started, category="executing")
        down = max(computed, self._down_s)
        self._tracer.complete("download", "D2H", down, done - down, category="copying")
        self._down_s = done


class _Lane:
    """The three streams of an open engine, and the pool that belongs to the middle one."""

    def __init__(self, device: Device) -> None:
        self.pool = Pool(device)
        self.up = device.stream()
        self.compute = device.stream()
        self.down = device.stream()

    @property
    def _streams(self) -> tuple[Stream, ...]:
        return (self.up, self.compute, self.down)

    def drain(self) -> None:
        """Waits for everything; errors are known already or will be reported by the batch they belong to."""
        for stream in self._streams:
            with contextlib.suppress(BackendError):
                stream.synchronize()

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        self.pool.close()
