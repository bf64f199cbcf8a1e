"""What trtfleet does with bytes from anywhere, one function for each kind of file.

A target returns when bytes are good, and raises a ``TrtfleetError`` when they are not; all else is a defect.
Imported by the child process of the tests and by ``scripts/fuzz``; knows neither pytest nor hypothesis.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from trtfleet.datasets.bindings import BindingOptions, bind
from trtfleet.datasets.decode import decode
from trtfleet.datasets.discovery import discover
from trtfleet.datasets.footers import inspect, read_schema
from trtfleet.datasets.reading import Projection, ShardReader
from trtfleet.datasets.records import CommitRecord, JobRecord, RunRecord, SuccessRecord
from trtfleet.datasets.shards import plan_shards
from trtfleet.datasets.signature import TensorSpec
from trtfleet.jobs.cache import list_cache, show_engine, verify_cache
from trtfleet.jobs.spec import ScoreSpec, load_spec
from trtfleet.jobs.status import read_status
from trtfleet.trt_actors.cache.lease import LeaseRecord
from trtfleet.trt_actors.cache.prune import prune
from trtfleet.trt_actors.cache.store import EngineCache
from trtfleet.trt_actors.calibration.statistics_bytes import unpack
from trtfleet.trt_actors.calibration.table import CalibrationTable
from trtfleet.trt_actors.graph import prepare
from trtfleet.trt_actors.model import load_file, load_model
from trtfleet.trt_actors.runtime.program import NetworkProgram

__all__ = ["MOST_SHARDS", "TARGETS"]

MOST_SHARDS = 4
"""So many shards of a hostile dataset are read; planning it must be cheap whatever it claims to hold."""

_IMAGE = TensorSpec(name="x", dtype=np.dtype(np.uint8), row_shape=("height", "width", 3))


def dataset(data: bytes, folder: Path, *, suffix: str) -> None:
    """Plans a dataset of one file and reads its first shards, as ``score`` does."""
    path = folder / f"data.{suffix}"
    path.write_bytes(data)
    files = discover([str(path)])
    schema = read_schema(files)
    found = inspect(files, schema.names, None)
    shards = plan_shards(found.files, 64 << 20)
    projection = Projection(columns=tuple(schema.names), partitions=pa.schema([]))
    with ThreadPoolExecutor(2) as pool:
        reader = ShardReader(projection, pool, 64 << 20)
        for shard in shards[:MOST_SHARDS]:
            for block in reader.read(shard, 4096):
                assert block.batch.num_rows == len(block.rows)


def image(data: bytes, folder: Path) -> None:
    """Decodes an encoded image; a bad one makes a bad row."""
    batch = pa.record_batch({"image": pa.array([data], pa.binary())})
    result = decode(batch, bind(_IMAGE, ["image"], batch.schema, BindingOptions()))
    assert len(result.values) == 1
    assert all("\n" not in row.reason for row in result.bad)


def onnx(data: bytes, folder: Path) -> None:
    """Loads a model and adds nothing to it, as preflight does."""
    path = folder / "model.onnx"
    path.write_bytes(data)
    load_file(path)
    prepare(load_model(path))


def spec(data: bytes, folder: Path) -> None:
    """Reads a job file."""
    path = folder / "job.yaml"
    path.write_bytes(data)
    ScoreSpec.of({"model": "m.onnx", "data": "d", "out": "o", **load_spec(str(path))})


def manifest(data: bytes, folder: Path) -> None:
    """Lists, shows, verifies and prunes a cache with one hostile manifest."""
    objects = EngineCache(folder / "cache").objects
    try:
        from trtfleet.trt_actors.cache.entry import Entry

        key = Entry.decode(data, "there").key
    except Exception:
        key = "0" * 64
    objects.put(f"entries/{key}.json", data)
    list_cache(objects.url).lines()
    for engine in list_cache(objects.url).engines:
        show_engine(engine.key, objects.url).lines()
    verify_cache(objects.url).lines()
    prune(EngineCache(objects.url), damaged=True, dry_run=True)


def small_record(data: bytes, folder: Path, *, path: str) -> None:
    """Lists and prunes a cache with a hostile batch size, lease or note of a publication."""
    objects = EngineCache(folder / "cache").objects
    objects.put(path, data)
    LeaseRecord.decode(data)
    list_cache(objects.url).lines()
    prune(EngineCache(objects.url), damaged=True, dry_run=True)


def table(data: bytes, folder: Path) -> None:
    """Reads a calibration table."""
    found = CalibrationTable.decode(data, "table.json")
    assert CalibrationTable.decode(found.encode(), "table.json") == found


def statistics(data: bytes, folder: Path) -> None:
    """Reads what an actor counted in a unit of a calibration."""
    unpack(data, "unit", lambda columns: columns)


def program(data: bytes, folder: Path) -> None:
    """Reads the index of a bundle of plans."""
    NetworkProgram.from_files(lambda name: data if name.endswith("json") else b"x")


def output(data: bytes, folder: Path, *, place: str) -> None:
    """Asks for the status of an output with one hostile record."""
    out = folder / "out"
    job = JobRecord(fingerprint={}, resolved={"shard_bytes": 1}, shards=1, rows=1)
    for name, content in (("job.json", job.encode()), (place, data)):
        path = out / "_trtfleet" / "g0001" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    lines = read_status(str(out)).lines()
    json.dumps(read_status(str(out)).as_json())
    assert lines


def in_new_folder(target: Callable[[bytes, Path], None], data: bytes) -> None:
    """Calls a target with a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        target(data, Path(folder))


_IN_FOLDERS: dict[str, Callable[[bytes, Path], None]] = {
    "parquet": partial(dataset, suffix="parquet"),
    "arrow": partial(dataset, suffix="arrow"),
    "arrows": partial(dataset, suffix="arrows"),
    "image": image,
    "onnx": onnx,
    "spec": spec,
    "manifest": manifest,
    "batch_size": partial(small_record, path="batches/a.json"),
    "lease": partial(small_record, path="leases/a/000001.json"),
    "pending": partial(small_record, path="pending/a.json"),
    "table": table,
    "statistics": statistics,
    "program": program,
    "job": partial(output, place="job.json"),
    "commit": partial(output, place="commits/a.json"),
    "run": partial(output, place="runs/a.json"),
    "success": partial(output, place="success.json"),
}

TARGETS: dict[str, Callable[[bytes], None]] = {
    name: partial(in_new_folder, target) for name, target in _IN_FOLDERS.items()
}
"""By name: what takes bytes."""

RECORDS = {"job": JobRecord, "commit": CommitRecord, "run": RunRecord, "success": SuccessRecord}
"""The records of an output, by target."""
