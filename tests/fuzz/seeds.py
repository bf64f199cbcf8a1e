"""Good files of every kind, small ones, that mutations start from."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from trtfleet.datasets.records import CommitRecord, JobRecord, RunRecord, SuccessRecord
from trtfleet.trt_actors.building.options import BuildOptions
from trtfleet.trt_actors.cache.batch_sizes import BatchSize
from trtfleet.trt_actors.cache.entry import Entry, StoredFile
from trtfleet.trt_actors.cache.identity import Identity
from trtfleet.trt_actors.cache.lease import LeaseRecord
from trtfleet.trt_actors.calibration.table import CalibrationTable
from trtfleet.trt_actors.calibration.tensor_range import TensorRange
from trtfleet.trt_actors.calibration.thresholds import scale_of
from trtfleet.trt_actors.runtime.program import NetworkProgram, SegmentProgram

__all__ = ["seeds_of", "small_table"]

_IDENTITY = Identity(
    model="a" * 64,
    options=BuildOptions().as_identity(),
    flavour="tensorrt",
    version="10.16",
    compute_capability="9.0",
    gpu="NVIDIA H100",
)


def _data() -> pa.Table:
    return pa.table(
        {
            "id": np.arange(40),
            "x": pa.FixedSizeListArray.from_arrays(pa.array(np.ones(160, np.float32)), 4),
            "tokens": pa.array([[1, 2, 3], None, []] * 13 + [[4]]),
            "photo": pa.array([b"\x89PNG", b""] * 20),
            "kind": pa.array(["a", None] * 20).dictionary_encode(),
        }
    )


def _parquet() -> list[bytes]:
    found = []
    for codec in ("none", "snappy", "zstd"):
        sink = io.BytesIO()
        pq.write_table(_data(), sink, row_group_size=16, compression=codec)
        found.append(sink.getvalue())
    return found


def _arrow(open_writer: Callable[..., pa.ipc.RecordBatchFileWriter]) -> list[bytes]:
    found = []
    for codec in (None, "zstd"):
        sink = io.BytesIO()
        with open_writer(sink, _data().schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
            writer.write_table(_data(), max_chunksize=16)
        found.append(sink.getvalue())
    return found


def _images() -> list[bytes]:
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    forms = [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ]
    found = []
    for form, options in [*forms, ("BMP", {})]:
        sink = io.BytesIO()
        pixels.save(sink, form, **options)
        found.append(sink.getvalue())
    return found


def _onnx() -> list[bytes]:
    def value(name: str, kind: int = TensorProto.FLOAT) -> object:
        return helper.make_tensor_value_info(name, kind, ["N", 4])

    def model(nodes: list[object], **more: object) -> bytes:
        initializer = [numpy_helper.from_array(np.ones((4, 4), np.float32), "w")]
        graph = helper.make_graph(nodes, "g", [value("x")], [value("y")], initializer)
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8, **more).SerializeToString()

    branch = helper.make_graph([helper.make_node("Relu", ["h"], ["b"])], "b", [], [value("b")])
    condition = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
    local = helper.make_function(
        "local", "F", ["p"], ["q"], [helper.make_node("Abs", ["p"], ["q"])], [helper.make_opsetid("", 17)]
    )
    product = helper.make_node("MatMul", ["x", "w"], ["h"], "product")
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    return [
        model([product, helper.make_node("Relu", ["h"], ["y"])]),
        model([product, condition, choice]),
        model([product, helper.make_node("F", ["h"], ["y"], domain="local")], functions=[local]),
    ]


def small_table() -> CalibrationTable:
    """A calibration table of one tensor."""
    values = TensorRange(
        threshold=1.0,
        scale=scale_of(1.0),
        minimum=-1.0,
        maximum=1.0,
        count=10,
        zeros=0,
        clipped=0.0,
        histogram=(),
        bin_width=0.0,
    )
    return CalibrationTable(
        model="b" * 64,
        model_name="m.onnx",
        method="minmax",
        samples=10,
        seed=0,
        batch_size=2,
        tensors={"x": values},
    )


def _program() -> bytes:
    segment = SegmentProgram(kind="tensorrt", inputs=("x",), outputs=("y",), onnx=b"o", plan=b"p")
    files = NetworkProgram(segments=(segment,)).to_files()
    return next(data for name, data in files.items() if name.endswith("json"))


@cache
def seeds_of(target: str) -> list[bytes]:
    """The good inputs of a target."""
    # Nothing that differs from run to run, so that the examples are the same.
    made: dict[str, Any] = {"created_s": 1.0, "host": "here"}
    files = {"a.plan": StoredFile.of(b"plan"), "layout.json": StoredFile.of(b"{}")}
    commit = CommitRecord(
        shard="a",
        attempt="b",
        rows=1,
        bad_rows=0,
        part="_trtfleet/g0001/parts/a-b.parquet",
        part_bytes=9,
        sha256="c" * 64,
        quarantine=None,
        committed_s=1.0,
    )
    failure = {"at_s": 1.0, "subject": "shard a", "reason": "it died"}
    part = {"name": "part-00000.parquet", "rows": 1, "size_bytes": 9, "sha256": "c" * 64}
    makers: dict[str, Callable[[], list[bytes]]] = {
        "parquet": _parquet,
        "arrow": lambda: _arrow(pa.ipc.new_file),
        "arrows": lambda: _arrow(pa.ipc.new_stream),
        "image": _images,
        "onnx": _onnx,
        "spec": lambda: [
            b"input: {x: [a, b]}\nkeep: id\nbatch_size: 8\nresize: 224x224\nnormalize: '0:1'\n",
            b"filter: id > 3 and kind == 'a'\nprofile: ['x=1x2,2x4,3x6']\nmax_bad_rows: unlimited\n",
        ],
        "manifest": lambda: [Entry(identity=_IDENTITY, files=files, extra={"a": [1]}, **made).encode()],
        "batch_size": lambda: [BatchSize(identity=_IDENTITY, rows=8, **made).encode()],
        "lease": lambda: [LeaseRecord(owner="me", counter=1, released=False, renewed_s=1.0).encode()],
        "pending": lambda: [b'{"blobs":["a"],"created_s":1.5}'],
        "table": lambda: [small_table().encode()],
        "statistics": list,
        "program": lambda: [_program()],
        "job": lambda: [
            JobRecord(
                fingerprint={"a": [1]}, resolved={"shard_bytes": 1}, shards=1, rows=1, created_s=1.0
            ).encode()
        ],
        "commit": lambda: [commit.encode()],
        "run": lambda: [
            RunRecord(run="r", state="failed", started_s=1.0, updated_s=2.0, failures=[failure]).encode()
        ],
        "success": lambda: [
            SuccessRecord(generation="g0001", rows=1, bad_rows=0, parts=[part], finished_s=1.0).encode()
        ],
    }
    return makers[target]()
