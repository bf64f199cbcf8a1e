"""Tries other selections of quantizers on units of a sample, without making a model of each beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import onnx

from ..prepared import Prepared
from ..quantization.insert import insert_quantizers
from ..quantization.placement import Placement, Site
from .comparison import Comparison
from .outputs import OutputPair
from .runner import Runner, SessionRunner

__all__ = ["Trials", "quantized"]

_REMEMBERED_BYTES = 256 << 20

Arrays = Mapping[str, np.ndarray]


def quantized(network: Prepared, sites: Sequence[Site], scales: Mapping[tuple[str, int], float]) -> Prepared:
    """Puts quantizers into a network that has its pre-processing already.

    Args:
        network: Made of what `quantizable` gave; its nodes are those of that, with others in front.
        sites: Of a placement in what `quantizable` gave.
        scales: The width of an int8 step for each activation, by node and input.

    Returns:
        The quantized network.
    """
    proto = onnx.load_from_string(network.model_bytes)
    nodes = {node.name: node for node in proto.graph.node}
    # Pre-processing changed what the first nodes read, not which input of which node it is.
    moved = [replace(site, tensor=nodes[site.node].input[site.input]) for site in sites]
    by_tensor = {site.tensor: scales[site.node, site.input] for site in moved if not site.is_weight}
    made = insert_quantizers(proto, Placement(sites=tuple(moved), skipped={}), by_tensor)
    return replace(network, model_bytes=made.SerializeToString(deterministic=True))


@dataclass(frozen=True, kw_only=True)
class _Remembered:
    """A unit's batches with the first network's outputs."""

    batches: tuple[tuple[Arrays, Arrays], ...]
    size_bytes: int


class Trials:
    """Compares the first network with variants of its quantized one; not thread-safe.

    What the first network makes of a unit is remembered, inputs included, up to 256 MiB.

    Args:
        reference: The first network.
        source: It, as quantizers are put into it.
        scales: See ``CompareTask``.
        pairs: The outputs to compare; those of the second network are named as in ``source``.
        backend: ``onnxruntime-cuda`` or ``onnxruntime-cpu``.
    """

    def __init__(
        self,
        reference: Runner,
        source: Prepared,
        scales: Mapping[tuple[str, int], float],
        pairs: Sequence[OutputPair],
        backend: str,
    ) -> None:
        self._reference = reference
        self._source = source
        self._scales = scales
        self._pairs = tuple(pairs)
        self._backend = backend
        self._remembered: dict[str, _Remembered] = {}
        self._variant: tuple[tuple[Site, ...], SessionRunner] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drops the variant and what is remembered."""
        if self._variant is not None:
            self._variant[1].close()
        self._variant = None
        self._remembered.clear()

    def run(self, sites: tuple[Site, ...], unit: str, batches: Iterable[Arrays]) -> Comparison:
        """Compares on one unit.

        Args:
            sites: What reads quantized values.
            unit: The unit's id.
            batches: Its inputs; not read when they are remembered.

        Raises:
            ModelError: A network does not run.
        """
        variant = self._open(sites)
        total = Comparison.empty(self._pairs)
        for arrays, outputs in self._referenced(unit, batches):
            other = variant.run(arrays).outputs
            total = total.merge(Comparison.of_batch(self._pairs, outputs, other)[0], 0)
        return total

    def _open(self, sites: tuple[Site, ...]) -> SessionRunner:
        if self._variant is None or self._variant[0] != sites:
            if self._variant is not None:
                self._variant[1].close()
            network = quantized(self._source, sites, self._scales)
            self._variant = (sites, SessionRunner(self._backend, network))
        return self._variant[1]

    def _referenced(self, unit: str, batches: Iterable[Arrays]) -> Iterable[tuple[Arrays, Arrays]]:
        known = self._remembered.get(unit)
        if known is not None:
            yield from known.batches
            return
        left = _REMEMBERED_BYTES - sum(one.size_bytes for one in self._remembered.values())
        kept: list[tuple[Arrays, Arrays]] = []
        size_bytes = 0
        for arrays in batches:
            outputs = {name: np.array(array) for name, array in self._reference.run(arrays).outputs.items()}
            size_bytes += sum(array.nbytes for array in (*arrays.values(), *outputs.values()))
            if size_bytes <= left:
                kept.append(({name: np.array(array) for name, array in arrays.items()}, outputs))
            yield arrays, outputs
        if size_bytes <= left:
            self._remembered[unit] = _Remembered(batches=tuple(kept), size_bytes=size_bytes)
