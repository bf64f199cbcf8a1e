"""Preflight of a comparison: everything that can be wrong is found here, before any actor starts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from ..datasets.discovery import discover, snapshot_digest
from ..datasets.footers import Dataset, inspect, read_schema
from ..datasets.reading import Projection
from ..datasets.sampling import sample_rows
from ..datasets.storage import Storage
from ..trt_actors.calibration.table_store import TableStore
from ..trt_actors.comparison.layers import Lineage, common_tensors, with_tensors
from ..trt_actors.comparison.outputs import OutputPair, pair_outputs
from ..trt_actors.comparison.runner import match_inputs
from ..trt_actors.comparison.task import CompareTask
from ..trt_actors.hooks import load_hook
from ..trt_actors.model import Model, load_model
from ..trt_actors.prepared import Prepared
from ..trt_actors.task import TensorRTSettings
from .calibrate_plan import batch_rows, check_target
from .compare_int8 import Int8, dequantized_readers, quantize_second
from .compare_spec import CompareSpec
from .network import Fitted, fit
from .plan import feed_identity
from .spec import ScoreSpec

__all__ = ["ComparePlan", "make_compare_plan"]


@dataclass(frozen=True, kw_only=True)
class ComparePlan:
    """A checked comparison.

    Attributes:
        spec: What was asked.
        digests: Of both model files.
        int8: How the second network was quantized here; None where it was not.
        dataset: Files and row groups.
        projection: What is read of them.
        first: The first network, and its bindings.
        second: The second.
        source: For trials: the network that quantizers are put into; None without a suggestion.
        inputs: The second network's input for each of the first one's.
        pairs: The outputs that are compared.
        layers: The inner tensors that are compared, and where they come from in the second network.
        excludable: The nodes of the second network that compute in integers.
        rows: int64[n], the sampled rows, by number in dataset order.
        seed: That they were drawn with.
        batch_size: Rows a batch.
        settings: How TensorRT engines of both networks are built.
        fingerprint: Everything that decides what is found out about a unit.
    """

    spec: CompareSpec
    digests: tuple[str, str]
    int8: Int8 | None
    dataset: Dataset
    projection: Projection
    first: Fitted
    second: Fitted
    source: Prepared | None
    inputs: Mapping[str, str]
    pairs: tuple[OutputPair, ...]
    layers: Mapping[str, Lineage] = field(default_factory=dict)
    excludable: frozenset[str] = frozenset()
    rows: np.ndarray
    seed: int
    batch_size: int
    settings: tuple[TensorRTSettings, TensorRTSettings]
    fingerprint: Mapping[str, Any]

    @property
    def options(self) -> CompareSpec:
        """What was asked, also of the actors."""
        return self.spec

    @property
    def names(self) -> tuple[str, str]:
        """Both networks, for people."""
        first, second = (os.path.basename(path) for path in (self.spec.model_a, self.spec.model_b))
        precision = "" if self.spec.precision_b == "fp32" else f" in {self.spec.precision_b}"
        return first, f"{second}{precision}"

    @property
    def job(self) -> str:
        """The command's name."""
        return "compare"

    @property
    def label(self) -> str:
        """Both networks in one line."""
        return " and ".join(self.names)

    @property
    def work(self) -> Storage:
        """Where what is known of units is kept until the comparison is done."""
        digest = hashlib.sha256(json.dumps(dict(self.fingerprint), sort_keys=True).encode()).hexdigest()
        return Storage(f"{TableStore(self.spec.cache).url}/comparison/{digest[:20]}")

    def task(self, threads: int) -> CompareTask:
        """What actors of so many threads are told."""
        spec, tensors = self.spec, tuple(self.layers)
        first, second = self.first.network, self.second.network
        if tensors:
            first, second = with_tensors(first, tensors), with_tensors(second, tensors)
        return CompareTask(
            **replace(self.first, network=first).feeding(spec, self.projection, threads),
            keep=spec.keep,
            other=second,
            inputs=self.inputs,
            pairs=self.pairs,
            layers=tensors,
            worst=spec.worst,
            backend=spec.backend,
            log_format=spec.log_format,
            batch_timeout_s=spec.batch_timeout,
            settings=self.settings[0],
            settings_b=self.settings[1],
        )

    def trial_task(self, threads: int) -> CompareTask:
        """What actors are told that try other exclusions."""
        task = replace(self, layers={}).task(threads)
        scales = {} if self.int8 is None else self.int8.scales
        return replace(task, worst=0, keep=(), source=self.source, scales=scales)


