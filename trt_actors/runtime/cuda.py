"""One CUDA device through PyCUDA: the one module that imports it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

import numpy as np

from ...datasets.storage import one_line
from ...errors import BackendError, TrtfleetError
from .device import Graph, Stream
from .graphs import capture
from .libcuda import GpuInfo, driver_missing, gpus

__all__ = ["CudaDevice", "cuda_missing"]

_INSTALL = "pip install 'trtfleet[gpu]'"


def cuda_missing() -> str | None:
    """Why this process cannot use a GPU through PyCUDA, or None when it can; makes no context."""
    missing = driver_missing()
    if missing is not None:
        return missing
    try:
        _pycuda()
    except BackendError as error:
        return error.fact
    return None


def _pycuda() -> Any:
    try:
        import pycuda.driver as driver
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "pycuda":
            raise BackendError("PyCUDA is not installed", _INSTALL) from error
        raise BackendError(f"PyCUDA does not load: {one_line(error)}", _INSTALL) from error
    return driver


@contextlib.contextmanager
def _mapped(driver: Any, doing: str) -> Iterator[None]:
    try:
        yield
    except driver.MemoryError as error:
        raise MemoryError(f"{doing}: {one_line(error)}") from error
    except driver.Error as error:
        raise BackendError(f"{doing}: {one_line(error)}", "see the driver's log (dmesg)") from error


class CudaDevice:
    """The primary context of one GPU; see ``Device``.

    PyCUDA destroys what it made when the last reference goes, and then needs the context: ``close`` of every
    object must be called with ``current``.

    Args:
        index: Which of the visible GPUs.
    """

    memory_kind: Literal["cuda", "cpu"] = "cuda"

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.notes: list[str] = []
        self._driver: Any = None
        self._context: Any = None
        self._local = threading.local()

    @property
    def info(self) -> GpuInfo:
        """Name, compute capability, memory and versions; needs no ``open`` and makes no context.

        Raises:
            BackendError: There is no such GPU.
        """
        found = gpus()
        if self.index >= len(found):
            raise BackendError(
                f"there is no GPU {self.index}: {driver_missing() or f'{len(found)} are visible'}",
                "check CUDA_VISIBLE_DEVICES",
            )
        return found[self.index]

    def open(self) -> Self:
        """Retains the primary context, which other libraries of this process share."""
        if self._context is not None:
            return self
        missing = cuda_missing()
        if missing:
            raise BackendError(f"CUDA is not available: {missing}", "choose --backend onnxruntime-cpu")
        name = self.info.name
        self._driver = _pycuda()
        with _mapped(self._driver, f"GPU {self.index} ({name}) gives no context"):
            self._driver.init()
            self._context = self._driver.Device(self.index).retain_primary_context()
        return self

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Pushes the context for the outermost block of this thread; see ``Device.current``."""
        if self._context is None:
            raise BackendError("the GPU is used while it is not open", "this is a defect of trtfleet")
        depth = getattr(self._local, "depth", 0)
        if not depth:
            self._context.push()
        self._local.depth = depth + 1
        try:
            yield
        finally:
            self._local.depth = depth
            if not depth:
                self._driver.Context.pop()

    def close(self) -> None:
        """Releases the primary context."""
        context, self._context = self._context, None
        if context is not None:
            with _mapped(self._driver, f"GPU {self.index} cannot be released"):
                context.detach()

    def stream(self) -> _CudaStream:
        """A non-blocking stream."""
        with _mapped(self._driver, "no CUDA stream"):
            return _CudaStream(self._driver)

    def event(self) -> _CudaEvent:
        """An event whose waiter sleeps."""
        with _mapped(self._driver, "no CUDA event"):
            return _CudaEvent(self._driver)

    def allocate(self, size_bytes: int) -> _CudaBuffer:
        """Device memory; see ``Device.allocate``."""
        with _mapped(self._driver, f"GPU {self.index} cannot give {size_bytes} bytes"):
            return _CudaBuffer(self._driver.mem_alloc(max(size_bytes, 1)), size_bytes)

    def host(self, size_bytes: int) -> _CudaHostBuffer:
        """Page-locked memory; where that is refused, pageable memory and once a word in ``notes``."""
        try:
            with _mapped(self._driver, "no page-locked memory"):
                array = self._driver.pagelocked_empty(max(size_bytes, 1), np.uint8)
        except (BackendError, MemoryError) as error:
            if not self.notes:
                self.notes.append(
                    f"{size_bytes} bytes of page-locked memory were refused ({one_line(error)}); "
                    "pageable memory is used instead, which is slower"
                )
            return _CudaHostBuffer(np.empty(max(size_bytes, 1), np.uint8), is_pinned=False)
        return _CudaHostBuffer(array, is_pinned=True)

    def upload(self, target: int, source: np.ndarray, stream: Stream) -> None:
        """Starts a copy to the device; see ``Device.upload``."""
        with _mapped(self._driver, f"copying {source.nbytes} bytes to the GPU failed"):
            self._driver.memcpy_htod_async(target, source, _stream(stream))

    def download(self, target: np.ndarray, source: int, stream: Stream) -> None:
        """Starts a copy from the device; see ``Device.download``."""
        with _mapped(self._driver, f"copying {target.nbytes} bytes from the GPU failed"):
            self._driver.memcpy_dtoh_async(target, source, _stream(stream))

    def module(self, ptx: bytes) -> _CudaModule:
        """Kernels, which the driver compiles for this GPU; see ``Device.module``."""
        with _mapped(self._driver, f"GPU {self.index} does not take the kernels"):
            return _CudaModule(self._driver, ptx)

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """A CUDA graph; see ``Device.capture``."""
        try:
            return capture(stream, work)
        except TrtfleetError:
            raise
        except self._driver.Error as error:
            raise BackendError(
                f"the work cannot be captured: {one_line(error)}", "run without CUDA graphs"
            ) from error


