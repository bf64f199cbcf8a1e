"""Inputs that lie on the device before a slot is filled: whole and in part, alone and mixed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from trtfleet.tests.trt_actors.runtime.image_doubles import copy_on
from trtfleet.tests.trt_actors.runtime.machine import Machine, run
from trtfleet.tests.trt_actors.runtime.networks import Array, assert_same, cut_up, expected, info, make
from trtfleet.trt_actors.pipeline import Pipeline
from trtfleet.trt_actors.runtime.device_rows import DeviceRows, RowStore, join_rows
from trtfleet.trt_actors.runtime.segmented import SegmentedEngine

_SHAPE = (4, 3)


def network() -> onnx.ModelProto:
    """Bytes and numbers of two inputs, told apart by every row."""
    node = helper.make_node
    return make(
        [
            node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
            node("ReduceSum", ["floats", "axes"], ["sums"], keepdims=0),
            node("Mul", ["sums", "weight"], ["y"]),
        ],
        [info("pixels", TensorProto.UINT8, ["N", *_SHAPE]), info("weight", TensorProto.FLOAT, ["N"])],
        [info("y", TensorProto.FLOAT, ["N"])],
        {"axes": np.array([1, 2])},
    )


def batch(rows: int, seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {
        "pixels": random.integers(0, 256, (rows, *_SHAPE), np.uint8),
        "weight": random.normal(size=rows).astype(np.float32),
    }


@pytest.fixture(params=[True, False], ids=["late", "early"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    made = Machine(lazy=request.param)
    yield made
    made.close()


class Pixels:
    """Puts arrays on an engine's device."""

    def __init__(self, machine: Machine, engine: SegmentedEngine) -> None:
        self._device = machine.device
        assert engine.device is self._device
        self._store = RowStore(self._device, copy_on(self._device))

    def rows(self, array: Array) -> DeviceRows:
        with self._device.current():
            block = self._store.take(array.nbytes)
        self._device.memory(block.pointer, array.nbytes)[:] = array.reshape(-1)
        parts = [(block, np.arange(len(array)))]
        return DeviceRows(parts, row_shape=array.shape[1:], dtype=array.dtype, store=self._store)

    def close(self) -> None:
        with self._device.current():
            self._store.close()


@pytest.mark.parametrize("chosen", [set(), {0, 1}], ids=str)
def test_placed_inputs_compute_the_same(machine: Machine, chosen: set[int]) -> None:
    model = network()
    engine = machine.engine(model, cut_up(model, chosen)).open()
    pixels, slot = Pixels(machine, engine), engine.slot()
    for seed, rows in enumerate((8, 3, 8, 1)):
        feeds = batch(rows, seed)
        slot.place("pixels", pixels.rows(feeds["pixels"]))
        slot.bind("weight", feeds["weight"])
        engine.enqueue(slot, rows)
        engine.wait(slot)
        assert_same(slot.outputs, expected(model, feeds))
    pixels.close()


def test_small_batches_are_filled_up_to_one_shape(machine: Machine) -> None:
    model = network()
    engine = machine.engine(model, cut_up(model, set())).open()
    engine.full_rows = 8
    pixels, slot = Pixels(machine, engine), engine.slot()
    for seed, rows in enumerate((8, 3, 7, 1)):
        feeds = batch(rows, seed)
        slot.place("pixels", pixels.rows(feeds["pixels"]))
        slot.bind("weight", feeds["weight"])
        engine.enqueue(slot, rows)
        engine.wait(slot)
        assert_same(slot.outputs, expected(model, feeds))
        on_device = machine.device.memory(
            slot.on_device("pixels", (8, *_SHAPE), np.dtype(np.uint8)).pointer, 96
        )
        wanted = feeds["pixels"][[*range(rows), *[rows - 1] * (8 - rows)]]
        np.testing.assert_array_equal(on_device.reshape(8, *_SHAPE), wanted)
    pixels.close()


def test_slots_change_between_placed_and_filled(machine: Machine) -> None:
    model = network()
    engine = machine.engine(model, cut_up(model, set())).open()
    pixels, slot = Pixels(machine, engine), engine.slot()
    for seed in range(6):
        feeds = batch(4, seed)
        if seed % 3:
            slot.place("pixels", pixels.rows(feeds["pixels"]))
            slot.bind("weight", feeds["weight"])
            engine.enqueue(slot, 4)
            engine.wait(slot)
            assert_same(slot.outputs, expected(model, feeds))
        else:
            assert_same(run(engine, feeds, slot), expected(model, feeds))
    pixels.close()


def test_pieces_of_both_kinds_make_a_batch(machine: Machine) -> None:
    model = network()
    engine = machine.engine(model, cut_up(model, set())).open()
    pixels, slot, feeds = Pixels(machine, engine), engine.slot(), batch(8)
    given = feeds["pixels"]
    joined = join_rows([pixels.rows(given[:3])[1:], given[3:6], pixels.rows(given[6:])])
    assert isinstance(joined, DeviceRows)
    slot.place("pixels", joined)
    slot.bind("weight", feeds["weight"][1:])
    engine.enqueue(slot, 7)
    engine.wait(slot)
    assert_same(slot.outputs, {"y": expected(model, feeds)["y"][1:]})
    pixels.close()


def test_the_pipeline_keeps_rows_until_they_are_read(machine: Machine) -> None:
    model = network()
    engine = machine.engine(model, cut_up(model, {1})).open()
    pixels, pipeline = Pixels(machine, engine), Pipeline(engine, 3)
    found: list[Array] = []
    pipeline.begin(8)
    for seed in range(12):
        slot, feeds = pipeline.acquire(), batch(8, seed)
        slot.place("pixels", pixels.rows(feeds["pixels"]))  # type: ignore[attr-defined]
        slot.bind("weight", feeds["weight"])
        pipeline.submit(slot, 8, lambda outputs, error: found.append(outputs["y"].copy()))  # type: ignore
    pipeline.end()
    pipeline.close()
    for seed, y in enumerate(found):
        assert_same({"y": y}, expected(model, batch(8, seed)))
    pixels.close()
