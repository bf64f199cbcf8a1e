"""Files made to do harm: bombs, endless recursion, paths that lead away, sizes that are not there."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper
from PIL import Image
from trtfleet.datasets.discovery import Format, SourceFile
from trtfleet.datasets.footers import MAX_GROUP_ROWS, inspect
from trtfleet.datasets.shards import MAX_SHARDS, Group, plan_shards
from trtfleet.errors import DatasetError, ModelError
from trtfleet.trt_actors.model import load_model

from .sandbox import Sandbox

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """The process that the inputs go to."""
    box = Sandbox()
    yield box
    box.close()


def value(name: str, shape: Any = ("N", 4)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def network(
    nodes: list[onnx.NodeProto],
    functions: list[onnx.FunctionProto] | None = None,
    initializers: list[onnx.TensorProto] | None = None,
    out: Any = ("N", 4),
) -> bytes:
    graph = helper.make_graph(nodes, "g", [value("x")], [value("y", out)], initializers or [])
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=8, functions=functions or [])
    return bytes(model.SerializeToString())


def function(name: str, *calls: tuple[str, str, str]) -> onnx.FunctionProto:
    """A function from p to q that calls others, each as (function, input, output)."""
    nodes = [call(*one) for one in calls] or [helper.make_node("Relu", ["p"], ["q"])]
    return helper.make_function("local", name, ["p"], ["q"], nodes, OPSETS)


def call(name: str, given: str, made: str) -> onnx.NodeProto:
    return helper.make_node(name, [given], [made], domain="local")


def doubling(times: int) -> list[onnx.FunctionProto]:
    """Functions of which each calls the one before twice."""
    each = [
        function(f"F{number}", (f"F{number - 1}", "p", "m"), (f"F{number - 1}", "m", "q"))
        for number in range(1, times + 1)
    ]
    return [function("F0"), *each]


def nested(depth: int) -> bytes:
    """A model whose If nodes lie in each other's branches, written by hand: no library writes it."""

    def field(number: int, content: bytes) -> bytes:
        length, size = b"", len(content)
        while True:
            length += bytes([size & 127 | (128 if size > 127 else 0)])
            size >>= 7
            if not size:
                return bytes([number << 3 | 2]) + length + content

    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "i", [], []).SerializeToString()
    for _ in range(depth):
        attribute = field(1, b"then_branch") + field(6, graph) + bytes([0xA0, 1, 5])
        graph = field(1, field(4, b"If") + field(5, attribute))
    return bytes([8, 8]) + field(7, graph) + field(8, bytes([16, 17]))


def tensor(**fields: Any) -> onnx.TensorProto:
    return TensorProto(name="w", data_type=TensorProto.FLOAT, **fields)


RELU = helper.make_node("Relu", ["x"], ["y"])
PRODUCT = helper.make_node("Mul", ["x", "w"], ["y"])
MODELS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a cycle": (
        lambda: network([helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]),
        "not output of any previous nodes",
    ),
    "a missing tensor": (lambda: network([PRODUCT]), "not output of any previous nodes"),
    "negative dimensions": (
        lambda: network([PRODUCT], initializers=[tensor(dims=[-4, 4], raw_data=bytes(64))]),
        "Negative dimension",
    ),
    "an initializer that is not there": (
        lambda: network([PRODUCT], initializers=[tensor(dims=[1 << 40, 1 << 20])]),
        "one and only one value field",
    ),
    "branches nested 10,000 deep": (lambda: nested(10_000), "is not an ONNX model"),
    "a function that calls itself": (
        lambda: network([call("F", "x", "y")], [function("F", ("F", "p", "q"))], out=None),
        "a function 'F' that calls itself",
    ),
    "functions that call each other": (
        lambda: network(
            [call("F", "x", "y")], [function("F", ("G", "p", "q")), function("G", ("F", "p", "q"))], out=None
        ),
        "that calls itself",
    ),
    "functions that double 60 times": (
        lambda: network([call("F60", "x", "y")], doubling(60), out=None),
        "more than 250,000 nodes",
    ),
    "functions 200 deep": (
        lambda: network(
            [call("F200", "x", "y")],
            [function("F0"), *(function(f"F{n}", (f"F{n - 1}", "p", "q")) for n in range(1, 201))],
            out=None,
        ),
        "more than 64 deep",
    ),
    "too many functions": (
        lambda: network([RELU], [function(f"F{number}") for number in range(10_001)]),
        "10,001 functions",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, sandbox: Sandbox) -> None:
    make, fact = MODELS[name]
    verdict = sandbox.run("onnx", make())
    assert verdict.ended == "refused", verdict.fact
    assert verdict.fact.startswith("ModelError: ")
    assert fact in verdict.fact


