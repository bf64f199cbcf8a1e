"""The contract between the pipeline and whatever executes a network: engines and their slots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self, runtime_checkable

import numpy as np

from ..datasets.signature import TensorSpec
from .runtime.device_rows import DeviceRows
from .trace import Tracer

__all__ = ["Engine", "PlacingSlot", "Slot"]


class Slot(Protocol):
    """One batch on its way through an engine: the memory of its inputs and outputs.

    The engine owns the memory behind ``buffer`` and ``outputs`` and reuses it for the slot's next batch.
    """

    def buffer(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Memory to fill in place with an input of this shape (rows first), uninitialized."""

    def bind(self, name: str, array: np.ndarray) -> None:
        """Takes an input as it is.

        Engines that read host memory borrow the C-contiguous array until ``wait`` returns; others copy it
        into ``buffer``.
        """

    @property
    def outputs(self) -> Mapping[str, np.ndarray]:
        """Outputs by name, (rows, ...), valid from ``wait`` until the slot's next batch."""


@runtime_checkable
class PlacingSlot(Slot, Protocol):
    """A slot on a device, which takes inputs that lie there already."""

    def place(self, name: str, rows: DeviceRows) -> None:
        """Takes an input from the device's memory, which is kept until ``wait`` returns."""


@runtime_checkable
class Engine(Protocol):
    """Executes one network on one device.

    Constructors touch no device; ``open`` does. Slots are filled by any thread; ``enqueue`` and ``wait`` are
    called by one thread, in the same order.

    Attributes:
        backend: What executes, for reports: ``onnxruntime-cpu`` and the like.
        inputs: What to feed.
        outputs: What comes back.
        max_batch_size: Most rows a batch may have; None when nothing limits it.
        depth: How many batches are worth having on the engine at once: 1 where ``enqueue`` itself executes.
        full_rows: To how many rows devices fill smaller batches up, whose shape would cost them another plan
            or graph; None leaves batches as they are. Set before slots are made.
        device_s: Seconds that the device has spent executing, by its own clock, batches waited for only; None
            where the CPU executes.
    """

    backend: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int | None
    depth: int
    full_rows: int | None
    device_s: float | None

    def open(self) -> Self:
        """Acquires the device and loads the network.

        Raises:
            ModelError: The network cannot be loaded.
            BackendError: The device or its libraries are not available.
        """

    def slot(self) -> Slot:
        """A new slot."""

    def trace(self, tracer: Tracer) -> None:
        """Tells a tracer from now on what the device's streams do; nothing where the CPU executes."""

    def enqueue(self, slot: Slot, rows: int) -> None:
        """Starts executing the first ``rows`` rows of a filled slot."""

    def wait(self, slot: Slot) -> None:
        """Returns when the slot's outputs are valid; raises what its execution raised."""

    def close(self) -> None:
        """Releases device and memory; harmless when repeated."""
