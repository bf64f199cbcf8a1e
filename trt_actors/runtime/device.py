"""What the runtime asks of a device: memory, streams, events and graphs. Implemented by `cuda.CudaDevice`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal, Protocol, Self

import numpy as np

__all__ = ["Buffer", "Device", "Event", "Graph", "HostBuffer", "Module", "Stream"]


class Buffer(Protocol):
    """Device memory; whoever allocated it closes it.

    Attributes:
        pointer: Its address on the device.
        size_bytes: Its size.
    """

    pointer: int
    size_bytes: int

    def close(self) -> None:
        """Frees the memory; harmless when repeated."""


class HostBuffer(Protocol):
    """Host memory that the device copies from and to; whoever allocated it closes it.

    Attributes:
        array: The memory as uint8, one-dimensional.
        is_pinned: Whether it is page-locked; copies from and to pageable memory do not overlap with anything.
    """

    array: np.ndarray
    is_pinned: bool

    def close(self) -> None:
        """Frees the memory; views of ``array`` must be gone. Harmless when repeated."""


class Stream(Protocol):
    """A queue of work on the device.

    Attributes:
        handle: What libraries take as a stream.
    """

    handle: int

    def wait_for(self, event: Event) -> None:
        """Lets later work on this stream wait until what ``event`` recorded is done."""

    def synchronize(self) -> None:
        """Returns when all work on this stream is done.

        Raises:
            BackendError: Some of it failed.
        """

    def close(self) -> None:
        """Destroys the stream; harmless when repeated."""


class Event(Protocol):
    """A point in a stream's work, and when the device came by."""

    def record(self, stream: Stream) -> None:
        """Moves the point to the end of the work now on a stream."""

    def synchronize(self) -> None:
        """Returns when the work up to the point is done; raises BackendError when it failed."""

    def seconds_since(self, earlier: Event) -> float:
        """Seconds of the device's clock between two points that both are done."""

    def close(self) -> None:
        """Destroys the event; harmless when repeated."""


class Graph(Protocol):
    """Work captured from a stream, ready to be launched as one."""

    def launch(self, stream: Stream) -> None:
        """Adds the work to a stream, with the addresses that it was captured with."""

    def close(self) -> None:
        """Destroys the graph; harmless when repeated."""


class Module(Protocol):
    """Kernels of one source, ready to be launched."""

    def launch(
        self,
        kernel: str,
        *arguments: np.generic,
        blocks: tuple[int, ...],
        threads: tuple[int, ...],
        stream: Stream,
    ) -> None:
        """Adds one execution of a kernel to a stream.

        Args:
            kernel: Its name in the source, which gives it C linkage.
            arguments: Scalars of exactly the parameters' types; addresses as uint64, structures as
                ``np.void`` of their bytes. They are copied before this returns.
            blocks: The grid, one to three dimensions.
            threads: Of a block, one to three dimensions.
            stream: Where it goes.

        Raises:
            BackendError: There is no such kernel, or the driver refuses the launch.
        """

    def close(self) -> None:
        """Unloads the kernels, which must have been executed; harmless when repeated."""


class Device(Protocol):
    """One accelerator and this process's context on it; constructors touch nothing, ``open`` does.

    All calls but the first two need ``current`` in the calling thread.

    Attributes:
        index: Which of the visible devices.
        memory_kind: What ONNX Runtime calls its memory.
        notes: What a user should know, each said once.
    """

    index: int
    notes: list[str]
    memory_kind: Literal["cuda", "cpu"]

    def open(self) -> Self:
        """Acquires the device.

        Raises:
            BackendError: The device or its libraries are not available.
        """

    def current(self) -> AbstractContextManager[None]:
        """Makes the device's context current in this thread, inside the block; may be nested."""

    def close(self) -> None:
        """Releases the device; everything made on it must be closed. Harmless when repeated."""

    def stream(self) -> Stream:
        """A new stream, which does not wait for the default stream."""

    def event(self) -> Event:
        """A new event."""

    def allocate(self, size_bytes: int) -> Buffer:
        """Device memory, aligned to 256 bytes, uninitialized.

        Raises:
            MemoryError: The device has not so much left.
        """

    def host(self, size_bytes: int) -> HostBuffer:
        """Page-locked host memory, or pageable where there is no more to be had, uninitialized."""

    def upload(self, target: int, source: np.ndarray, stream: Stream) -> None:
        """Copies a C-contiguous host array to a device address; it must stay until the copy is done."""

    def download(self, target: np.ndarray, source: int, stream: Stream) -> None:
        """Copies from a device address to a C-contiguous host array."""

    def module(self, ptx: bytes) -> Module:
        """Loads kernels that ``scripts/make-ptx`` made; the driver compiles them for the device.

        Raises:
            BackendError: The driver does not take them.
        """

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Records what ``work`` adds to a stream, without executing it.

        Raises:
            BackendError: The work cannot be captured; the stream is usable again.
        """
