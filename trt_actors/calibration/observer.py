"""Runs batches through a network and collects statistics of its tensors: the contract, and the CPU.

An observer computes on one device. Each unit of work has a collection of its own, so that several units may
be under way; the observer runs their batches one after another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np

from ...datasets.storage import one_line
from ...errors import ModelError
from .collector import Collector
from .observed import ObservedNetwork
from .session import CPU, open_session
from .statistics import Statistics

__all__ = [
    "Collection",
    "HostObserver",
    "Observer",
    "counted_elements",
    "filled",
]


class Collection(Protocol):
    """The statistics of one unit of work, as far as its batches have run."""

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Runs a batch and counts the values of its tensors; activations are dropped at once.

        Args:
            arrays: (rows, ...) by input name, rows at least 1.

        Raises:
            ModelError: The network does not run on these rows.
        """

    def statistics(self) -> Statistics:
        """What was counted, by tensor; waits for what is under way."""

    def close(self) -> None:
        """Gives up its memory; harmless when repeated."""


class Observer(Protocol):
    """A network on one device; not thread-safe.

    Attributes:
        backend: What executes: ``onnxruntime-cpu`` or ``onnxruntime-cuda``.
    """

    backend: str

    def open(self) -> Self:
        """Acquires the device and loads the network.

        Raises:
            ModelError: The network cannot be loaded.
            BackendError: The device or its libraries are not available.
        """

    def collection(self) -> Collection:
        """A new, empty collection."""

    def close(self) -> None:
        """Releases device and memory; harmless when repeated."""


def filled(arrays: Mapping[str, np.ndarray], fixed: int | None) -> tuple[dict[str, np.ndarray], int, int]:
    """A batch as the network takes it.

    A network of any batch size gets the rows as they are: which of a tensor's values are of which row need
    then not be known. For a fixed batch size the last row is repeated.

    Args:
        arrays: (rows, ...) by input name.
        fixed: The batch size that the network insists on; None for any.

    Returns:
        Contiguous arrays, how many rows count, and how many there are with the repeated ones.
    """
    rows = len(next(iter(arrays.values())))
    missing = 0 if fixed is None else fixed - rows
    made = {
        name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
        if missing
        else np.ascontiguousarray(array)
        for name, array in arrays.items()
    }
    return made, rows, rows + missing


def counted_elements(shape: Sequence[int], rows: int, batch: int) -> int:
    """How many leading elements of a tensor count, in C order.

    In a batch that was filled up, those of its own rows: the leading ones, where the first dimension is the
    batch or a multiple of it. In a tensor of another form all elements count. Those of repeated rows are then
    values that the network does compute of a row of the sample, only counted more than once.

    Args:
        shape: Of the tensor.
        rows: Rows that count.
        batch: Rows of the batch.
    """
    size = math.prod(shape)
    if rows == batch or not shape or shape[0] % batch:
        return size
    return size // batch * rows


class HostObserver:
    """ONNX Runtime on the CPU, on one thread; see ``Observer``.

    Args:
        network: What to run.
    """

    backend = "onnxruntime-cpu"

    def __init__(self, network: ObservedNetwork) -> None:
        self._network = network
        self._session: Any = None

    def open(self) -> Self:
        """Creates the session."""
        self._session = open_session(self._network.network, [CPU])
        return self

    def collection(self) -> HostCollection:
        """A new, empty collection."""
        return HostCollection(self._session, self._network)

    def close(self) -> None:
        """Drops the session."""
        self._session = None


class HostCollection:
    """Statistics of activations in host memory; see ``Collection``."""

    def __init__(self, session: Any, network: ObservedNetwork) -> None:
        self._session = session
        self._tensors = network.tensors
        self._fixed = network.network.inputs[0].batch
        self._collector = Collector()

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Runs a batch; see ``Collection.add``."""
        feeds, rows, batch = filled(arrays, self._fixed)
        try:
            found = self._session.run(list(self._tensors.values()), feeds)
        except Exception as error:
            raise ModelError(
                f"the network does not run on a batch: {one_line(error)}",
                "does it run in onnxruntime by itself?",
            ) from error
        for tensor, values in zip(self._tensors, found, strict=True):
            self._collector.add(tensor, values.reshape(-1)[: counted_elements(values.shape, rows, batch)])

    def statistics(self) -> Statistics:
        """What was counted; see ``Collection.statistics``."""
        return self._collector.statistics()

    def close(self) -> None:
        """Does nothing: memory goes with the object."""
