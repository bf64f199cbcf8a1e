"""Preflight of a calibration: everything that can be wrong is found here, before any actor starts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..datasets.discovery import discover, snapshot_digest
from ..datasets.footers import Dataset, inspect, read_schema
from ..datasets.reading import Projection
from ..datasets.sampling import sample_rows
from ..datasets.storage import Storage
from ..errors import MismatchError, ModelError, OutputError
from ..trt_actors.calibration.observed import ObservedNetwork, expose, observed
from ..trt_actors.calibration.table_store import TABLES, TableStore
from ..trt_actors.calibration.task import CalibrateTask
from ..trt_actors.hooks import load_hook
from ..trt_actors.model import Model, load_model
from ..trt_actors.quantization.placement import place
from ..trt_actors.quantization.source import quantizable
from .calibrate_spec import CalibrateSpec
from .network import Fitted, fit
from .plan import feed_identity

__all__ = ["CalibratePlan", "batch_rows", "check_target", "make_calibrate_plan"]

DEFAULT_BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class CalibratePlan:
    """A checked calibration.

    Attributes:
        spec: What was asked.
        model: The loaded model.
        dataset: Its files and row groups.
        projection: What is read of them.
        fitted: The network that takes the rows as they are stored, and its bindings.
        observed: The same network with the tensors to observe as outputs.
        rows: int64[n], the sampled rows, by number in dataset order.
        batch_size: Rows a batch.
        store: Where tables are kept.
        feed: What decides the values fed, as a table records it.
        fingerprint: Everything that decides the statistics of a unit.
    """

    spec: CalibrateSpec
    model: Model
    dataset: Dataset
    projection: Projection
    fitted: Fitted
    observed: ObservedNetwork
    rows: np.ndarray
    batch_size: int
    store: TableStore
    feed: Mapping[str, Any]
    fingerprint: Mapping[str, Any]

    @property
    def options(self) -> CalibrateSpec:
        """What was asked, also of the actors."""
        return self.spec

    @property
    def job(self) -> str:
        """The command's name."""
        return "calibrate"

    @property
    def label(self) -> str:
        """The model's file name."""
        return os.path.basename(self.spec.model)

    @property
    def work(self) -> Storage:
        """Where the statistics of units are kept until the table is stored."""
        name = json.dumps(dict(self.fingerprint), sort_keys=True).encode()
        digest = hashlib.sha256(name).hexdigest()[:20]
        return Storage(f"{self.store.url}/{TABLES}/{self.model.digest}/work/{digest}")

    def task(self, threads: int) -> CalibrateTask:
        """What actors of so many threads are told."""
        return CalibrateTask(
            **self.fitted.feeding(self.spec, self.projection, threads),
            observed=self.observed,
            backend=self.spec.backend,
            log_format=self.spec.log_format,
            batch_timeout_s=self.spec.batch_timeout,
        )


def make_calibrate_plan(spec: CalibrateSpec) -> CalibratePlan:
    """Loads the model, finds what to observe, reads the dataset's footers, and draws the sample.

    Raises:
        TrtfleetError: Whatever would make the calibration fail later and can be seen now.
    """
    for path in (spec.table, spec.report_path):
        if path is not None:
            check_target(path)
    model = load_model(spec.model)
    if model.external_folder is not None:
        raise ModelError(
            f"{spec.model}: its weights are too large to be quantized in one ONNX file", "run it in FP16"
        )
    with _named(spec.model):
        source = replace(model, proto=quantizable(model.proto))
        placement = place(source.proto, spec.exclude)
        exposed, values = expose(source, placement.activations)
    if spec.preprocess is not None:
        load_hook(spec.preprocess, os.getcwd())
    files = discover(spec.data)
    feeding = spec.feeding
    fitted = fit(feeding, exposed, read_schema(files))
    dataset = inspect(files, fitted.columns, None)
    rows = sample_rows(dataset.rows, spec.samples, spec.seed)
    batch_size = batch_rows(spec.batch_size, model)
    feed = feed_identity(feeding)
    inputs = {b.input.name: list(b.columns) for b in fitted.bindings or ()}
    return CalibratePlan(
        spec=spec,
        model=model,
        dataset=dataset,
        projection=Projection(columns=fitted.columns, partitions=dataset.partitions),
        fitted=fitted,
        observed=observed(fitted.network, values),
        rows=rows,
        batch_size=batch_size,
        store=TableStore(spec.cache),
        feed=feed,
        fingerprint={
            "model": model.digest,
            "data": f"{len(files)} files, snapshot {snapshot_digest(files)[:16]}",
            "input": inputs or {name: list(columns) for name, columns in spec.input.items()},
            "columns": list(spec.columns),
            "samples": len(rows),
            "seed": spec.seed,
            "batch_size": batch_size,
            "tensors": hashlib.sha256("\0".join(values).encode()).hexdigest()[:16],
            "backend": spec.backend,
            **feed,
        },
    )


def batch_rows(asked: int | None, model: Model) -> int:
    """Rows a batch of a sample: what was asked for, else the model's own where it is fixed, else 32.

    Raises:
        MismatchError: The model takes fewer.
    """
    if model.batch is None:
        return asked or DEFAULT_BATCH_SIZE
    if asked is not None and asked > model.batch:
        raise MismatchError(
            f"--batch-size {asked} exceeds the model's fixed batch size {model.batch}",
            f"say --batch-size {model.batch} or export the model with a free batch dimension",
        )
    return asked or model.batch


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Puts the model's path in front of what is wrong with it."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{path}: {error.fact}", error.hint) from error


def check_target(path: str) -> None:
    """Refuses, before the work starts, a file that cannot be written at its end.

    Raises:
        OutputError: It cannot.
    """
    folder = os.path.dirname(os.path.abspath(path))
    reason = ""
    if "://" in path:
        reason = "it is written on this machine alone"
    elif os.path.exists(path) and not os.path.isfile(path):
        reason = "it is not a file"
    elif not os.path.isdir(folder):
        reason = f"there is no folder {folder}"
    elif not os.access(path if os.path.exists(path) else folder, os.W_OK):
        reason = "writing there is not permitted"
    if reason:
        raise OutputError(f"cannot write {path}: {reason}", "name a file in a folder that is there")
