"""The pool of device memory: reuse, sizes, and running out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtfleet.tests.trt_actors.runtime.device_double import DeviceDouble
from trtfleet.trt_actors.runtime.memory import Pool

LIMIT = 100_000


@pytest.fixture
def device() -> Iterator[DeviceDouble]:
    made = DeviceDouble(limit_bytes=LIMIT).open()
    with made.current():
        yield made
    made.close()


@given(sizes=st.lists(st.integers(0, 1 << 30), min_size=1, max_size=20))
def test_blocks_are_large_enough_and_little_larger(sizes: list[int]) -> None:
    class Sizes(DeviceDouble):
        def allocate(self, size_bytes: int) -> object:  # type: ignore[override]
            return type("Buffer", (), {"pointer": 1, "size_bytes": size_bytes})()

    pool = Pool(Sizes())
    for size in sizes:
        block = pool.take(size)
        assert size <= block.size_bytes <= max(size * 1.25, size + 512)
        assert block.size_bytes % 512 == 0


def test_released_memory_is_handed_out_again(device: DeviceDouble) -> None:
    pool = Pool(device)
    first = pool.array((3, 5), np.dtype(np.float32))
    assert first.owner is not None
    first.owner.release()
    first.owner.release()
    second = pool.take(58)
    assert (second.pointer, pool.blocks_out, device.allocations) == (first.pointer, 1, 1)
    second.release()
    pool.close()


def test_kept_memory_is_freed_before_the_pool_gives_up(device: DeviceDouble) -> None:
    pool = Pool(device)
    pool.take(LIMIT // 2).release()
    block = pool.take(LIMIT * 9 // 10)
    with pytest.raises(MemoryError):
        pool.take(LIMIT // 2)
    block.release()
    pool.close()


def test_a_block_released_after_the_pool_closed_is_freed(device: DeviceDouble) -> None:
    pool = Pool(device)
    block = pool.take(10)
    pool.close()
    assert device.used_bytes
    block.release()
    assert not device.used_bytes
