"""The second network of a comparison in int8: its table, its quantizers, and what could be left out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import onnx

from ..errors import UsageError
from ..trt_actors.model import Model
from ..trt_actors.quantization.placement import Placement, Site, place
from ..trt_actors.quantization.source import quantizable
from .compare_spec import CompareSpec
from .int8 import FoundTable, find_table, no_table, quantized_model, wants_table
from .int8_score import calibrate_command
from .spec import ScoreSpec

__all__ = ["Int8", "dequantized_readers", "quantize_second"]


@dataclass(frozen=True, kw_only=True)
class Int8:
    """A network that was quantized for a comparison.

    Attributes:
        found: The table.
        model: With quantizers.
        source: The network that these were put into, in single precision.
        placement: Where they are.
    """

    found: FoundTable
    model: Model = field(repr=False)
    source: Model = field(repr=False)
    placement: Placement = field(repr=False)

    @property
    def nodes(self) -> frozenset[str]:
        """Names of the nodes that read quantized values."""
        return frozenset(site.node for site in self.placement.sites)

    @cached_property
    def tensors(self) -> frozenset[str]:
        """The tensors that are quantized, and the results of the nodes that read them so."""
        nodes = self.nodes
        made = {name for node in self.source.proto.graph.node if node.name in nodes for name in node.output}
        return frozenset(made) | frozenset(self.placement.activations)

    @property
    def scales(self) -> Mapping[tuple[str, int], float]:
        """Width of an int8 step of what an input of a node reads, by node and input."""
        widths = self.found.table.scales
        return {
            (site.node, site.input): widths[site.tensor]
            for site in self.placement.sites
            if not site.is_weight
        }

    def sites_without(self, nodes: Collection[str]) -> tuple[Site, ...] | None:
        """What reads quantized values when these nodes are excluded too; None when nothing would."""
        exclude = dict.fromkeys((*self.found.table.excluded, *self.found.excluded, *sorted(nodes)))
        try:
            return place(self.source.proto, tuple(exclude)).sites
        except UsageError:
            return None


def quantize_second(
    spec: CompareSpec, model: Model, feeding: ScoreSpec, feed: Mapping[str, Any]
) -> Int8 | None:
    """Quantizes the second model with its table.

    Args:
        spec: The comparison.
        model: The second model.
        feeding: The scoring job that would feed it.
        feed: What decides the values fed.

    Returns:
        None where it runs as it is.

    Raises:
        CalibrationError: There is no table, or not of this model.
        UsageError: A suggestion is asked for, and the model is quantized already.
        ModelError: It cannot be quantized.
    """
    if not wants_table(spec.precision_b, model.proto, {"table": spec.table, "exclude": spec.exclude}):
        if spec.suggest_exclude:
            raise UsageError(
                f"{spec.model_b} is already quantized, and a suggestion tries other ways to quantize it",
                "give the model in single precision that it was made from",
            )
        return None
    found = find_table(
        spec.model_b,
        model.digest,
        given=spec.table,
        cache=spec.cache,
        feed=feed,
        excluded=spec.exclude,
    )
    if found is None:
        command = calibrate_command(feeding)
        raise no_table(spec.model_b, model.digest, spec.cache, feed, command)
    external = model.external_folder is not None
    proto = quantized_model(model.proto, spec.model_b, found, external=external)
    source = quantizable(model.proto)
    return Int8(
        found=found,
        model=replace(model, proto=proto),
        source=replace(model, proto=source),
        placement=place(source, tuple(dict.fromkeys((*found.table.excluded, *found.excluded)))),
    )


def dequantized_readers(proto: onnx.ModelProto) -> frozenset[str]:
    """The nodes that read what a DequantizeLinear made of a quantized activation or weight."""
    made = {name for node in proto.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return frozenset(node.name for node in proto.graph.node if made.intersection(node.input))
