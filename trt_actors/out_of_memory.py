"""Telling that memory ran out from everything else that a runtime may raise."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ..datasets.storage import one_line
from ..errors import BackendError
from .engine import Engine

__all__ = ["OutOfMemoryError", "free_slots", "out_of_memory"]

# Runtimes have no exception of their own for it: ONNX Runtime's arena, CUDA, cuBLAS, cuDNN, the C++ library.
_WORDS = (
    "failed to allocate memory",
    "out of memory",
    "alloc_failed",
    "bad_alloc",
    "bad allocation",
    "cudaerrormemoryallocation",
)


class OutOfMemoryError(BackendError):
    """There is no memory for a batch of this size; what the runtime raised is chained."""


def out_of_memory(error: BaseException, rows: int) -> OutOfMemoryError | None:
    """What a runtime raised as the lack of memory that it tells of, or None when it tells of something else.

    Args:
        error: What the execution of a batch raised, or filling its slot.
        rows: Of the batch.
    """
    if isinstance(error, OutOfMemoryError):
        return error
    # ONNX Runtime tells at the end of a long text, at times in its second line.
    words = str(error).lower()
    if not isinstance(error, MemoryError) and not any(word in words for word in _WORDS):
        return None
    told = OutOfMemoryError(
        f"no memory is left for a batch of {rows:,} {'row' if rows == 1 else 'rows'}: {one_line(error)}",
        "lower --batch-size, or leave more of the device to this job",
    )
    told.__cause__ = error
    return told


@runtime_checkable
class _FreesSlots(Protocol):
    """An engine whose slots hold memory of a device until somebody says so."""

    def free_slots(self) -> None:
        """Frees all slots made so far, none of which is used any more."""


def free_slots(engine: Engine) -> None:
    """Gives back the memory of every slot that an engine made; there may be no batch on it, nor come one.

    Slots in host memory go by themselves with their last reference.
    """
    if isinstance(engine, _FreesSlots):
        engine.free_slots()
