"""Preflight: everything that can be wrong is found here, before any actor starts."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from ..datasets.discovery import discover, snapshot_digest
from ..datasets.filters import Filter
from ..datasets.footers import Dataset, inspect, read_schema
from ..datasets.output import HIDDEN, Output, refuse_foreign
from ..datasets.reading import Projection
from ..datasets.storage import Storage, foreign_errors
from ..errors import MismatchError, OutputError, UsageError
from ..trt_actors.hooks import load_hook
from ..trt_actors.model import Model, load_model
from .calibrate_spec import CalibrateSpec
from .int8 import FoundTable, quantized_model, wants_table
from .int8_score import settle_table
from .network import Fitted, fit
from .spec import ScoreSpec

__all__ = ["Plan", "Quantized", "feed_identity", "make_plan"]


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """The int8 network that a job made of a model in single precision.

    Attributes:
        model: With quantizers; the digest is still that of the model in single precision.
        found: The table it was made with.
    """

    model: Model
    found: FoundTable


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked job.

    Attributes:
        spec: What was asked.
        model: The loaded model.
        quantized: What runs in its place in int8; None where it runs itself.
        schema: Of the data, partition columns included.
        dataset: Its files and row groups.
        projection: What is read of them.
        fitted: The network and its bindings.
        storage: Where results go.
        fingerprint: Everything that decides the output's content.
        existing: The output's newest generation; None where there is none.
    """

    spec: ScoreSpec
    model: Model
    quantized: Quantized | None
    schema: pa.Schema
    dataset: Dataset
    projection: Projection
    fitted: Fitted
    storage: Storage
    fingerprint: Mapping[str, Any]
    existing: Output | None


def make_plan(
    spec: ScoreSpec,
    calibrate: Callable[[CalibrateSpec], object] | None = None,
    *,
    tries_output: bool = True,
) -> Plan:
    """Loads the model, reads the dataset's footers, fits both together and looks at the output.

    Args:
        spec: What was asked.
        calibrate: Makes a calibration table that is not found and keeps it where it is looked for; None for
            nobody does.
        tries_output: Whether to find out by writing that the output can be written; else nothing is written.

    Raises:
        TrtfleetError: Whatever would make the job fail later and can be seen now.
    """
    model = load_model(spec.model)
    if model.batch is not None and spec.batch_size is not None and spec.batch_size > model.batch:
        raise MismatchError(
            f"--batch-size {spec.batch_size} exceeds the model's fixed batch size {model.batch}",
            f"say --batch-size {model.batch} or export the model with a free batch dimension",
        )
    for hook in (spec.preprocess, spec.postprocess):
        if hook is not None:
            load_hook(hook, os.getcwd())
    files = discover(spec.data)
    schema = read_schema(files)
    quantized = None
    if wants_table(spec.precision, model.proto, {"table": spec.table, "exclude": spec.exclude}):
        quantized = _quantize(spec, model, schema, calibrate)
    fitted = fit(spec, quantized.model if quantized else model, schema)
    where = None if spec.filter is None else Filter(spec.filter)
    needed = dict.fromkeys([*fitted.columns, *sorted(where.columns if where else ())])
    if where is not None:
        where.check(schema)
    dataset = inspect(files, list(needed), where)
    storage = Storage(spec.out)
    for location in {Storage(location).url for location in spec.data} - {file.url for file in files}:
        if f"{storage.url}/".startswith(f"{location}/"):
            raise UsageError(
                f"the output {storage.url} lies inside the data {location}, which would make it data",
                "write results beside the data",
            )
    fingerprint = _fingerprint(spec, model, fitted, len(files), snapshot_digest(files))
    if quantized is not None:
        fingerprint["calibration"] = quantized.found.table.digest
        fingerprint["exclude"] = sorted(set(spec.exclude))
    return Plan(
        spec=spec,
        model=model,
        quantized=quantized,
        schema=schema,
        dataset=dataset,
        projection=Projection(columns=fitted.columns, partitions=dataset.partitions, where=where),
        fitted=fitted,
        storage=storage,
        fingerprint=fingerprint,
        existing=_look_at(storage, fingerprint, spec, tries=tries_output),
    )


