"""CUDA graphs, which PyCUDA has no interface to."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable

from ...errors import BackendError
from .device import Stream
from .libcuda import call

__all__ = ["CudaGraph", "capture"]

# Calls of other threads, which allocate pinned memory meanwhile, must not break a capture.
_THREAD_LOCAL = 1


class CudaGraph:
    """An executable graph; see ``Graph``.

    Args:
        handle: A CUgraphExec, which the instance owns.
    """

    def __init__(self, handle: ctypes.c_void_p) -> None:
        self._handle: ctypes.c_void_p | None = handle

    def launch(self, stream: Stream) -> None:
        """Adds the graph to a stream; see ``Graph.launch``."""
        if self._handle is None:
            raise BackendError(
                "a CUDA graph is launched after it was destroyed", "this is a defect of trtfleet"
            )
        call("cuGraphLaunch", self._handle, ctypes.c_void_p(stream.handle))

    def close(self) -> None:
        """Destroys the graph."""
        handle, self._handle = self._handle, None
        if handle is not None:
            call("cuGraphExecDestroy", handle)


def capture(stream: Stream, work: Callable[[], None]) -> CudaGraph:
    """Records what ``work`` adds to a stream; see ``Device.capture``.

    Raises:
        BackendError: The work cannot be captured.
    """
    pointer = ctypes.c_void_p(stream.handle)
    graph = ctypes.c_void_p()
    call("cuStreamBeginCapture_v2", pointer, ctypes.c_int(_THREAD_LOCAL))
    try:
        work()
    except BaseException:
        # Ending it is what makes the stream usable again, whether or not it yields a graph.
        with contextlib.suppress(BackendError):
            call("cuStreamEndCapture", pointer, ctypes.byref(graph))
        if graph.value:
            call("cuGraphDestroy", graph)
        raise
    call("cuStreamEndCapture", pointer, ctypes.byref(graph))
    try:
        executable = ctypes.c_void_p()
        call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
    finally:
        call("cuGraphDestroy", graph)
    return CudaGraph(executable)
