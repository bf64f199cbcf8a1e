"""Rows on the device: choosing, joining, and copying them into one place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtfleet.tests.trt_actors.runtime.device_double import DeviceDouble
from trtfleet.tests.trt_actors.runtime.image_doubles import copy_on
from trtfleet.trt_actors.runtime.device_rows import DeviceRows, RowStore, join_rows

_SHAPE = (2, 3)
_DTYPE = np.dtype(np.uint8)


@pytest.fixture
def device() -> Iterator[DeviceDouble]:
    made = DeviceDouble().open()
    with made.current():
        yield made
    made.close()


def uploaded(device: DeviceDouble, store: RowStore, values: np.ndarray) -> DeviceRows:
    """Rows that lie on the device."""
    block = store.take(values.nbytes)
    device.memory(block.pointer, max(values.nbytes, 1))[: values.nbytes] = values.reshape(-1)
    return DeviceRows([(block, np.arange(len(values)))], row_shape=_SHAPE, dtype=_DTYPE, store=store)


def contents(device: DeviceDouble, rows: DeviceRows, full: int | None = None) -> np.ndarray:
    """What arrives when the rows are copied."""
    count = max(len(rows), full or 0)
    stream, target = device.stream(), device.allocate(max(count * 6, 1))
    rows.copy_to(target.pointer, stream)
    if full:
        rows.fill_up(target.pointer, full, stream)
    stream.synchronize()
    found = target.array[: count * 6].copy().reshape(count, *_SHAPE)
    target.close()
    stream.close()
    return found


def numbered(count: int, start: int = 0) -> np.ndarray:
    return (np.arange(count * 6) + start).astype(np.uint8).reshape(count, *_SHAPE)


@given(data=st.data())
def test_choosing_and_joining_is_what_numpy_does(data: st.DataObject) -> None:
    device = DeviceDouble(lazy=data.draw(st.booleans())).open()
    with device.current():
        store = RowStore(device, copy_on(device))
        arrays = [numbered(count, 37 * place) for place, count in enumerate(data.draw(_COUNTS))]
        rows = join_rows(
            [uploaded(device, store, arrays[0])]
            + [array if data.draw(st.booleans()) else uploaded(device, store, array) for array in arrays[1:]]
        )
        wanted = np.concatenate(arrays)
        assert isinstance(rows, DeviceRows)
        for _ in range(data.draw(st.integers(0, 3))):
            if data.draw(st.booleans()) or not len(wanted):
                chosen = data.draw(st.slices(len(wanted)))
            else:
                chosen = np.array(data.draw(st.lists(st.integers(0, len(wanted) - 1))), np.int64)
            rows, wanted = rows[chosen], wanted[chosen]
        assert rows.shape == wanted.shape
        np.testing.assert_array_equal(contents(device, rows), wanted)
        store.close()
    device.close()


_COUNTS = st.lists(st.integers(0, 6), min_size=1, max_size=4)


@pytest.mark.parametrize("full", [5, 6, 7, 8, 13, 64])
def test_the_last_row_fills_a_batch_up(device: DeviceDouble, full: int) -> None:
    store = RowStore(device, copy_on(device))
    found = contents(device, uploaded(device, store, numbered(5)), full)
    np.testing.assert_array_equal(found, numbered(5)[[*range(5), *[4] * (full - 5)]])
    store.close()


def test_arrays_alone_stay_arrays() -> None:
    joined = join_rows([numbered(2), numbered(3, 9)])
    assert isinstance(joined, np.ndarray)
    np.testing.assert_array_equal(joined, np.concatenate([numbered(2), numbered(3, 9)]))
    alone = numbered(4)
    assert join_rows([alone]) is alone


def test_memory_is_used_again_when_nobody_needs_its_rows(device: DeviceDouble) -> None:
    store = RowStore(device, copy_on(device))
    first = uploaded(device, store, numbered(20))
    part = first[3:5]
    del first
    second = uploaded(device, store, numbered(20, 50))
    np.testing.assert_array_equal(contents(device, part), numbered(20)[3:5])
    held = store.held_bytes
    del part, second
    for _ in range(5):
        rows = uploaded(device, store, numbered(10))
    assert store.held_bytes == held
    store.close()
    store.close()
    del rows


def test_memory_that_is_too_small_is_freed_for_larger(device: DeviceDouble) -> None:
    store = RowStore(device, copy_on(device))
    store.take(100)
    kept = store.take(1 << 20)
    assert store.held_bytes == 1 << 20
    del kept
    store.take(10)
    assert store.held_bytes == 1 << 20
    store.close()


def test_too_little_memory_is_a_memory_error() -> None:
    device = DeviceDouble(limit_bytes=1 << 17).open()
    with device.current():
        store = RowStore(device, copy_on(device))
        with pytest.raises(MemoryError):
            store.take(1 << 20)
        store.take(100)
        store.close()
    device.close()
