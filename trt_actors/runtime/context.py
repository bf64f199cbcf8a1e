"""One execution context of a plan: its shapes and addresses, and the calls that set them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .allocator import output_allocator
from .device import Stream
from .memory import Pool
from .tensors import PlanTensors, Shapes
from .values import DeviceArray

__all__ = ["Context", "ExecutionError"]


class ExecutionError(Exception):
    """TensorRT refused to execute a batch; it may be one row's fault."""


class Context:
    """An execution context with one profile.

    Args:
        api: The flavour's module.
        inner: TensorRT's context, owned from now on.
        tensors: The plan's inputs and outputs.
        profile: Which profile to use.
        stream: What executions are added to.
        pool: Where memory for outputs of unknown size comes from.
        log: The logger of the runtime, for error texts.
    """

    def __init__(
        self,
        api: Any,
        inner: Any,
        *,
        tensors: PlanTensors,
        profile: int,
        stream: Stream,
        pool: Pool,
        log: Any,
    ) -> None:
        self._api = api
        self._inner = inner
        self._tensors = tensors
        self._stream = stream
        self._pool = pool
        self._log = log
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._hosts: dict[str, np.ndarray] = {}
        self._allocators: dict[str, Any] = {}
        self.output_shapes: dict[str, tuple[int, ...] | None] = {}
        if profile:
            self._do(inner.set_optimization_profile_async(profile, stream.handle), f"profile {profile}")
            # The change is ordered on the stream, but what other calls read of it is not.
            stream.synchronize()

    @property
    def is_shape_known(self) -> bool:
        """Whether every output's shape is known before the execution."""
        return all(shape is not None for shape in self.output_shapes.values())

    def prepare(self, shapes: Shapes, hosts: Mapping[str, np.ndarray]) -> None:
        """Sets the inputs' shapes, and the inputs in host memory, and finds the outputs' shapes.

        Raises:
            ExecutionError: TensorRT refuses them.
        """
        if self._shapes == dict(shapes) and not hosts:
            return
        self._shapes = None
        for name, shape in shapes.items():
            self._do(self._inner.set_input_shape(name, shape), f"{name} of shape {shape}")
        self._hosts = {name: np.ascontiguousarray(array) for name, array in hosts.items()}
        for name, array in self._hosts.items():
            self._do(self._inner.set_tensor_address(name, array.ctypes.data), f"the values of {name}")
        missing = self._inner.infer_shapes()
        if missing:
            raise ExecutionError(f"TensorRT does not know the shape of {', '.join(missing)}{self._why()}")
        self.output_shapes = {name: self._shape_of(name) for name in self._tensors.outputs}
        self._shapes = dict(shapes)

    def address(self, pointers: Mapping[str, int]) -> None:
        """Sets where inputs and outputs of known shape lie."""
        for name, pointer in pointers.items():
            self._do(self._inner.set_tensor_address(name, pointer), f"the address of {name}")

    def execute(self) -> None:
        """Adds an execution to the stream.

        Raises:
            ExecutionError: TensorRT refuses it.
            MemoryError: There is no memory for an output of unknown size.
        """
        is_enqueued = self._inner.execute_async_v3(self._stream.handle)
        errors = [error for each in self._allocators.values() if (error := each.error()) is not None]
        if errors:
            raise errors[0]
        self._do(is_enqueued, "the execution")

    def collect(self) -> dict[str, DeviceArray]:
        """The outputs whose shape the execution found out; the caller owns them.

        Raises:
            ExecutionError: TensorRT did not tell one of the shapes.
        """
        found: dict[str, DeviceArray] = {}
        for name, allocator in self._allocators.items():
            if self.output_shapes[name] is None:
                array = allocator.collect(self._tensors.dtypes[name])
                if array is None:
                    raise ExecutionError(f"TensorRT did not tell the shape of {name}{self._why()}")
                found[name] = array
        return found

    def discard(self) -> None:
        """Gives back what a failed execution left behind, and forgets the shapes."""
        self._shapes = None
        for allocator in self._allocators.values():
            allocator.discard()

    def close(self) -> None:
        """Destroys the context; harmless when repeated. No execution may be under way."""
        self.discard()
        self._inner = None
        self._allocators.clear()
        self._hosts.clear()

    def _shape_of(self, name: str) -> tuple[int, ...] | None:
        shape = tuple(self._inner.get_tensor_shape(name))
        if all(size >= 0 for size in shape):
            return shape
        if name not in self._allocators:
            self._allocators[name] = output_allocator(self._api, self._pool)
            self._do(
                self._inner.set_output_allocator(name, self._allocators[name]), f"the allocator of {name}"
            )
        return None

    def _do(self, is_done: bool, what: str) -> None:
        if not is_done:
            raise ExecutionError(f"TensorRT refuses {what}{self._why()}")

    def _why(self) -> str:
        words = self._log.why()
        # What was said of this failure says nothing of the next.
        self._log.messages.clear()
        return f": {words}" if words else ""
