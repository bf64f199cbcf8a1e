"""What an actor of a job is expected to need of memory, from sizes that are known before it starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx

from ..datasets.footers import Dataset
from ..datasets.signature import TensorSpec
from ..errors import TrtfleetError
from ..trt_actors.calibration.observed import ObservedNetwork
from ..trt_actors.prepared import Prepared

__all__ = ["ExpectedMemory", "activation_bytes", "batch_slots", "read_ahead", "row_bytes"]

PROCESS_BYTES = 200 << 20
"""Of a worker with Python, Ray, Arrow and ONNX Runtime, before any model."""

_COPIES_OF_MODEL = 2
_HOST_SLOTS, _DEVICE_SLOTS = 4, 6
_GROUPS_AHEAD = 6
_LARGE_GROUP_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class ExpectedMemory:
    """The parts of an estimate, in bytes; what is not known beforehand is named.

    Attributes:
        process_bytes: Python and its libraries.
        model_bytes: The network as it is sent, and as the runtime holds it.
        read_bytes: What is read ahead of the network.
        batch_bytes: Inputs and outputs of the batches in flight.
        activation_bytes: What else a batch makes on the host that is kept; calibrations count it.
        device_bytes: On a GPU: weights, batches, and the workspace where one is given; 0 without a GPU.
        is_limit: Whether the batch size is not known yet, and its limit was taken.
        unknown: What is not in it, in words.
    """

    process_bytes: int = PROCESS_BYTES
    model_bytes: int = 0
    read_bytes: int = 0
    batch_bytes: int = 0
    activation_bytes: int = 0
    device_bytes: int = 0
    is_limit: bool = False
    unknown: tuple[str, ...] = ()

    @property
    def host_bytes(self) -> int:
        """Everything on the host."""
        return (
            self.process_bytes + self.model_bytes + self.read_bytes + self.batch_bytes + self.activation_bytes
        )

    @classmethod
    def of_scoring(
        cls,
        network: Prepared,
        *,
        read_bytes: int,
        rows: int,
        is_limit: bool,
        on_device: bool,
        workspace_bytes: int = 0,
    ) -> ExpectedMemory:
        """Of an actor that scores.

        Args:
            network: What it runs.
            read_bytes: What it reads ahead.
            rows: Rows a batch.
            is_limit: Whether these are a limit.
            on_device: Whether it has a GPU.
            workspace_bytes: What TensorRT may take beside tensors.
        """
        unknown = [] if on_device else ["the network's activations"]
        weights = len(network.model_bytes)
        if network.external_folder is not None:
            unknown.append("weights outside the ONNX file")
        if not all(spec.is_static for spec in (*network.inputs, *network.outputs)):
            unknown.append("rows of varying size")
        batch_bytes = batch_slots(on_device) * rows * row_bytes((*network.inputs, *network.outputs))
        device_bytes = weights + batch_bytes + workspace_bytes if on_device else 0
        if on_device:
            unknown.append("the GPU's libraries and context, and the network's activations there")
        return cls(
            model_bytes=_COPIES_OF_MODEL * weights,
            read_bytes=read_bytes,
            batch_bytes=batch_bytes,
            device_bytes=device_bytes,
            is_limit=is_limit,
            unknown=tuple(unknown),
        )


def batch_slots(on_device: bool) -> int:
    """Batches in flight inside an actor that scores."""
    return _DEVICE_SLOTS if on_device else _HOST_SLOTS


def row_bytes(specs: Iterable[TensorSpec]) -> int:
    """Bytes of one row of those tensors whose rows have a fixed size."""
    return sum(spec.row_bytes for spec in specs if spec.is_static)


def _largest_group_bytes(dataset: Dataset) -> int:
    """Uncompressed bytes of the largest row group that is read, the columns read alone."""
    return max((group.size_bytes for _, groups in dataset.files for group in groups if group.keep), default=0)


def read_ahead(dataset: Dataset, in_flight: int, prefetch_bytes: int, most_bytes: int) -> int:
    """What is read ahead for all pieces of work that an actor holds.

    A large row group is read whole, and several at once.

    Args:
        dataset: Its row groups.
        in_flight: Pieces of work that an actor holds at once.
        prefetch_bytes: What is read ahead for each.
        most_bytes: Of the largest piece.
    """
    group_bytes = _largest_group_bytes(dataset)
    ahead_bytes = prefetch_bytes
    if group_bytes > _LARGE_GROUP_BYTES:
        ahead_bytes = max(prefetch_bytes, _GROUPS_AHEAD * group_bytes)
    return in_flight * min(ahead_bytes, max(most_bytes, group_bytes))


def activation_bytes(observed: ObservedNetwork) -> tuple[int, int]:
    """Bytes a row of the tensors that a calibration observes, and of how many of them nothing is known."""
    sizes: Sequence[int | None]
    try:
        proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(observed.network.model_bytes))
    except (onnx.shape_inference.InferenceError, TrtfleetError, ValueError):
        return 0, len(observed.tensors)
    graph = proto.graph
    found = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input, *graph.output)}
    sizes = [_row_bytes(found.get(name)) for name in observed.tensors.values()]
    return sum(size for size in sizes if size is not None), sum(1 for size in sizes if size is None)


def _row_bytes(kind: onnx.TypeProto.Tensor | None) -> int | None:
    """Bytes of a row of float32 values, where all but the first dimension are known."""
    if kind is None or not kind.HasField("shape"):
        return None
    elements = 1
    for dim in kind.shape.dim[1:]:
        if not dim.HasField("dim_value"):
            return None
        elements *= dim.dim_value
    return 4 * elements