def _quantize(
    spec: ScoreSpec, model: Model, schema: pa.Schema, calibrate: Callable[[CalibrateSpec], object] | None
) -> Quantized:
    def checked(calibration: CalibrateSpec) -> None:
        # What is wrong with the options is said before anything is calibrated.
        fit(replace(spec, precision="fp32", table=None, exclude=(), use_calib_mode=False), model, schema)
        if calibrate is not None:
            calibrate(calibration)

    existing = None if spec.overwrite else Output.latest(Storage(spec.out))
    begun = {} if existing is None else existing.job.fingerprint
    standing = begun.get("calibration") if begun.get("model") == model.digest else None
    found = settle_table(spec, model, feed_identity(spec), standing=standing, calibrate=checked)
    external = model.external_folder is not None
    proto = quantized_model(model.proto, spec.model, found, external=external)
    return Quantized(model=replace(model, proto=proto), found=found)


def _look_at(
    storage: Storage, fingerprint: Mapping[str, Any], spec: ScoreSpec, *, tries: bool
) -> Output | None:
    if storage.is_local and os.path.exists(storage.root) and not os.path.isdir(storage.root):
        raise OutputError(f"{storage.url} is a file", "name a folder")
    existing = Output.latest(storage)
    if existing is None:
        with foreign_errors(OutputError, f"cannot read {storage.url}"):
            refuse_foreign(storage)
    elif spec.overwrite:
        existing.require_kind(fingerprint)
    else:
        existing.require(fingerprint)
    if not tries:
        return existing
    probe = f"{HIDDEN}/probe-{secrets.token_hex(4)}"
    with foreign_errors(OutputError, f"cannot write to {storage.url}"):
        storage.put(probe, b"")
        storage.delete([probe])
    return existing


def _fingerprint(spec: ScoreSpec, model: Model, fitted: Fitted, files: int, snapshot: str) -> dict[str, Any]:
    inputs = {b.input.name: list(b.columns) for b in fitted.bindings or ()}
    return {
        "model": model.digest,
        "data": f"{files} files, snapshot {snapshot[:16]}",
        "input": inputs or {name: list(columns) for name, columns in spec.input.items()},
        "keep": list(spec.keep),
        "emit": spec.emit,
        "output": list(spec.output),
        "postprocess": _hook_identity(spec.postprocess),
        "columns": list(spec.columns),
        "filter": spec.filter,
        **feed_identity(spec),
        "image_decoder": spec.image_decoder,
        "precision": spec.precision,
        "batch_size": spec.batch_size or "auto",
        "shard_bytes": spec.shard_bytes or "auto",
        "compression": spec.compression,
    }


def feed_identity(spec: ScoreSpec) -> dict[str, Any]:
    """The options that decide what a row becomes in front of the network, as plain values."""
    return {
        "normalize": spec.normalize,
        "layout": spec.layout,
        "resize": None if spec.resize is None else list(spec.resize),
        "preprocess": _hook_identity(spec.preprocess),
        # As text: NaN is not equal to itself.
        "fill_null": None if spec.fill_null is None else repr(spec.fill_null),
        "pad_to": spec.pad_to,
        "pad_value": spec.pad_value,
        "mask": list(spec.mask),
    }


def _hook_identity(name: str | None) -> str | None:
    """The hook's name with a digest of its source, so that an edited hook is another job."""
    if name is None:
        return None
    module = sys.modules.get(name.partition(":")[0])
    path = getattr(module, "__file__", None)
    if path is None or not os.path.isfile(path):
        return name
    with open(path, "rb") as file:
        return f"{name}@{hashlib.sha256(file.read()).hexdigest()[:12]}"
