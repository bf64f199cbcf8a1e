"""Scalars, lists, tensors and raw bytes against a slow reference; no byte is copied where none must be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trtfleet.datasets.bindings import BindingOptions, ColumnBinding, bind
from trtfleet.datasets.decode import Decoded, decode
from trtfleet.datasets.signature import Dim, TensorSpec
from trtfleet.errors import DatasetError

DTYPES = ["int8", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64", "bool"]


def spec(dtype: Any, *shape: Dim) -> TensorSpec:
    return TensorSpec(name="x", dtype=np.dtype(dtype), row_shape=shape)


def batch_of(array: Any, metadata: dict[str, str] | None = None) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [array], schema=pa.schema([pa.field("c", array.type, metadata=metadata)])
    )


def bound(
    array: Any, want: TensorSpec, metadata: dict[str, str] | None = None, **options: Any
) -> ColumnBinding:
    return bind(want, ["c"], batch_of(array, metadata).schema, BindingOptions(**options))


def decoded(array: Any, want: TensorSpec, metadata: dict[str, str] | None = None, **options: Any) -> Decoded:
    result = decode(batch_of(array, metadata), bound(array, want, metadata, **options))
    assert result.values.dtype == want.dtype
    assert result.values.shape[0] == len(array)
    return result


def reasons(result: Decoded) -> dict[int, str]:
    assert all(row.column == "c" for row in result.bad)
    return {row.row: row.reason for row in result.bad}


def address(values: np.ndarray) -> int:
    return int(values.__array_interface__["data"][0])


# --- against a reference ---


def reference(row: Any, dims: tuple[int, ...], fill: float | None) -> Any:
    """The row as nested lists, or None for a bad row."""
    if row is None:
        return None if fill is None else np.full(dims, fill).tolist()
    if not dims:
        return row
    if len(row) != dims[0]:
        return None
    inner = [reference(each, dims[1:], fill) for each in row]
    return None if any(each is None for each in inner) else inner


@st.composite
def nested(draw: st.DrawFn) -> tuple[Any, tuple[int, ...], np.dtype, bool]:
    """A sliced list array of random type with nulls and wrong lengths; row shape, dtype, whether flat."""
    dims = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    flat = len(dims) > 1 and draw(st.booleans())
    levels = (math.prod(dims),) if flat else dims
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    kind: Any = pa.from_numpy_dtype(dtype)
    fixed = []
    for size in reversed(levels):
        form = draw(st.sampled_from(["list", "large", "fixed", "view"]))
        fixed.insert(0, form == "fixed")
        maker = {"list": pa.list_, "large": pa.large_list, "view": pa.list_view}
        kind = pa.list_(kind, size) if form == "fixed" else maker[form](kind)
    odd = draw(st.sampled_from([0.0, 0.0, 0.08]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def value(axis: int) -> Any:
        if rng.random() < odd:
            return None
        if axis == len(levels):
            number = dtype.type(rng.integers(0, 2 if dtype == np.bool_ else 100))
            return number if dtype == np.float16 else number.item()
        size = levels[axis]
        if not fixed[axis] and rng.random() < odd:
            size = int(rng.integers(0, 5))
        return [value(axis + 1) for _ in range(size)]

    array: Any = pa.array([value(0) for _ in range(draw(st.integers(0, 9)))], kind)
    start = draw(st.integers(0, len(array)))
    array = array.slice(start, draw(st.integers(0, len(array) - start)))
    return array, dims, dtype, flat


@settings(max_examples=400, deadline=None)
@given(nested(), st.sampled_from([None, 1.0]), st.booleans())
def test_nested_lists_match_the_reference(case: Any, fill: float | None, to_double: bool) -> None:
    array, dims, dtype, flat = case
    want = spec(np.float64 if to_double else dtype, *dims)
    result = decoded(array, want, fill_null=fill)
    assert result.values.shape == (len(array), *dims)
    bad = reasons(result)
    assert list(bad) == sorted(bad)
    levels = (math.prod(dims),) if flat else dims
    for index, row in enumerate(array.to_pylist()):
        expected = reference(row, levels, fill)
        if expected is None:
            assert bad.pop(index)
        else:
            np.testing.assert_array_equal(result.values[index], np.reshape(expected, dims).astype(want.dtype))
    assert not bad


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.binary(min_size=6, max_size=6), st.binary(max_size=8)), max_size=12),
    st.sampled_from([pa.binary(), pa.large_binary(), pa.binary_view()]),
    st.data(),
)
def test_binary_matches_the_reference(rows: list[bytes | None], kind: Any, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(rows)))
    fill = data.draw(st.sampled_from([None, 3.0]))
    array: Any = pa.array(rows, kind).slice(start)
    told = {"trtfleet.dtype": "uint16", "trtfleet.shape": "3,1"}
    result = decoded(array, spec(np.uint16, 3, 1), told, fill_null=fill)
    bad = reasons(result)
    for index, row in enumerate(rows[start:]):
        if row is None and fill is None:
            assert bad.pop(index) == "null"
        elif row is None:
            assert (result.values[index] == 3).all()
        elif len(row) != 6:
            assert bad.pop(index) == f"expected 6 bytes, got {len(row)}"
        else:
            assert result.values[index].tobytes() == row
    assert not bad


# --- zero copy ---


def tensor_array(rows: int, shape: list[int], **options: Any) -> Any:
    kind = pa.fixed_shape_tensor(pa.float32(), shape, **options)
    width = math.prod(shape)
    flat = pa.array(np.arange(rows * width, dtype=np.float32))
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(flat, width))


FLOATS = np.arange(60, dtype=np.float32)
OFFSETS = np.arange(0, 61, 6)
RAW_TOLD = {"trtfleet.dtype": "float32", "trtfleet.shape": "2,3"}

VIEWS = {
    "scalars": (pa.array(FLOATS[:10]), (), None, 4),
    "scalars of one column": (pa.array(FLOATS[:10]), (1,), None, 4),
    "list": (pa.ListArray.from_arrays(pa.array(OFFSETS, pa.int32()), FLOATS), (6,), None, 24),
    "list, reshaped": (pa.ListArray.from_arrays(pa.array(OFFSETS, pa.int32()), FLOATS), (2, 3), None, 24),
    "large_list": (pa.LargeListArray.from_arrays(pa.array(OFFSETS), FLOATS), (6,), None, 24),
    "fixed_size_list": (pa.FixedSizeListArray.from_arrays(FLOATS, 6), (6,), None, 24),
    "nested fixed": (
        pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(FLOATS, 3), 2),
        (2, 3),
        None,
        24,
    ),
    "nested lists": (
        pa.ListArray.from_arrays(
            pa.array(range(0, 21, 2), pa.int32()),
            pa.ListArray.from_arrays(pa.array(range(0, 61, 3), pa.int32()), FLOATS),
        ),
        (2, 3),
        None,
        24,
    ),
    "fixed_shape_tensor": (tensor_array(10, [2, 3]), (2, 3), None, 24),
    "permuted tensor": (tensor_array(10, [2, 3], permutation=[1, 0]), (3, 2), None, 24),
    "fixed binary": (pa.array([bytes(24)] * 10, pa.binary(24)), (2, 3), RAW_TOLD, 24),
    "binary": (pa.array([bytes(24)] * 10, pa.binary()), (2, 3), RAW_TOLD, 24),
    "large binary": (pa.array([bytes(24)] * 10, pa.large_binary()), (2, 3), RAW_TOLD, 24),
    "struct": (
        pa.StructArray.from_arrays([pa.array([bytes(24)] * 10)], fields=[pa.field("bytes", pa.binary())]),
        (2, 3),
        RAW_TOLD,
        24,
    ),
}


def data_buffer(array: Any) -> Any:
    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    return array.buffers()[-1]


@pytest.mark.parametrize("name", VIEWS)
def test_values_are_a_view_of_the_arrow_buffer(name: str) -> None:
    array, shape, told, row_bytes = VIEWS[name]
    want = spec(np.float32, *shape)
    binding = bound(array, want, told)
    for start, count in ((0, 10), (3, 7), (2, 5)):
        batch = batch_of(array, told).slice(start, count)
        before = pa.total_allocated_bytes()
        result = decode(batch, binding)
        assert pa.total_allocated_bytes() == before
        assert result.bad == ()
        assert result.values.shape == (count, *shape)
        assert address(result.values) == data_buffer(array).address + start * row_bytes
        assert not result.values.flags.owndata


@pytest.mark.parametrize("name", ["fixed_size_list", "fixed binary"])
def test_null_rows_that_keep_their_room_do_not_force_a_copy(name: str) -> None:
    array, shape, told, row_bytes = VIEWS[name]
    empty = pa.array([None], array.type)
    with_null: Any = pa.concat_arrays([array, empty, array])
    sliced = with_null.slice(1)
    result = decoded(sliced, spec(np.float32, *shape), told)
    assert reasons(result) == {9: "null"}
    assert address(result.values) == data_buffer(with_null).address + row_bytes
    np.testing.assert_array_equal(result.values[10:], decoded(array, spec(np.float32, *shape), told).values)


def test_the_view_keeps_the_buffer_alive() -> None:
    values = decoded(pa.array(np.arange(1000.0)), spec(np.float64)).values
    other = [pa.array(np.zeros(1000)) for _ in range(8)]
    assert values.sum() == 999 * 500
    assert len(other) == 8


# --- shapes ---


def test_permutation_gives_the_logical_order() -> None:
    swapped = tensor_array(2, [2, 3, 4], permutation=[0, 2, 1])
    result = decoded(swapped, spec(np.float32, 2, 4, 3))
    np.testing.assert_array_equal(result.values, swapped.to_numpy_ndarray())
    # pyarrow's to_numpy_ndarray has wrong strides for a cyclic permutation; the format's text is the judge:
    # logical dimension i is physical dimension permutation[i].
    array = tensor_array(2, [2, 3, 4], permutation=[2, 0, 1])
    result = decoded(array, spec(np.float32, 4, 2, 3))
    np.testing.assert_array_equal(
        result.values, np.arange(48, dtype=np.float32).reshape(2, 2, 3, 4).transpose(0, 3, 1, 2)
    )


def test_channels_last_storage_feeds_a_channels_first_input_as_a_view() -> None:
    pixels = np.arange(2 * 5 * 6 * 3, dtype=np.uint8).reshape(2, 5, 6, 3)
    array = pa.array([row.tobytes() for row in pixels], pa.binary(90))
    told = {"trtfleet.dtype": "uint8", "trtfleet.shape": "5,6,3"}
    binding = bound(array, spec(np.uint8, 3, 5, 6), told)
    assert binding.stored_layout == "nhwc"
    assert binding.stored_shape == (5, 6, 3)
    result = decode(batch_of(array, told), binding)
    np.testing.assert_array_equal(result.values, pixels.transpose(0, 3, 1, 2))
    assert address(result.values) == data_buffer(array).address


def test_free_dimensions_take_the_size_of_the_first_row() -> None:
    array = pa.array([[[1.0, 2.0]], [[3.0, 4.0]], [[5.0]], [[6.0, 7.0], [8.0, 9.0]], None])
    result = decoded(array, spec(np.float64, "A", "B"))
    assert result.values.shape == (5, 1, 2)
    np.testing.assert_array_equal(result.values[:2], [[[1, 2]], [[3, 4]]])
    assert reasons(result) == {
        2: "expected 2 elements on axis 1, got 1",
        3: "expected 1 elements, got 2",
        4: "null",
    }


def test_dimensions_of_one_name_have_one_size() -> None:
    result = decoded(pa.array([[[1.0, 2.0]], [[1.0]]]), spec(np.float64, "S", "S"))
    assert reasons(result) == {0: "expected 1 elements on axis 1, got 2"}


def test_a_null_of_unknown_size_cannot_be_filled() -> None:
    array = pa.array([None, None], pa.list_(pa.list_(pa.float32())))
    result = decoded(array, spec(np.float32, "A", "B"), fill_null=0.0)
    assert reasons(result) == dict.fromkeys(range(2), "no row of the batch tells the size of axis 0")


def test_stacked_scalars() -> None:
    batch = pa.record_batch(
        {
            "a": pa.array([1, None, 3], pa.int16()),
            "b": pa.array([True, False, None]),
            "c": pa.array([0.5, 1.5, 2.5], pa.float64()),
        }
    )
    want = spec(np.float32, 3)
    result = decode(batch, bind(want, ["a", "b", "c"], batch.schema))
    np.testing.assert_array_equal(result.values[0], np.float32([1, 1, 0.5]))
    assert [(row.row, row.column, row.reason) for row in result.bad] == [(1, "a", "null"), (2, "b", "null")]
    filled = decode(batch, bind(want, ["a", "b", "c"], batch.schema, BindingOptions(fill_null=-1.0)))
    np.testing.assert_array_equal(filled.values, np.float32([[1, 1, 0.5], [-1, 0, 1.5], [3, -1, 2.5]]))
    assert filled.bad == ()


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_of_the_input_s_own_type_are_stacked(dtype: str) -> None:
    if np.dtype(dtype).kind == "b":
        pytest.skip("stored as bits")
    columns = np.random.default_rng(0).integers(0, 100, (3, 20)).astype(dtype)
    batch = pa.record_batch({name: pa.array(column) for name, column in zip("abc", columns, strict=True)})
    binding = bind(spec(dtype, 2), ["c", "a"], batch.schema)
    for start, stop in ((0, 20), (5, 12), (20, 20)):
        result = decode(batch.slice(start, stop - start), binding)
        np.testing.assert_array_equal(result.values, columns[[2, 0], start:stop].T)
        assert (result.values.dtype, result.values.flags.c_contiguous) == (np.dtype(dtype), True)


# --- casts ---


def test_integers_out_of_range_are_bad_rows() -> None:
    array = pa.array([[1, 2], [255, 256], [-1, 0], [None, 300]], pa.list_(pa.int64(), 2))
    result = decoded(array, spec(np.uint8, 2), fill_null=9.0)
    assert reasons(result) == {
        1: "256 does not fit uint8",
        2: "-1 does not fit uint8",
        3: "300 does not fit uint8",
    }
    assert result.values[0].tolist() == [1, 2]


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("want", DTYPES)
def test_every_allowed_cast_keeps_small_values(stored: str, want: str) -> None:
    if np.dtype(stored).kind == "f" and np.dtype(want).kind != "f":
        return
    array = pa.array(np.array([0, 1, 1], stored))
    assert decoded(array, spec(want)).values.tolist() == [0, 1, 1]


def test_floats_that_overflow_are_bad_but_nan_and_infinity_are_not() -> None:
    array = pa.array([1e300, math.inf, -math.inf, math.nan, 0.1])
    result = decoded(array, spec(np.float32))
    assert reasons(result) == {0: "1e+300 does not fit float32"}
    np.testing.assert_array_equal(result.values[1:], np.float32([math.inf, -math.inf, math.nan, 0.1]))
    assert reasons(decoded(pa.array([65504, 70000]), spec(np.float16))) == {1: "70000 does not fit float16"}


def test_garbage_below_nulls_is_not_looked_at() -> None:
    values = pa.py_buffer(np.array([1, 1000, 3], np.int32))
    validity = pa.py_buffer(bytes([0b101]))
    array = pa.Array.from_buffers(pa.int32(), 3, [validity, values])
    assert reasons(decoded(array, spec(np.int8))) == {1: "null"}
    assert decoded(array, spec(np.int8), fill_null=-7.0).values.tolist() == [1, -7, 3]


# --- wrapping ---


def test_dictionary_encoded_values_are_decoded() -> None:
    for plain_array, want in (
        (pa.array([1, 2, None, 1], pa.int32()), spec(np.int32)),
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)), spec(np.int8, 2)),
        (pa.array([b"ab", b"cd"], pa.binary(2)), spec(np.uint8, 2)),
    ):
        indices = pa.array([1, 0, None, 1, 1], pa.int8())
        encoded: Any = pa.DictionaryArray.from_arrays(indices, plain_array)
        expected = decoded(plain_array.take(indices), want, fill_null=0.0)
        result = decoded(encoded, want, fill_null=0.0)
        np.testing.assert_array_equal(result.values, expected.values)


def test_all_null_columns() -> None:
    assert reasons(decoded(pa.nulls(2), spec(np.float32))) == {0: "null", 1: "null"}
    assert reasons(decoded(pa.nulls(2), spec(np.float32, 2, 3))) == {0: "null", 1: "null"}
    assert (decoded(pa.nulls(2), spec(np.float32, 2, 3), fill_null=4.0).values == 4).all()
    inner = pa.array([[None, None], None], pa.list_(pa.null()))
    assert reasons(decoded(inner, spec(np.int64, 2))) == {0: "null inside the row", 1: "null"}
    assert decoded(inner, spec(np.int64, 2), fill_null=5.0).values.tolist() == [[5, 5], [5, 5]]


def test_a_struct_that_is_null_is_a_null_row() -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    array = pa.array([{"bytes": b"abcd", "path": None}, None, {"bytes": None, "path": "x"}], kind)
    told = {"trtfleet.dtype": "uint8", "trtfleet.shape": "4"}
    result = decoded(array.slice(0), spec(np.uint8, 4), told)
    assert reasons(result) == {1: "null", 2: "null"}
    assert result.values[0].tobytes() == b"abcd"


def test_unaligned_bytes_are_read_right() -> None:
    backing = pa.py_buffer(b"\0" + np.arange(8, dtype=np.float32).tobytes())
    array = pa.Array.from_buffers(pa.binary(8), 4, [None, backing.slice(1)])
    values = decoded(array, spec(np.float32, 2)).values
    np.testing.assert_array_equal(values, np.arange(8, dtype=np.float32).reshape(4, 2))


def test_a_column_that_changed_its_type_is_refused() -> None:
    binding = bound(pa.array([1.0]), spec(np.float64))
    with pytest.raises(DatasetError, match="column c holds string here, double when"):
        decode(batch_of(pa.array(["a"])), binding)
    with pytest.raises(DatasetError, match="holds nothing here"):
        decode(pa.record_batch({"d": pa.array([1.0])}), binding)
