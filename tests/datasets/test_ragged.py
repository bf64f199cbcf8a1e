"""Ragged rows: flat values and offsets against a reference, padding, masks, the order by length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trtfleet.datasets.bindings import BindingOptions, bind
from trtfleet.datasets.decode import decode
from trtfleet.datasets.ragged import Ragged, decode_ragged, mask, order_by_length, pad
from trtfleet.datasets.signature import TensorSpec


def decoded(array: Any, dtype: Any = np.int64, **options: Any) -> Ragged:
    batch = pa.record_batch({"ids": array})
    want = TensorSpec(name="input_ids", dtype=np.dtype(dtype), row_shape=("L",))
    ragged = decode_ragged(batch, bind(want, ["ids"], batch.schema, BindingOptions(**options)))
    assert ragged.values.dtype == dtype
    assert ragged.offsets[0] == 0
    assert ragged.offsets[-1] == len(ragged.values)
    return ragged


def rows_of(ragged: Ragged) -> list[list[int]]:
    return [
        ragged.values[start:end].tolist()
        for start, end in zip(ragged.offsets[:-1], ragged.offsets[1:], strict=True)
    ]


def reasons(ragged: Ragged) -> dict[int, str]:
    assert all(row.column == "ids" for row in ragged.bad)
    return {row.row: row.reason for row in ragged.bad}


ROWS = st.lists(
    st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(-200, 200)), max_size=6)), max_size=12
)
CLEAN_ROWS = st.lists(st.lists(st.integers(-100, 100), max_size=6), max_size=12)


def expected_row(row: list[int | None] | None, fill: int | None, pad_to: int | None) -> list[int] | str:
    if row is None:
        return "null" if fill is None else [fill]
    if pad_to is not None and len(row) > pad_to:
        return f"length {len(row)} exceeds --pad-to {pad_to}"
    if fill is None and None in row:
        return "null inside the row"
    misfits = [value for value in row if value is not None and not -128 <= value <= 127]
    if misfits:
        return f"{misfits[0]} does not fit int8"
    return [value if value is not None else fill or 0 for value in row]


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(ROWS, CLEAN_ROWS),
    st.sampled_from([pa.list_, pa.large_list, pa.list_view, pa.large_list_view]),
    st.sampled_from([pa.int8(), pa.int16(), pa.int64()]),
    st.sampled_from([None, 5]),
    st.sampled_from([None, 1, 4]),
    st.data(),
)
def test_rows_match_the_reference(
    rows: Any, maker: Any, element: Any, fill: int | None, pad_to: int | None, data: st.DataObject
) -> None:
    if element == pa.int8():
        rows = [row and [value and value // 2 for value in row] for row in rows]
    start = data.draw(st.integers(0, len(rows)))
    count = data.draw(st.integers(0, len(rows) - start))
    ragged = decoded(
        pa.array(rows, maker(element)).slice(start, count), np.int8, fill_null=fill, pad_to=pad_to
    )
    bad = reasons(ragged)
    found = rows_of(ragged)
    assert len(found) == count
    for index, row in enumerate(rows[start : start + count]):
        expected = expected_row(row, fill, pad_to)
        if isinstance(expected, str):
            assert bad.pop(index) == expected
            assert found[index] == []
        else:
            assert found[index] == expected
    assert not bad
    width = pad_to or max([1, *map(len, found)])
    padded = pad(ragged, np.arange(count), pad_to=pad_to, pad_value=-9, dtype=np.dtype(np.int8))
    assert padded.tolist() == [row + [-9] * (width - len(row)) for row in found]
    assert mask(ragged.lengths, width, np.dtype(np.int64)).tolist() == [
        [1] * len(row) + [0] * (width - len(row)) for row in found
    ]


def test_a_clean_column_is_a_view() -> None:
    array = pa.array([[1, 2, 3], [], [4], [5, 6]], pa.list_(pa.int64()))
    batch = pa.record_batch({"ids": array}).slice(1)
    want = TensorSpec(name="ids", dtype=np.dtype(np.int64), row_shape=("L",))
    binding = bind(want, ["ids"], batch.schema)
    before = pa.total_allocated_bytes()
    ragged = decode_ragged(batch, binding)
    assert pa.total_allocated_bytes() == before
    assert ragged.values.__array_interface__["data"][0] == array.buffers()[-1].address + 3 * 8
    assert rows_of(ragged) == [[], [4], [5, 6]]


def test_null_rows_that_keep_their_room() -> None:
    values = pa.array([1, 2, 1000, 4], pa.int32())
    array = pa.ListArray.from_arrays(
        pa.array([0, 2, 3, 4], pa.int32()), values, mask=pa.array([False, True, False])
    )
    assert rows_of(decoded(array, np.int8)) == [[1, 2], [], [4]]
    assert reasons(decoded(array, np.int8)) == {1: "null"}
    filled = decoded(array, np.int8, fill_null=7)
    assert (rows_of(filled), filled.bad) == ([[1, 2], [7], [4]], ())


def test_fixed_size_lists_and_null_types_pad_too() -> None:
    fixed = pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2))
    assert rows_of(decoded(fixed.slice(1), pad_to=4)) == [[3, 4]]
    empty = pa.array([[], [None]], pa.list_(pa.null()))
    assert reasons(decoded(empty)) == {1: "null inside the row"}


def test_decode_pads_to_the_longest_row() -> None:
    batch = pa.record_batch({"ids": pa.array([[1], [2, 3, 4], None, []], pa.list_(pa.int32()))})
    want = TensorSpec(name="ids", dtype=np.dtype(np.int64), row_shape=("L",))
    result = decode(batch, bind(want, ["ids"], batch.schema, BindingOptions(pad_value=9)))
    assert result.values.tolist() == [[1, 9, 9], [2, 3, 4], [9, 9, 9], [9, 9, 9]]
    assert [(row.row, row.reason) for row in result.bad] == [(2, "null")]
    empty = decode(batch.slice(3), bind(want, ["ids"], batch.schema))
    assert empty.values.tolist() == [[0]]


def test_pad_takes_rows_in_the_order_asked() -> None:
    ragged = decoded(pa.array([[1], [2, 3, 4], [5, 6]]))
    dtype = np.dtype(np.int32)
    assert pad(ragged, np.array([2, 0]), pad_to=None, pad_value=0, dtype=dtype).tolist() == [[5, 6], [1, 0]]
    assert pad(ragged, np.array([], int), pad_to=3, pad_value=0, dtype=dtype).shape == (0, 3)
    with pytest.raises(ValueError, match="a row has 3 elements, more than the width of 2"):
        pad(ragged, np.array([1]), pad_to=2, pad_value=0, dtype=dtype)


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 10))
def test_the_order_by_length_is_a_stable_permutation(lengths: list[int], batch_size: int) -> None:
    order = order_by_length(np.array(lengths, np.int64), batch_size).tolist()
    rows = range(len(lengths))
    if len(lengths) <= batch_size:
        assert order == list(rows)
    else:
        assert order == sorted(rows, key=lambda row: (-lengths[row], row))


def test_ordering_by_length_pads_less() -> None:
    lengths = np.random.default_rng(0).integers(1, 512, 256)
    order = order_by_length(lengths, 16)
    assert lengths[order].reshape(16, 16).max(1).sum() < 0.6 * lengths.reshape(16, 16).max(1).sum()
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        order_by_length(lengths, 0)
