"""``trtfleet partition``: which parts of a network TensorRT would run, without building anything."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..trt_actors.building.flavour import Flavour, find_flavour
from ..trt_actors.building.network_build import partition_network
from ..trt_actors.building.options import BuildOptions
from ..trt_actors.building.precision import to_precision
from ..trt_actors.cache.objects import blob_path
from ..trt_actors.cache.store import EngineCache
from ..trt_actors.model import load_file
from ..trt_actors.partition.partition import Partition
from ..trt_actors.runtime.program import plan_file
from ..trt_actors.task import TensorRTSettings
from ..trt_actors.tensorrt_backend import identity_here
from .int8 import quantized_file
from .partition_html import write_partition_html
from .partition_onnx import write_partition_onnx

__all__ = ["PartitionReport", "run_partition"]


@dataclass(frozen=True, kw_only=True)
class PartitionReport:
    """A partition and the files that show it.

    Attributes:
        model: The model's path.
        partition: How it was cut.
        written: Files that were written, with what they are.
        calibration: With which table the model was quantized; empty where it was not.
    """

    model: str
    partition: Partition
    written: tuple[tuple[str, str], ...] = ()
    calibration: str = ""

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "model": self.model,
            **self.partition.as_json(),
            "files": [path for path, _ in self.written],
            "calibration": self.calibration,
        }

    def lines(self) -> list[str]:
        """The report in words."""
        calibration = [self.calibration] if self.calibration else []
        files = [f"{what}: {path}" for path, what in self.written]
        return [*self.partition.lines(), *calibration, *files]


def run_partition(
    model: str,
    options: BuildOptions,
    *,
    table: str | None = None,
    exclude: Sequence[str] = (),
    html: str | None = None,
    save: str | None = None,
    cache: str | None = None,
) -> PartitionReport:
    """Cuts a model and shows the outcome.

    Args:
        model: ONNX file or Paddle model.
        options: Precision, excluded operators and limits.
        table: File of the calibration table that a model in single precision is quantized with for int8;
            None takes the newest one kept.
        exclude: What is not quantized, besides what the calibration left out.
        html: Where a page with both networks goes.
        save: Where the cut network goes, as ONNX with one node a TensorRT segment.
        cache: Where the plans are that those nodes point to, if they were built; None for the default cache.

    Raises:
        TrtfleetError: The model cannot be read or cut, or a file cannot be written.
    """
    flavour = find_flavour()
    loaded = load_file(model)
    loaded, found = quantized_file(model, loaded, options.precision, table, exclude, cache)
    network = to_precision(loaded.proto, options)
    partition = partition_network(network.model, options, flavour, original=loaded.proto)
    written = []
    if html:
        write_partition_html(partition, html, os.path.basename(model))
        written.append((html, "both networks"))
    if save:
        settings = TensorRTSettings(
            options=options,
            model_digest=loaded.digest,
            cache=cache,
            calibration=None if found is None else found.identity,
        )
        write_partition_onnx(partition, save, _cached_plans(partition, settings, flavour))
        written.append((save, "transformed network"))
    return PartitionReport(
        model=model,
        partition=partition,
        written=tuple(written),
        calibration="" if found is None else found.sentence,
    )


def _cached_plans(partition: Partition, settings: TensorRTSettings, flavour: Flavour) -> dict[str, str]:
    """Where the plans of the segments lie, by segment; empty when they were not built."""
    identity, store = identity_here(settings, "", flavour), EngineCache(settings.cache)
    entry = None if identity is None else store.find(identity)
    if entry is None:
        return {}
    return {
        segment.name: f"{store.url}/{blob_path(entry.file(plan_file(place)).sha256)}"
        for place, segment in enumerate(partition.segments)
        if segment.kind == "tensorrt"
    }