def _stream(stream: Stream) -> Any:
    assert isinstance(stream, _CudaStream)
    return stream.inner


class _CudaStream:
    def __init__(self, driver: Any) -> None:
        # CU_STREAM_NON_BLOCKING, for which PyCUDA has no name.
        self.inner: Any = driver.Stream(1)
        self.handle = int(self.inner.handle)
        self._driver = driver

    def wait_for(self, event: Any) -> None:
        with _mapped(self._driver, "a CUDA stream cannot wait"):
            self.inner.wait_for_event(event.inner)

    def synchronize(self) -> None:
        with _mapped(self._driver, "work on the GPU failed"):
            self.inner.synchronize()

    def close(self) -> None:
        self.inner = None


class _CudaEvent:
    def __init__(self, driver: Any) -> None:
        self.inner: Any = driver.Event(int(driver.event_flags.BLOCKING_SYNC))
        self._driver = driver

    def record(self, stream: Stream) -> None:
        with _mapped(self._driver, "a CUDA event cannot be recorded"):
            self.inner.record(_stream(stream))

    def synchronize(self) -> None:
        with _mapped(self._driver, "work on the GPU failed"):
            self.inner.synchronize()

    def seconds_since(self, earlier: Any) -> float:
        with _mapped(self._driver, "a CUDA event has no time"):
            return float(self.inner.time_since(earlier.inner)) / 1e3

    def close(self) -> None:
        self.inner = None


class _CudaModule:
    def __init__(self, driver: Any, ptx: bytes) -> None:
        # PTX is text, which the driver reads up to a zero byte.
        self._module: Any = driver.module_from_buffer(ptx + b"\0")
        self._functions: dict[str, Any] = {}
        self._driver = driver

    def launch(
        self,
        kernel: str,
        *arguments: np.generic,
        blocks: tuple[int, ...],
        threads: tuple[int, ...],
        stream: Stream,
    ) -> None:
        with _mapped(self._driver, f"the kernel {kernel} cannot be launched"):
            if kernel not in self._functions:
                self._functions[kernel] = self._module.get_function(kernel)
            grid, block = (*blocks, 1, 1)[:3], (*threads, 1, 1)[:3]
            self._functions[kernel](*arguments, grid=grid, block=block, stream=_stream(stream))

    def close(self) -> None:
        self._functions.clear()
        self._module = None


class _CudaBuffer:
    def __init__(self, allocation: Any, size_bytes: int) -> None:
        self._allocation: Any = allocation
        self.pointer = int(allocation)
        self.size_bytes = size_bytes

    def close(self) -> None:
        allocation, self._allocation = self._allocation, None
        if allocation is not None:
            allocation.free()


class _CudaHostBuffer:
    def __init__(self, array: np.ndarray, *, is_pinned: bool) -> None:
        self.array = array
        self.is_pinned = is_pinned
        # PyCUDA's array keeps its allocation as ``base``; views keep the array, so it must be freed by hand.
        self._allocation: Any = array.base if is_pinned else None

    def close(self) -> None:
        allocation, self._allocation = self._allocation, None
        self.array = np.empty(0, np.uint8)
        if allocation is not None:
            allocation.free()
