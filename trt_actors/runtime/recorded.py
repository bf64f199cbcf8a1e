"""CUDA graphs of a plan's executions: a context for each batch shape, a graph for each set of addresses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from ...errors import BackendError
from .context import Context, ExecutionError
from .device import Device, Graph, Stream
from .tensors import Shapes

__all__ = ["Bucket", "RecordedRuns"]

_MOST_BUCKETS = 4
_MOST_GRAPHS = 16
_MOST_SEEN = 256

_Key = tuple[int, tuple[tuple[str, tuple[int, ...]], ...]]


class Bucket:
    """Executions of one batch shape.

    Args:
        context: Prepared for the shape, owned from now on. It is never given another shape: a graph is only
            valid as long as its context stays as it was when captured.
    """

    def __init__(self, owner: RecordedRuns, context: Context) -> None:
        self._owner = owner
        self._is_warm = False
        self._graphs: OrderedDict[tuple[tuple[str, int], ...], Graph] = OrderedDict()
        self.context = context

    def execute(self, pointers: Mapping[str, int], stream: Stream, device: Device) -> None:
        """Adds an execution with these addresses to the stream: a graph's, once there is one.

        Raises:
            ExecutionError: TensorRT refuses it.
        """
        key = tuple(pointers.items())
        graph = self._graphs.get(key)
        if graph is None:
            self.context.address(pointers)
            # The first execution after a change of shapes does work that a graph must not repeat.
            if not self._is_warm or self._owner.refused:
                self.context.execute()
                self._is_warm = True
                return
            graph = self._capture(key, stream, device)
            if graph is None:
                self.context.execute()
                return
        else:
            self._graphs.move_to_end(key)
        graph.launch(stream)
        self._owner.launches += 1

    def _capture(self, key: tuple[tuple[str, int], ...], stream: Stream, device: Device) -> Graph | None:
        try:
            graph = device.capture(stream, self.context.execute)
        except (BackendError, ExecutionError) as error:
            self._owner.refused = error.fact if isinstance(error, BackendError) else str(error)
            return None
        self._owner.captures += 1
        self._graphs[key] = graph
        if len(self._graphs) > _MOST_GRAPHS:
            stream.synchronize()
            self._graphs.popitem(last=False)[1].close()
        return graph

    def close(self) -> None:
        """Destroys graphs and context; no execution may be under way."""
        while self._graphs:
            self._graphs.popitem()[1].close()
        self.context.close()


class RecordedRuns:
    """Decides which batch shapes are worth a graph, and keeps the latest few.

    A shape is, the second time it comes: the last batch of a file is often smaller and comes once.

    Args:
        make_context: Makes a context with a profile.
        stream: Where executions go.
        device: Captures them.

    Attributes:
        captures: Graphs captured so far.
        launches: Executions by graph so far.
        refused: Why nothing more is captured; empty as long as it works.
    """

    def __init__(self, make_context: Callable[[int], Context], stream: Stream, device: Device) -> None:
        self._make_context = make_context
        self._stream = stream
        self._device = device
        self._seen: OrderedDict[_Key, None] = OrderedDict()
        self._buckets: OrderedDict[_Key, Bucket] = OrderedDict()
        self.captures = 0
        self.launches = 0
        self.refused = ""

    def bucket(self, profile: int, shapes: Shapes) -> Bucket | None:
        """The bucket of a batch shape, or None when it is to be executed plainly."""
        key = (profile, tuple(shapes.items()))
        found = self._buckets.get(key)
        if found is not None:
            self._buckets.move_to_end(key)
            return found
        if self.refused:
            return None
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > _MOST_SEEN:
                self._seen.popitem(last=False)
            return None
        context = self._make_context(profile)
        try:
            context.prepare(shapes, {})
        except BaseException:
            context.close()
            raise
        if not context.is_shape_known:
            self.refused = "the shapes of its outputs depend on its data"
            context.close()
            return None
        made = self._buckets[key] = Bucket(self, context)
        if len(self._buckets) > _MOST_BUCKETS:
            self._stream.synchronize()
            self._buckets.popitem(last=False)[1].close()
        return made

    def close(self) -> None:
        """Destroys all graphs and their contexts; no execution may be under way."""
        while self._buckets:
            self._buckets.popitem()[1].close()
