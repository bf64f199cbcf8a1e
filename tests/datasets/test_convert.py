"""Columns in the fast layout hold the same values, and what has no place there is refused by name."""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from trtfleet.datasets import convert_writer
from trtfleet.datasets.bindings import BindingOptions, bind
from trtfleet.datasets.columns import NUMPY_TYPES
from trtfleet.datasets.convert_columns import FastColumn, candidates, is_fast, settle
from trtfleet.datasets.convert_files import FileConverter, read_first_row
from trtfleet.datasets.decode import decode
from trtfleet.datasets.discovery import discover
from trtfleet.datasets.signature import TensorSpec
from trtfleet.datasets.storage import Storage
from trtfleet.errors import DatasetError, MismatchError, OutputError


def nested(values: np.ndarray[Any, Any], form: str) -> pa.Array:
    """Rows of one shape as lists of the given form."""
    array = pa.array(values.reshape(-1))
    if form in ("tensor", "flat"):
        rows = pa.FixedSizeListArray.from_arrays(array, math.prod(values.shape[1:]))
        if form == "flat":
            return rows
        return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(array.type, values.shape[1:]), rows)
    for size in reversed(values.shape[1:]):
        starts = np.arange(len(array) // size + 1) * size
        if form == "fixed":
            array = pa.FixedSizeListArray.from_arrays(array, size)
        elif form == "large":
            array = pa.LargeListArray.from_arrays(pa.array(starts, pa.int64()), array)
        else:
            array = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), array)
    return array


def rewrite(
    source: Path, out: Path, *, names: Sequence[str] = (), compression: str = "NONE", **image: Any
) -> list[FastColumn]:
    """Converts one file to another, as a whole job does; returns what was converted."""
    file = discover([str(source)])[0]
    size = image.get("size")
    schema = pq.read_schema(source) if source.suffix == ".parquet" else pa.ipc.open_file(source).schema
    chosen = candidates(schema, names, images=size is not None)
    first = read_first_row(file, chosen)
    assert first is not None
    columns = settle(first, file.url, chosen, names, size, image.get("channels", 3))
    with ThreadPoolExecutor(2) as pool:
        converter = FileConverter(
            columns=columns,
            pool=pool,
            window_bytes=image.get("window_bytes", 64 << 20),
            compression=compression,
            progress=lambda rows: None,
        )
        converter.convert(file, Storage(out.parent), out.name, {"made": "here"})
    return columns


def decoded(path: Path, spec: TensorSpec, options: BindingOptions | None = None) -> np.ndarray[Any, Any]:
    """The column ``x`` of a file as a model input, all rows in one array."""
    table = pq.read_table(path)
    batch = table.combine_chunks().to_batches()[0]
    found = decode(batch, bind(spec, ["x"], table.schema, options))
    assert not found.bad
    return np.ascontiguousarray(found.values)


@st.composite
def rows(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], str]:
    dtype = draw(st.sampled_from(list(NUMPY_TYPES.values())))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=4, max_side=5))
    form = draw(st.sampled_from(["list", "large", "fixed", "flat", "tensor"]))
    return draw(hnp.arrays(dtype, shape)), form


@settings(max_examples=80)
@given(rows(), st.sampled_from(["NONE", "LZ4"]))
def test_values_are_the_same_bit_for_bit(drawn: tuple[np.ndarray[Any, Any], str], codec: str) -> None:
    values, form = drawn
    spec = TensorSpec(name="x", dtype=values.dtype, row_shape=values.shape[1:])
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before.parquet"), Path(folder, "after.parquet")
        pq.write_table(pa.table({"x": nested(values, form)}), before, row_group_size=2)
        rewrite(before, after, compression=codec)
        assert is_fast(pq.read_schema(after).field("x"))
        assert decoded(after, spec).tobytes() == decoded(before, spec).tobytes() == values.tobytes()


