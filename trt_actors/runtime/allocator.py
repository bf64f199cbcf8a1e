"""Memory for outputs whose shape only the execution itself finds out."""

from __future__ import annotations

from typing import Any

import numpy as np

from .memory import Block, Pool
from .values import DeviceArray

__all__ = ["output_allocator"]


def output_allocator(api: Any, pool: Pool) -> Any:
    """An allocator of a flavour's own ``IOutputAllocator`` type for one output.

    ``collect(dtype)`` returns the array of the execution just enqueued and forgets it, ``discard()`` gives
    its memory back, and ``error()`` says what went wrong inside a callback.
    """

    class Allocator(api.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IOutputAllocator.__init__(self)
            self._block: Block | None = None
            self._shape: tuple[int, ...] | None = None
            self._error: MemoryError | None = None

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int | None:
            if self._block is not None and self._block.size_bytes >= size:
                return self._block.pointer
            self.discard()
            # An exception must not travel through TensorRT.
            try:
                self._block = pool.take(size)
            except MemoryError as error:
                self._error = error
                return None
            return self._block.pointer

        def reallocate_output_async(
            self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int | None:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self._shape = tuple(shape)

        def collect(self, dtype: np.dtype) -> DeviceArray | None:
            block, shape = self._block, self._shape
            if block is None or shape is None:
                return None
            self._block = self._shape = None
            return DeviceArray(pointer=block.pointer, shape=shape, dtype=dtype, owner=block)

        def discard(self) -> None:
            block, self._block = self._block, None
            self._shape = None
            if block is not None:
                block.release()

        def error(self) -> MemoryError | None:
            error, self._error = self._error, None
            return error

    return Allocator()
