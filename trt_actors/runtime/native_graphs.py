"""CUDA graphs of a session of ONNX Runtime: recorded by us around its calls, launched without them.

ONNX Runtime can record graphs itself, but for one thread only, breaking calls of other threads meanwhile, and
some releases wait for each launch. Recorded from outside, a graph must not depend on what a session does
beside its kernels: one with work on the host, or copies from or to it, is given up, and so is one whose
results differ.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from ...datasets.storage import one_line
from ...errors import BackendError
from .device import Device, Graph, Stream
from .libcuda import call
from .values import DeviceArray

__all__ = ["NativeGraphs", "check_recording"]

_WARM_RUNS = 2
"""The first executions of a shape choose kernels and find memory, which a graph must not repeat."""

_MOST_GRAPHS = 16
_MOST_SEEN = 256
_POISON = 0xA5

_KERNEL, _MEMCPY, _MEMSET, _EMPTY = 0, 1, 2, 5
_ON_DEVICE = 2


class NativeGraphs:
    """Executes one session's runs, by graph where the same addresses come again and again.

    All outputs must lie in memory that is not the session's: a graph uses again what the session took for
    values between its nodes when it was recorded.

    Args:
        device: Open; its context must be current in every call.
        stream: What the session runs on.
        check: Called at the end of each recording; raises BackendError when that cannot be repeated.

    Attributes:
        captures: Graphs recorded so far.
        launches: Executions by graph so far.
        refused: Why nothing more is recorded; empty as long as it works.
    """

    def __init__(self, device: Device, stream: Stream, check: Callable[[Stream], None] | None) -> None:
        self._device = device
        self._stream = stream
        self._check = check
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._seen: OrderedDict[Hashable, int] = OrderedDict()
        self.captures = 0
        self.launches = 0
        self.refused = ""

    def execute(self, key: Hashable, run: Callable[[], None], outputs: Sequence[DeviceArray]) -> None:
        """Adds an execution to the stream; what ``run`` raises passes through.

        Args:
            key: Of the addresses and shapes of all inputs and outputs.
            run: Lets the session do it.
            outputs: Where the results will be.
        """
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            graph.launch(self._stream)
            self.launches += 1
            return
        run()
        if self.refused or not self._is_worth_it(key):
            return
        try:
            self._record(key, run, outputs)
        except Exception as error:
            self.refused = error.fact if isinstance(error, BackendError) else one_line(error)
            _once_more(run)

    def _is_worth_it(self, key: Hashable) -> bool:
        runs = self._seen.get(key, 0) + 1
        self._seen[key] = runs
        self._seen.move_to_end(key)
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)
        return runs > _WARM_RUNS

    def _record(self, key: Hashable, run: Callable[[], None], outputs: Sequence[DeviceArray]) -> None:
        """Records a graph and keeps it if it computes what was just computed, which is in the outputs now."""
        device, stream = self._device, self._stream
        wanted = self._results(outputs)

        def work() -> None:
            run()
            if self._check is not None:
                self._check(stream)

        graph = device.capture(stream, work)
        try:
            for output in outputs:
                if output.nbytes:
                    poison = np.full(output.nbytes, _POISON, np.uint8)
                    device.upload(output.pointer, poison, stream)
                    stream.synchronize()
            graph.launch(stream)
            found = self._results(outputs)
            if not all(map(np.array_equal, wanted, found)):
                raise BackendError("its results are not those of the session", "")
        except BaseException:
            stream.synchronize()
            graph.close()
            raise
        self.captures += 1
        self._graphs[key] = graph
        if len(self._graphs) > _MOST_GRAPHS:
            stream.synchronize()
            self._graphs.popitem(last=False)[1].close()

    def _results(self, outputs: Sequence[DeviceArray]) -> list[np.ndarray]:
        """The bytes of the outputs once they are there."""
        found = [np.empty(output.nbytes, np.uint8) for output in outputs]
        for output, array in zip(outputs, found, strict=True):
            if array.nbytes:
                self._device.download(array, output.pointer, self._stream)
        self._stream.synchronize()
        return found

    def close(self) -> None:
        """Destroys all graphs; no execution may be under way. Harmless when repeated."""
        while self._graphs:
            self._graphs.popitem()[1].close()


def _once_more(run: Callable[[], None]) -> None:
    """Runs after a recording that failed, whose error a library may still report with its next call."""
    try:
        run()
    except Exception:
        run()


class _Memcpy3D(ctypes.Structure):
    _fields_ = [
        (f"{side}{name}", kind)
        for side in ("src", "dst")
        for name, kind in (
            ("XInBytes", ctypes.c_size_t),
            ("Y", ctypes.c_size_t),
            ("Z", ctypes.c_size_t),
            ("LOD", ctypes.c_size_t),
            ("MemoryType", ctypes.c_uint),
            ("Host", ctypes.c_void_p),
            ("Device", ctypes.c_uint64),
            ("Array", ctypes.c_void_p),
            ("reserved", ctypes.c_void_p),
            ("Pitch", ctypes.c_size_t),
            ("Height", ctypes.c_size_t),
        )
    ] + [(name, ctypes.c_size_t) for name in ("WidthInBytes", "Height", "Depth")]


def check_recording(stream: Stream) -> None:
    """Looks at what a stream has recorded so far, while it is being captured.

    Raises:
        BackendError: Some of it is no work of the device alone.
    """
    status, number, graph = ctypes.c_int(), ctypes.c_uint64(), ctypes.c_void_p()
    call(
        "cuStreamGetCaptureInfo_v2",
        ctypes.c_void_p(stream.handle),
        ctypes.byref(status),
        ctypes.byref(number),
        ctypes.byref(graph),
        None,
        None,
    )
    count = ctypes.c_size_t()
    call("cuGraphGetNodes", graph, None, ctypes.byref(count))
    nodes = (ctypes.c_void_p * count.value)()
    call("cuGraphGetNodes", graph, nodes, ctypes.byref(count))
    for node in nodes[: count.value]:
        kind = ctypes.c_int()
        call("cuGraphNodeGetType", ctypes.c_void_p(node), ctypes.byref(kind))
        if kind.value == _MEMCPY:
            copy = _Memcpy3D()
            call("cuGraphMemcpyNodeGetParams", ctypes.c_void_p(node), ctypes.byref(copy))
            if (copy.srcMemoryType, copy.dstMemoryType) != (_ON_DEVICE, _ON_DEVICE):
                raise BackendError("the session copies from or to the host", "")
        elif kind.value not in (_KERNEL, _MEMSET, _EMPTY):
            raise BackendError(f"the session does work on the host (graph node of type {kind.value})", "")
