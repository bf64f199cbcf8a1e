"""A device in host memory: strict about order, lifetime and contexts, and counting what is left."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

import numpy as np
from trtfleet.errors import BackendError
from trtfleet.trt_actors.runtime.device import Graph, Stream

_POISON = 0xCD
_ALIGNMENT = 256

Captured = list[tuple[Callable[[], None], Callable[[], None]]]


class DeviceDouble:
    """Implements ``Device``.

    Args:
        lazy: Whether work waits on its stream until somebody synchronizes (as late as CUDA may execute it),
            or is executed at once (as early as CUDA may).
        limit_bytes: How much memory there is.
        denies_pinned: Whether pinned memory is refused.
    """

    memory_kind: Literal["cuda", "cpu"] = "cpu"
    index = 0

    def __init__(self, *, lazy: bool = True, limit_bytes: int = 1 << 30, denies_pinned: bool = False) -> None:
        self.lazy = lazy
        self.limit_bytes = limit_bytes
        self.denies_pinned = denies_pinned
        self.notes: list[str] = []
        self.alive: set[Any] = set()
        self.allocations = 0
        self.opened = 0
        self.streams: dict[int, StreamDouble] = {}
        # Freed memory stays here, so that no other allocation gets its addresses.
        self.freed: list[np.ndarray] = []
        self._is_open = False
        self._local = threading.local()
        # Whoever frees memory executes what is left on the streams of all threads.
        self.executing = threading.RLock()

    def open(self) -> Self:
        self._is_open = True
        self.opened += 1
        return self

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        assert self._is_open, "the device is used while it is closed"
        self._local.depth = getattr(self._local, "depth", 0) + 1
        try:
            yield
        finally:
            self._local.depth -= 1

    def check_current(self) -> None:
        assert getattr(self._local, "depth", 0), "the context is not current in this thread"

    def close(self) -> None:
        assert not self.alive, f"not released: {self.alive}"
        self._is_open = False

    def stream(self) -> StreamDouble:
        self.check_current()
        return StreamDouble(self)

    def event(self) -> EventDouble:
        self.check_current()
        return EventDouble(self)

    @property
    def used_bytes(self) -> int:
        """Device memory in use."""
        return sum(thing.size_bytes for thing in self.alive.copy() if isinstance(thing, BufferDouble))

    def allocate(self, size_bytes: int) -> BufferDouble:
        self.check_current()
        if self.used_bytes + size_bytes > self.limit_bytes:
            raise MemoryError(f"{size_bytes} bytes are more than is left")
        self.allocations += 1
        return BufferDouble(self, size_bytes)

    def host(self, size_bytes: int) -> HostBufferDouble:
        self.check_current()
        if self.denies_pinned and not self.notes:
            self.notes.append("pinned memory was refused")
        return HostBufferDouble(self, size_bytes, is_pinned=not self.denies_pinned)

    def memory(self, pointer: int, size_bytes: int) -> np.ndarray:
        """The bytes at an address, which must not be freed memory nor reach over the end of an allocation."""
        for buffer in self.alive.copy():
            if isinstance(buffer, BufferDouble) and buffer.holds(pointer):
                assert buffer.holds(pointer + size_bytes - 1), "an access reaches over the end of its memory"
                start = pointer - buffer.pointer
                return buffer.array[start : start + size_bytes]
        for array in list(self.freed):
            start = array.ctypes.data
            assert not start <= pointer < start + array.nbytes, "memory is used after it was freed"
        # ONNX Runtime's own memory, or host memory.
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(pointer))

    def upload(self, target: int, source: np.ndarray, stream: Stream) -> None:
        self.check_current()
        assert source.flags.c_contiguous
        self.memory(target, source.nbytes)
        data = source.view(np.uint8).reshape(-1) if source.ndim else source.reshape(1).view(np.uint8)

        def copy() -> None:
            self.memory(target, data.nbytes)[:] = data

        of(stream).add(copy, uses=data)

    def download(self, target: np.ndarray, source: int, stream: Stream) -> None:
        self.check_current()
        assert target.flags.c_contiguous
        self.memory(source, target.nbytes)
        data = target.reshape(-1).view(np.uint8)

        def copy() -> None:
            data[:] = self.memory(source, data.nbytes)

        of(stream).add(copy, uses=data)

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        self.check_current()
        captured = of(stream).begin_capture()
        try:
            work()
        finally:
            of(stream).captured = None
        return GraphDouble(self, captured)


def of(stream: Any) -> StreamDouble:
    assert isinstance(stream, StreamDouble)
    assert stream in stream.device.alive, "a stream is used after it was closed"
    return stream


class Thing:
    """What a device makes and wants back."""

    def __init__(self, device: DeviceDouble) -> None:
        self.device = device
        device.alive.add(self)

    def close(self) -> None:
        self.device.check_current()
        self.device.alive.discard(self)


class BufferDouble(Thing):
    def __init__(self, device: DeviceDouble, size_bytes: int) -> None:
        assert size_bytes > 0
        whole = np.full(size_bytes + _ALIGNMENT, _POISON, np.uint8)
        start = -whole.ctypes.data % _ALIGNMENT
        self.array = whole[start : start + size_bytes]
        self.pointer = self.array.ctypes.data
        self.size_bytes = size_bytes
        # Last: other threads look at what is alive.
        super().__init__(device)

    def holds(self, pointer: int) -> bool:
        return self.pointer <= pointer < self.pointer + self.size_bytes

    def close(self) -> None:
        if self in self.device.alive:
            # Freeing device memory waits for the work that may use it.
            for stream in list(self.device.streams.values()):
                stream.drain()
            self.array[:] = _POISON
            self.device.freed.append(self.array)
        super().close()


class HostBufferDouble(Thing):
    def __init__(self, device: DeviceDouble, size_bytes: int, *, is_pinned: bool) -> None:
        super().__init__(device)
        self.array = np.full(max(size_bytes, 1), _POISON, np.uint8)
        self.is_pinned = is_pinned

    def close(self) -> None:
        busy = [stream for stream in self.device.streams.values() if stream.is_using(self.array)]
        assert not busy, "host memory is freed while a copy needs it"
        self.array[:] = _POISON
        super().close()


class Marker:
    """Where a stream stood when an event was recorded."""

    def __init__(self, stream: StreamDouble) -> None:
        self.stream = stream
        self.is_reached = False
        self.at_s = 0.0

    def reach(self) -> None:
        self.is_reached = True
        self.at_s = time.perf_counter()


class StreamDouble(Thing):
    _next = 0x5000

    def __init__(self, device: DeviceDouble) -> None:
        super().__init__(device)
        StreamDouble._next += 0x10
        self.handle = StreamDouble._next
        self.captured: Captured | None = None
        self._queue: list[tuple[Callable[[], None], np.ndarray | None]] = []
        device.streams[self.handle] = self

    def add(
        self,
        work: Callable[[], None],
        check: Callable[[], None] = lambda: None,
        uses: np.ndarray | None = None,
    ) -> None:
        """Queues work.

        Args:
            work: What to do.
            check: Called whenever a graph with this work is launched.
            uses: Host memory that must stay until the work is done.
        """
        if self.captured is not None:
            self.captured.append((work, check))
            return
        self._queue.append((work, uses))
        if not self.device.lazy:
            self.drain()

    def wait_for(self, event: Any) -> None:
        self.device.check_current()
        marker = event.marker
        if marker is not None:
            self.add(lambda: marker.stream.drain(marker))

    def synchronize(self) -> None:
        self.device.check_current()
        if self.captured is not None:
            raise BackendError("the stream is being captured", "")
        self.drain()

    def drain(self, until: Marker | None = None) -> None:
        """Executes what is queued, up to a mark."""
        with self.device.executing:
            while self._queue and not (until and until.is_reached):
                work, _ = self._queue.pop(0)
                work()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self._queue

    def is_using(self, array: np.ndarray) -> bool:
        """Whether work that is left needs an array."""
        return any(uses is not None and np.shares_memory(uses, array) for _, uses in self._queue)

    def begin_capture(self) -> Captured:
        self.captured = []
        return self.captured

    def close(self) -> None:
        assert not self._queue, "a stream is closed with work on it"
        self.device.streams.pop(self.handle, None)
        super().close()


class EventDouble(Thing):
    def __init__(self, device: DeviceDouble) -> None:
        super().__init__(device)
        self.marker: Marker | None = None

    def record(self, stream: Stream) -> None:
        self.device.check_current()
        self.marker = Marker(of(stream))
        of(stream).add(self.marker.reach)

    def synchronize(self) -> None:
        self.device.check_current()
        if self.marker is not None:
            self.marker.stream.drain(self.marker)

    def seconds_since(self, earlier: Any) -> float:
        self.device.check_current()
        for event in (self, earlier):
            assert event.marker is not None, "an event was never recorded"
            assert event.marker.is_reached, "an event is asked for its time before it is done"
        assert self.marker is not None
        return self.marker.at_s - float(earlier.marker.at_s)


class GraphDouble(Thing):
    def __init__(self, device: DeviceDouble, captured: Captured) -> None:
        super().__init__(device)
        self._captured = captured

    def launch(self, stream: Stream) -> None:
        self.device.check_current()
        assert self in self.device.alive, "a graph is launched after it was destroyed"
        for work, check in self._captured:
            check()
            of(stream).add(work)