def test_a_model_with_many_nodes_or_functions_is_none_of_these(sandbox: Sandbox) -> None:
    chain = [helper.make_node("Relu", [f"v{n}"], [f"v{n + 1}"]) for n in range(10_000)]
    nodes = [helper.make_node("Relu", ["x"], ["v0"]), *chain, helper.make_node("Relu", ["v10000"], ["y"])]
    for data in (network(nodes), network([call("F12", "x", "y")], doubling(12))):
        verdict = sandbox.run("onnx", data)
        assert verdict.ended == "accepted", verdict.fact


@pytest.mark.parametrize(
    ("location", "fact"),
    [
        ("../secret", "contains '..'"),
        ("/etc/passwd", "has an absolute path"),
        ("C:\\secret", "has an absolute path"),
        ("weights/../../secret", "contains '..'"),
        ("link", "leaves the model's folder through a symbolic link"),
        ("folder/secret", "leaves the model's folder through a symbolic link"),
        ("pipe", "is not a regular file"),
        ("", "is not a file name"),
        ("*/_ORT_MEM_ADDR_/*", "names memory, not a file"),
    ],
)
def test_external_data_elsewhere(tmp_path: Path, location: str, fact: str) -> None:
    import os

    (tmp_path / "secret").write_bytes(b"\0" * 64)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    weights = tensor(dims=[4, 4], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location)
    (folder / "model.onnx").write_bytes(network([PRODUCT], initializers=[weights]))
    with pytest.raises(ModelError) as raised:
        load_model(folder / "model.onnx")
    assert fact in raised.value.fact


def test_external_data_that_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"\0" * 64)
    weights = tensor(dims=[1 << 30, 1 << 30], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value="w")
    (tmp_path / "model.onnx").write_bytes(network([PRODUCT], initializers=[weights]))
    with pytest.raises(ModelError, match="holds 64 bytes"):
        load_model(tmp_path / "model.onnx")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, pixels: bytes, more: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, *([0] * 6))


def encoded(form: str, size: int, **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (size, size), (9, 9, 9)).save(sink, form, **options)
    return sink.getvalue()


def many_scans() -> bytes:
    whole = encoded("JPEG", 1000, progressive=True)
    last = whole.rfind(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * 5000 + whole[-2:]


def webp(width: int, height: int) -> bytes:
    def side(pixels: int) -> bytes:
        return struct.pack("<I", pixels - 1)[:3]

    frame = encoded("WEBP", 16, lossless=True)[12:]
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + side(width) + side(height)
    first = b"ANMF" + struct.pack("<I", 16 + len(frame)) + bytes(6) + side(16) + side(16) + bytes(4) + frame
    body = b"WEBP" + canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6) + first
    return b"RIFF" + struct.pack("<I", len(body)) + body


IMAGES: dict[str, Callable[[], bytes]] = {
    "png of 2^62 pixels": lambda: png(2**31 - 1, 2**31 - 1, b""),
    "png of many more pixels than it has": lambda: png(8000, 8000, zlib.compress(bytes(60))),
    "png with a zlib bomb": lambda: png(4, 4, zlib.compress(bytes(100 << 20), 9)),
    "png with a text bomb": lambda: png(
        4,
        4,
        zlib.compress(bytes(60)),
        chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100 << 20), 9)) * 3,
    ),
    "webp canvas of 268 million pixels": lambda: webp(16383, 16383),
    "bmp of 2^62 pixels": lambda: bmp(2**31 - 1, 2**31 - 1),
    "bmp of negative size": lambda: bmp(-5, -(2**31)),
    "jpeg cut short": lambda: encoded("JPEG", 300)[:-200],
    "jpeg of 5,000 scans": many_scans,
    "gif under a png's name": lambda: encoded("GIF", 4),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_make_bad_rows(name: str, sandbox: Sandbox) -> None:
    verdict = sandbox.run("image", IMAGES[name]())
    assert verdict.ended == "accepted", verdict.fact


def test_an_image_of_many_scans_says_so() -> None:
    from trtfleet.datasets.bindings import BindingOptions, bind
    from trtfleet.datasets.images import decode_images
    from trtfleet.datasets.signature import TensorSpec

    batch = pa.record_batch({"image": pa.array([many_scans(), encoded("JPEG", 8, progressive=True)])})
    spec = TensorSpec(name="x", dtype=np.dtype(np.uint8), row_shape=("h", "w", 3))
    bad = decode_images(batch, bind(spec, ["image"], batch.schema, BindingOptions())).bad
    assert [(row.row, row.reason) for row in bad] == [(0, "more than 64 scans")]


LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
SPECS = {
    "a billion laughs": (LAUGHS + "keep: *a11\n", "refers to another value"),
    "a list in itself": ("keep: &a [*a]\n", "refers to another value"),
    "an object of python": ("keep: !!python/object/apply:os.system [true]\n", "could not determine"),
    "a module of python": ("keep: !!python/module:os\n", "could not determine"),
    "an endless number": (f"batch_size: {'1' * 200_000}\n", "a number of 200,000 characters"),
    "an endless number in base 60": (f"batch_size: 1{':10' * 60_000}\n", "a number of 180,001 characters"),
    "deep lists": ("keep: " + "[" * 100_000, "nested more than 16 deep"),
    "deep keys": ("? " * 100_000, "nested more than 16 deep"),
    "a megabyte": ("#" * (1 << 20), "is larger than 262,144 bytes"),
    "a power": ("filter: x == 9**9**9**9\n", "does not know"),
    "a call": ("filter: __import__('os').system('true')\n", "does not know"),
}


@pytest.mark.parametrize("name", SPECS)
def test_job_files(name: str, sandbox: Sandbox) -> None:
    text, fact = SPECS[name]
    verdict = sandbox.run("spec", text.encode())
    assert verdict.ended == "refused", verdict.fact
    assert verdict.fact.startswith("UsageError: ")
    assert fact in verdict.fact


def test_parquet_with_an_extension_type_that_older_arrows_unpickled(sandbox: Sandbox) -> None:
    planted = b"cos\nsystem\n(S'exit 3'\ntR."
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": planted}
    schema = pa.schema([pa.field("x", pa.int64(), metadata=metadata)])
    for target in ("parquet", "arrow"):
        sink = io.BytesIO()
        table = pa.table({"x": [1, 2]}).cast(schema)
        if target == "parquet":
            pq.write_table(table, sink)
        else:
            with pa.ipc.new_file(sink, schema) as writer:
                writer.write_table(table)
        assert b"arrow.py_extension_type" in sink.getvalue() or target == "parquet"
        assert sandbox.run(target, sink.getvalue()).is_fine


def test_an_arrow_file_whose_offsets_lead_out_of_its_memory(sandbox: Sandbox) -> None:
    offsets = pa.array([0, 1 << 30, 2], pa.int32()).buffers()[1]
    lists = pa.ListArray.from_buffers(pa.list_(pa.int64()), 2, [None, offsets], children=[pa.array([1, 2])])
    texts = pa.Array.from_buffers(pa.utf8(), 2, [None, offsets, pa.py_buffer(b"abcd")])
    words = pa.array(["a"])
    codes = pa.array([0, 99], pa.int32())
    coded = pa.DictionaryArray.from_arrays(codes, words, safe=False)
    for bad in (lists, texts, coded):
        sink = io.BytesIO()
        batch = pa.record_batch([bad], ["x"])
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        verdict = sandbox.run("arrow", sink.getvalue())
        assert verdict.ended == "refused", verdict.fact
        assert "DatasetError" in verdict.fact


def file_of(path: Path) -> SourceFile:
    whole = {"size_bytes": path.stat().st_size, "version": "", "format": Format.PARQUET}
    return SourceFile(root=str(path.parent), path=path.name, **whole)  # type: ignore[arg-type]


def test_sizes_that_no_dataset_has_are_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1, 2]}), path)
    file = file_of(path)
    groups = [Group(rows=1 << 60, size_bytes=1 << 62)]
    with pytest.raises(DatasetError, match=f"more than {MAX_SHARDS:,} shards"):
        plan_shards([(file, groups)], 64 << 20)


def varint(number: int) -> bytes:
    """A number as Thrift's compact protocol writes it."""
    number = (number << 1) ^ (number >> 63)
    found = b""
    while True:
        found += bytes([number & 127 | (128 if number > 127 else 0)])
        number >>= 7
        if not number:
            return found


@pytest.mark.parametrize("rows", [MAX_GROUP_ROWS + 1, 1 << 60, -5])
def test_a_row_group_of_rows_beyond_measure(tmp_path: Path, rows: int, sandbox: Sandbox) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": np.arange(12_345)}), sink, row_group_size=12_345)
    data = sink.getvalue()
    footer_bytes = struct.unpack("<I", data[-8:-4])[0]
    footer = data[-8 - footer_bytes : -8].replace(varint(12_345), varint(rows))
    path = tmp_path / "a.parquet"
    path.write_bytes(data[: -8 - footer_bytes] + footer + struct.pack("<I", len(footer)) + b"PAR1")
    with pytest.raises(DatasetError, match="rows"):
        inspect([file_of(path)], ["x"], None)
    assert sandbox.run("parquet", path.read_bytes()).ended == "refused"
