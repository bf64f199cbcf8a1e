"""Model outputs as Arrow columns: what goes in comes out, without a copy where Arrow allows it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from trtfleet.datasets.encode import to_array, to_list_array

DTYPES = ["int8", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64", "bool"]


def through_parquet(column: pa.Array) -> pa.Array:
    sink = io.BytesIO()
    pq.write_table(pa.table({"y": column}), sink)
    return pq.read_table(sink)["y"].combine_chunks()


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4))
    values = draw(hnp.arrays(np.dtype(draw(st.sampled_from(DTYPES))), shape))
    return np.asfortranarray(values) if draw(st.booleans()) else values


@given(arrays())
def test_it_round_trips(values: np.ndarray) -> None:
    column = to_array(values)
    assert len(column) == len(values)
    assert column.null_count == 0
    stored = column.storage if isinstance(column, pa.ExtensionArray) else column
    flat = stored.flatten() if pa.types.is_nested(stored.type) else stored
    np.testing.assert_array_equal(flat.to_numpy(zero_copy_only=False), values.reshape(-1))


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((3,), pa.float32()),
        ((3, 1), pa.float32()),
        ((3, 5), pa.list_(pa.float32(), 5)),
        ((3, 2, 4), pa.fixed_shape_tensor(pa.float32(), (2, 4))),
        ((3, 1, 1), pa.fixed_shape_tensor(pa.float32(), (1, 1))),
        ((3, 0), pa.list_(pa.float32())),
        ((3, 2, 0), pa.list_(pa.float32())),
        ((0, 5), pa.list_(pa.float32(), 5)),
        ((0,), pa.float32()),
    ],
)
def test_types_depend_on_the_shape_of_a_row_alone(shape: tuple[int, ...], kind: Any) -> None:
    assert to_array(np.zeros(shape, np.float32)).type == kind
    assert to_array(np.zeros((7, *shape[1:]), np.float32)).type == kind


@pytest.mark.parametrize("shape", [(100,), (100, 1), (50, 2), (10, 2, 5)])
def test_no_copy(shape: tuple[int, ...]) -> None:
    values = np.arange(100, dtype=np.float32).reshape(shape)
    column = to_array(values)
    stored = column.storage if isinstance(column, pa.ExtensionArray) else column
    flat = stored.flatten() if pa.types.is_nested(stored.type) else stored
    assert flat.buffers()[1].address == values.__array_interface__["data"][0]


def test_tensors_survive_parquet() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    column = through_parquet(to_array(values))
    assert column.type == pa.fixed_shape_tensor(pa.float32(), (3, 4))
    np.testing.assert_array_equal(column.to_numpy_ndarray(), values)


@st.composite
def free_outputs(draw: st.DrawFn) -> tuple[np.ndarray, list[bool], np.ndarray | None]:
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=4))
    values = draw(hnp.arrays(np.dtype(draw(st.sampled_from(["int64", "float32", "bool"]))), shape))
    is_free = draw(st.lists(st.booleans(), min_size=len(shape) - 1, max_size=len(shape) - 1))
    lengths = None
    if draw(st.booleans()):
        is_free[0] = True
        counts = st.integers(0, shape[1])
        lengths = np.array(draw(st.lists(counts, min_size=shape[0], max_size=shape[0])), np.int64)
    return values, is_free, lengths


@given(free_outputs())
def test_lists_hold_the_rows_cut_to_their_lengths(case: tuple[np.ndarray, list[bool], Any]) -> None:
    values, is_free, lengths = case
    column = to_list_array(values, is_free, lengths)
    column.validate(full=True)
    rows = [row if lengths is None else row[: lengths[n]] for n, row in enumerate(values)]
    np.testing.assert_equal(column.to_pylist(), [row.tolist() for row in rows])


def test_list_types_do_not_depend_on_free_sizes() -> None:
    kinds = {
        to_list_array(np.zeros((n, size, 3), np.float32), [True, False], lengths).type
        for n, size, lengths in [
            (2, 5, None),
            (1, 1, None),
            (2, 5, np.array([0, 3])),
            (3, 4, np.zeros(3, int)),
        ]
    }
    assert kinds == {pa.large_list(pa.list_(pa.float32(), 3))}
    fixed = to_list_array(np.zeros((2, 4, 5), np.float32), [False, True])
    assert fixed.type == pa.list_(pa.large_list(pa.float32()), 4)


def test_lists_survive_parquet() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    column = through_parquet(to_list_array(values, [True, False], np.array([1, 4])))
    assert column.to_pylist() == [values[0, :1].tolist(), values[1].tolist()]