def test_a_permuted_tensor_is_stored_in_its_logical_order(tmp_path: Path) -> None:
    memory = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(memory.reshape(-1)), 12)
    kind = pa.fixed_shape_tensor(pa.int16(), [3, 4], permutation=[1, 0])
    source = tmp_path / "a.arrow"
    table = pa.table({"x": pa.ExtensionArray.from_storage(kind, storage)})
    with pa.OSFile(str(source), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    (column,) = rewrite(source, tmp_path / "b.parquet")
    assert column.shape == (4, 3)
    spec = TensorSpec(name="x", dtype=np.dtype(np.int16), row_shape=(4, 3))
    np.testing.assert_array_equal(decoded(tmp_path / "b.parquet", spec), memory.transpose(0, 2, 1))


OTHERS = pa.table(
    {
        "id": pa.array([3, None, 5], pa.int64()),
        "text": ["a", None, "c"],
        "when": pa.array([1, 2, None], pa.timestamp("us", "UTC")),
        "label": pa.array(["p", "q", "p"]).dictionary_encode(),
        "blob": [b"\0" * 3, None, b""],
        "nested": [{"a": [1, 2], "b.c": "x"}, None, {"a": [], "b.c": None}],
        "pairs": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int8())),
        "nothing": pa.nulls(3),
        "float": [0.5, math.nan, None],
        "x": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.uint8())),
    }
)


@pytest.mark.parametrize("source", ["a.parquet", "a.arrow", "a.arrows"])
def test_other_columns_keep_type_and_value(tmp_path: Path, source: str) -> None:
    field = pa.field("id", pa.int64(), metadata={"unit": "apples"})
    table = OTHERS.set_column(0, field, OTHERS["id"]).replace_schema_metadata({"origin": "here"})
    path = tmp_path / source
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    else:
        opened = pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, opened(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    file = discover([str(path)])[0]
    first = read_first_row(file, ["x"])
    assert first is not None
    columns = settle(first, file.url, ["x"], ["x"], None, 3)
    with ThreadPoolExecutor(1) as pool:
        converter = FileConverter(
            columns=columns, pool=pool, window_bytes=1 << 20, compression="NONE", progress=lambda rows: None
        )
        assert converter.convert(file, Storage(tmp_path), "out.parquet", {"made": "here"}) == 3
    found = pq.read_table(tmp_path / "out.parquet")
    others = [name for name in table.column_names if name != "x"]
    assert found.select(others).schema.equals(table.select(others).schema)
    same = [name for name in others if name != "float"]
    assert found.select(same).equals(table.select(same))
    assert str(found["float"].to_pylist()) == "[0.5, nan, None]"
    assert found.schema.field("id").metadata[b"unit"] == b"apples"
    assert found.schema.metadata[b"origin"] == b"here"
    assert found.schema.field("x").metadata == {b"trtfleet.dtype": b"uint8", b"trtfleet.shape": b"2"}


def test_converted_columns_are_bare_bytes_in_small_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_writer, "_GROUP_BYTES", 1000)
    table = pa.table({"id": np.arange(50), "x": pa.array([[7] * 100] * 50, pa.list_(pa.uint8()))})
    pq.write_table(table, tmp_path / "a.parquet")
    rewrite(tmp_path / "a.parquet", tmp_path / "b.parquet")
    footer = pq.read_metadata(tmp_path / "b.parquet")
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    assert [group.num_rows for group in groups] == [9, 9, 9, 9, 9, 5]
    number, fast = groups[0].column(0), groups[0].column(1)
    assert (fast.compression, fast.has_dictionary_page, fast.is_stats_set) == ("UNCOMPRESSED", False, False)
    assert (number.compression, number.is_stats_set) == ("SNAPPY", True)
    assert footer.metadata[b"made"] == b"here"


@pytest.mark.parametrize("window_bytes", [1, 5000, 1 << 20])
def test_row_groups_stay_in_order_however_they_are_read(tmp_path: Path, window_bytes: int) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (3000, 3), dtype=np.uint16)
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": nested(values, "list")}), source, row_group_size=70)
    rewrite(source, tmp_path / "b.parquet", window_bytes=window_bytes)
    spec = TensorSpec(name="x", dtype=values.dtype, row_shape=(3,))
    np.testing.assert_array_equal(decoded(tmp_path / "b.parquet", spec), values)


def encoded(pixels: np.ndarray[Any, Any], kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind)
    return sink.getvalue()


