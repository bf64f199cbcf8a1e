"""Memory, streams, events and graphs of a real GPU through PyCUDA; skipped where there is none."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from trtfleet.errors import BackendError
from trtfleet.trt_actors.runtime.cuda import CudaDevice
from trtfleet.trt_actors.runtime.libcuda import call, gpus
from trtfleet.trt_actors.runtime.memory import Pool

pytestmark = pytest.mark.gpu("pycuda")


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    made = CudaDevice().open()
    with made.current():
        yield made
    made.close()
    made.close()


def context_exists() -> bool:
    flags, active = ctypes.c_uint(), ctypes.c_int()
    call("cuDevicePrimaryCtxGetState", ctypes.c_int(0), ctypes.byref(flags), ctypes.byref(active))
    return bool(active.value)


def test_describing_a_gpu_makes_no_context() -> None:
    before = context_exists()
    info = CudaDevice().info
    assert info == gpus()[0]
    assert info.name
    assert info.compute_capability >= (5, 0)
    assert info.memory_bytes > 1 << 30
    assert tuple(map(int, info.cuda.split("."))) >= (11, 4)
    assert context_exists() == before


def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(BackendError, match=r"there is no GPU 99: \d+ are visible"):
        CudaDevice(99).open()


def test_data_goes_up_and_comes_down_in_order(device: CudaDevice) -> None:
    up, down, copied = device.stream(), device.stream(), device.event()
    source, target = device.host(1 << 20), device.host(1 << 20)
    memory = device.allocate(1 << 20)
    assert source.is_pinned
    assert device.notes == []
    for turn in range(20):
        source.array[:] = turn
        target.array[:] = 255
        device.upload(memory.pointer, source.array, up)
        copied.record(up)
        down.wait_for(copied)
        device.download(target.array, memory.pointer, down)
        down.synchronize()
        assert (target.array == turn).all()
    for thing in (up, down, copied, source, target, memory):
        thing.close()
        thing.close()


def test_typed_arrays_and_pageable_memory_are_copied(device: CudaDevice) -> None:
    stream, memory = device.stream(), device.allocate(4096)
    source = np.arange(1000, dtype=np.float32).reshape(10, 100)
    target = np.empty_like(source)
    device.upload(memory.pointer, source, stream)
    device.download(target, memory.pointer, stream)
    stream.synchronize()
    np.testing.assert_array_equal(target, source)
    memory.close()
    stream.close()


def test_a_graph_repeats_what_was_captured_and_reads_new_data(device: CudaDevice) -> None:
    stream = device.stream()
    source, target = device.host(256), device.host(256)
    memory = device.allocate(256)

    def work() -> None:
        device.upload(memory.pointer, source.array, stream)
        call(
            "cuMemsetD8Async",
            ctypes.c_ulonglong(memory.pointer),
            ctypes.c_ubyte(7),
            ctypes.c_size_t(16),
            ctypes.c_void_p(stream.handle),
        )
        device.download(target.array, memory.pointer, stream)

    source.array[:], target.array[:] = 1, 0
    graph = device.capture(stream, work)
    stream.synchronize()
    assert (target.array == 0).all()
    for turn in (1, 2, 3):
        source.array[:] = turn
        graph.launch(stream)
        stream.synchronize()
        assert (target.array[:16] == 7).all()
        assert (target.array[16:] == turn).all()
    graph.close()
    graph.close()
    with pytest.raises(BackendError, match="launched after it was destroyed"):
        graph.launch(stream)
    for thing in (source, target, memory, stream):
        thing.close()


def test_a_capture_that_fails_leaves_the_stream_usable(device: CudaDevice) -> None:
    stream, host = device.stream(), device.host(64)
    memory = device.allocate(64)
    with pytest.raises(BackendError):
        device.capture(stream, stream.synchronize)
    with pytest.raises(KeyError):
        device.capture(stream, lambda: {}["missing"])
    host.array[:] = 5
    device.upload(memory.pointer, host.array, stream)
    stream.synchronize()
    for thing in (host, memory, stream):
        thing.close()


def test_other_threads_use_the_device_too(device: CudaDevice) -> None:
    stream, memory = device.stream(), device.allocate(1 << 16)
    found: list[bool] = []

    def work() -> None:
        with device.current(), device.current():
            host = device.host(1 << 16)
            host.array[:] = 9
            device.upload(memory.pointer, host.array, stream)
            back = np.empty(1 << 16, np.uint8)
            device.download(back, memory.pointer, stream)
            stream.synchronize()
            found.append(bool((back == 9).all()))
            host.close()

    threads = [threading.Thread(target=work) for _ in range(1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True]
    memory.close()
    stream.close()


def test_more_memory_than_there_is_is_a_memory_error(device: CudaDevice) -> None:
    with pytest.raises(MemoryError, match="GPU 0 cannot give"):
        device.allocate(device.info.memory_bytes * 2)
    pool = Pool(device)
    block = pool.take(100)
    assert block.pointer % 256 == 0
    block.release()
    pool.close()


def test_closing_and_opening_again_works() -> None:
    device = CudaDevice()
    for _ in range(3):
        device.open()
        with device.current():
            device.allocate(1000).close()
        device.close()