def make_compare_plan(spec: CompareSpec) -> ComparePlan:
    """Loads both models, quantizes the second if need be, and fits them with the dataset.

    Raises:
        TrtfleetError: Whatever would make the comparison fail later and can be seen now.
    """
    if spec.report is not None:
        check_target(spec.report)
    if spec.preprocess is not None:
        load_hook(spec.preprocess, os.getcwd())
    model_a = load_model(spec.model_a)
    model_b = model_a if spec.model_b == spec.model_a else load_model(spec.model_b)
    feeding = spec.feeding
    names = match_inputs(model_a.inputs, model_b.inputs)
    feeding_b = replace(
        feeding,
        model=spec.model_b,
        input={names.get(name, name): columns for name, columns in spec.input.items()},
        mask=tuple(names.get(name, name) for name in spec.mask),
        keep=(),
        precision=spec.precision_b,
    )
    feed = feed_identity(feeding)
    int8 = quantize_second(spec, model_b, feeding_b, feed)
    files = discover(spec.data)
    schema = read_schema(files)
    first = fit(feeding, model_a, schema)
    second = fit(feeding_b, model_b if int8 is None else int8.model, schema)
    source = None
    if spec.suggest_exclude and int8 is not None:
        source = fit(replace(feeding_b, precision="fp32"), int8.source, schema).network
    dataset = inspect(files, first.columns, None)
    seed = _seed(spec, int8)
    rows = sample_rows(dataset.rows, spec.wanted_rows, seed)
    batch_size = batch_rows(spec.batch_size, model_a)
    layers, excludable = _layers(spec, first, second, int8)
    inputs = {b.input.name: list(b.columns) for b in first.bindings or ()}
    return ComparePlan(
        spec=spec,
        digests=(model_a.digest, model_b.digest),
        int8=int8,
        dataset=dataset,
        projection=Projection(columns=first.columns, partitions=dataset.partitions),
        first=first,
        second=second,
        source=source,
        inputs=match_inputs(first.network.inputs, second.network.inputs),
        pairs=pair_outputs(first.network.outputs, second.network.outputs, (spec.model_a, spec.model_b)),
        layers=layers,
        excludable=excludable,
        rows=rows,
        seed=seed,
        batch_size=batch_size,
        settings=(
            _settings(feeding, model_a, None),
            _settings(feeding_b, model_b, None if int8 is None else int8.found.identity),
        ),
        fingerprint={
            "model_a": model_a.digest,
            "model_b": model_b.digest,
            "precision_b": spec.precision_b,
            "calibration": None if int8 is None else int8.found.identity,
            "data": f"{len(files)} files, snapshot {snapshot_digest(files)[:16]}",
            "input": inputs or {name: list(columns) for name, columns in spec.input.items()},
            "columns": list(spec.columns),
            "keep": list(spec.keep),
            "samples": len(rows),
            "seed": seed,
            "batch_size": batch_size,
            "worst": spec.worst,
            "tensors": hashlib.sha256("\0".join(layers).encode()).hexdigest()[:16],
            "backend": spec.backend,
            **feed,
        },
    )


def _seed(spec: CompareSpec, int8: Int8 | None) -> int:
    """The seed of the drawing; by default not the calibration's, whose own rows would flatter its table."""
    if spec.seed is not None:
        return spec.seed
    return 0 if int8 is None else int8.found.table.seed + 1


def _settings(feeding: ScoreSpec, model: Model, calibration: str | None) -> TensorRTSettings:
    return TensorRTSettings(
        options=feeding.build_options,
        model_digest=model.digest,
        cache=feeding.cache,
        calibration=calibration,
    )


def _layers(
    spec: CompareSpec, first: Fitted, second: Fitted, int8: Int8 | None
) -> tuple[Mapping[str, Lineage], frozenset[str]]:
    """The inner tensors to compare, and the nodes to blame among those that make them."""
    if not spec.per_layer:
        return {}, frozenset()
    wanted = None if int8 is None else int8.tensors
    _, layers = common_tensors(first.network, second.network, wanted)
    if int8 is not None:
        return layers, int8.nodes
    return layers, dequantized_readers(onnx.load_from_string(second.network.model_bytes))