PHOTOS = np.random.default_rng(1).integers(0, 256, (6, 9, 11, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize(("kind", "channels"), [("PNG", 3), ("JPEG", 3), ("PNG", 1)])
def test_images_become_the_pixels_that_scoring_decodes(
    tmp_path: Path, suffix: str, kind: str, channels: int
) -> None:
    photos = [{"bytes": encoded(photo, kind), "path": "p"} for photo in PHOTOS]
    table = pa.table({"x": photos, "raw": [b"no image"] * 6})
    source, before = tmp_path / f"a.{suffix}", tmp_path / "before.parquet"
    pq.write_table(table, before)
    if suffix == "arrow":
        with pa.OSFile(str(source), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, source)
    columns = rewrite(source, tmp_path / "b.parquet", size=(5, 4), channels=channels)
    assert [str(column) for column in columns] == [f"uint8[5, 4, {channels}]"]
    spec = TensorSpec(name="x", dtype=np.dtype(np.uint8), row_shape=(channels, 5, 4))
    now = decoded(tmp_path / "b.parquet", spec)
    np.testing.assert_array_equal(now, decoded(before, spec, BindingOptions(resize=(5, 4))))
    assert pq.read_table(tmp_path / "b.parquet")["raw"].to_pylist() == [b"no image"] * 6


LIST = pa.list_(pa.float32())
WRONG = [
    (pa.array([[1, 2], [3, 4], [5]], LIST), "row 2, column x: expected 2 elements, got 1"),
    (pa.array([[1, 2], None, [3, 4]], LIST), "row 1, column x: null;"),
    (pa.array([[1, 2], [3, None], [3, 4]], LIST), "row 1, column x: null inside the row"),
    (pa.array([None, [1, 2]], LIST), "row 0, column x: null;"),
    (pa.array([[], []], LIST), "row 0, column x: no elements"),
    (pa.array([[[1], [2]], [[1, 2]]], pa.list_(LIST)), "row 1, column x: expected 2 elements, got 1"),
    (pa.array([[[1], [2, 3]]], pa.list_(LIST)), "row 0, column x: expected 1 elements on axis 1, got 2"),
    (pa.array([[1, 2], None], pa.list_(pa.float32(), 2)), "row 1, column x: null;"),
]


@pytest.mark.parametrize(("values", "fact"), WRONG)
@pytest.mark.parametrize("window_bytes", [1, 1 << 20])
def test_rows_that_do_not_fit_are_named(tmp_path: Path, values: Any, fact: str, window_bytes: int) -> None:
    source, out = tmp_path / "a.parquet", tmp_path / "out"
    out.mkdir()
    pq.write_table(pa.table({"x": values}), source, row_group_size=1)
    with pytest.raises(DatasetError) as caught:
        rewrite(source, out / "b.parquet", window_bytes=window_bytes)
    assert caught.value.fact.startswith(f"{source}, {fact}")
    assert "--column" in caught.value.hint
    assert list(out.iterdir()) == []


def test_bad_images_are_named(tmp_path: Path) -> None:
    whole = encoded(PHOTOS[0], "JPEG")
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [whole, whole, whole[:100]]}), source)
    with pytest.raises(DatasetError, match="row 2, column x: cannot be decoded"):
        rewrite(source, tmp_path / "b.parquet", size=(4, 4))
    pq.write_table(pa.table({"x": [b"GIF89a"]}), source)
    with pytest.raises(DatasetError, match="row 0, column x: not a JPEG, PNG, WEBP or BMP"):
        rewrite(source, tmp_path / "b.parquet", names=["x"], size=(4, 4))
    assert rewrite(source, tmp_path / "b.parquet", size=(4, 4)) == []


SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("caption", pa.string()),
        ("image", pa.list_(pa.uint8())),
        ("jpeg", pa.binary()),
        pa.field("fast", pa.binary(4), metadata={"trtfleet.dtype": "uint8", "trtfleet.shape": "4"}),
        ("words", pa.list_(pa.string())),
        ("lists", pa.list_(pa.null())),
    ]
)


def test_candidates_are_told_by_their_types() -> None:
    assert candidates(SCHEMA, (), images=False) == ["image"]
    assert candidates(SCHEMA, (), images=True) == ["image", "jpeg"]
    assert candidates(SCHEMA, ["image"], images=True) == ["image"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imag", "which the data lacks.*nearest: image"),
        ("id", "holds int64, which is no list or tensor"),
        ("words", "which is no list or tensor of numbers"),
        ("fast", "read fast already"),
        ("jpeg", "--resize"),
    ],
)
def test_columns_that_cannot_be_converted_are_refused(name: str, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        candidates(SCHEMA, [name], images=False)


def test_columns_that_parquet_cannot_hold_are_refused(tmp_path: Path) -> None:
    table = pa.table({"x": pa.array([[1]], LIST), "when": pa.array([None], pa.month_day_nano_interval())})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(MismatchError, match=r"a\.arrow has a column that Parquet cannot hold.*interval"):
        rewrite(tmp_path / "a.arrow", tmp_path / "b.parquet")


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": pa.array([[1]], LIST)}), tmp_path / "a.parquet")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot write"):
        rewrite(tmp_path / "a.parquet", tmp_path / "file" / "b.parquet")
