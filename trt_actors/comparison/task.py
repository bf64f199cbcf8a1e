"""What every actor of a comparison is told, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..calibration.task import SampleTask
from ..prepared import Prepared
from ..task import TensorRTSettings
from .outputs import OutputPair

__all__ = ["CompareTask"]


@dataclass(frozen=True, kw_only=True)
class CompareTask(SampleTask):
    """One comparison, as an actor needs it; ``network`` is the first network, ``backend`` that of both.

    Attributes:
        other: The second network.
        inputs: Its input for each of the first one's.
        pairs: The outputs that are compared.
        layers: Inner tensors that are compared too: results of both networks, besides their ``outputs``;
            then the backend is one of ONNX Runtime.
        worst: How many of the worst rows are kept.
        settings: How TensorRT engines of the first network are built.
        settings_b: Likewise of the second.
        source: For trials: the first network as quantizers are put into it; None without any.
        scales: For trials: width of an int8 step of what an input of a node reads, by node and input.
    """

    other: Prepared
    inputs: Mapping[str, str]
    pairs: tuple[OutputPair, ...]
    layers: tuple[str, ...] = ()
    worst: int = 20
    settings: TensorRTSettings
    settings_b: TensorRTSettings
    source: Prepared | None = None
    scales: Mapping[tuple[str, int], float] = field(default_factory=dict)
