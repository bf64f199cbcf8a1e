"""The device path of a segmented engine, on a device double that is strict about order and lifetime."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from trtfleet.errors import BackendError, ModelError, UsageError
from trtfleet.tests.trt_actors.runtime.doubles import double_plan
from trtfleet.tests.trt_actors.runtime.machine import Machine, fill, rows, run, whole
from trtfleet.tests.trt_actors.runtime.networks import (
    NETWORKS,
    Array,
    assert_same,
    batch_of,
    branching,
    convolutional,
    cut_up,
    data_dependent,
    expected,
    info,
    make,
    reshaping,
)
from trtfleet.trt_actors.partition.clean import clean
from trtfleet.trt_actors.pipeline import Pipeline
from trtfleet.trt_actors.runtime.allocator import output_allocator
from trtfleet.trt_actors.runtime.memory import Pool
from trtfleet.trt_actors.runtime.plan import ExecutionError
from trtfleet.trt_actors.runtime.program import NetworkProgram, SegmentProgram


@pytest.fixture(params=[True, False], ids=["late", "early"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine whose device executes as late, or as early, as it may."""
    made = Machine(lazy=request.param)
    yield made
    made.close()


# The values of a computed shape are an input that TensorRT reads on the host.
_SHAPE_VALUES = {"target": ((2, 3), (16, 3), (18, 3))}


@pytest.mark.parametrize("lazy", [True, False], ids=["late", "early"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=list(NETWORKS))
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_choice_of_nodes_computes_the_same(
    network: Callable[[], onnx.ModelProto], lazy: bool, data: st.DataObject
) -> None:
    model = network()
    chosen = data.draw(st.sets(st.integers(0, len(model.graph.node) - 1)))
    machine = Machine(lazy=lazy)
    engine = machine.engine(model, cut_up(model, chosen, rows=9, values=_SHAPE_VALUES)).open()
    slots = [engine.slot() for _ in range(2)]
    for turn, count in enumerate(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))):
        feeds = batch_of(model, count, seed=turn)
        assert_same(run(engine, feeds, slots[turn % 2]), expected(model, feeds))
    machine.close()


@pytest.mark.parametrize("chosen", [{0, 1, 2}, {3, 4}, set(range(9)), set()], ids=str)
def test_many_slots_in_flight_keep_their_batches_apart(machine: Machine, chosen: Collection[int]) -> None:
    model = convolutional()
    engine = machine.engine(model, cut_up(model, chosen)).open()
    slots = [engine.slot() for _ in range(4)]
    for turn in range(3):
        batches = [batch_of(model, 8 - place, seed=10 * turn + place) for place in range(4)]
        for slot, feeds in zip(slots, batches, strict=True):
            engine.enqueue(slot, fill(slot, feeds))
        for slot, feeds in zip(slots, batches, strict=True):
            engine.wait(slot)
            assert_same(slot.outputs, expected(model, feeds))


def test_slots_are_filled_by_other_threads(machine: Machine) -> None:
    model = branching()
    engine = machine.engine(model, cut_up(model, {1, 2, 3})).open()
    slot, feeds = engine.slot(), batch_of(model, 5)
    feeder = threading.Thread(target=fill, args=(slot, feeds))
    feeder.start()
    feeder.join()
    engine.enqueue(slot, 5)
    engine.wait(slot)
    assert_same(slot.outputs, expected(model, feeds))


def test_the_pipeline_runs_it() -> None:
    machine, model = Machine(), convolutional()
    engine = machine.engine(model, cut_up(model, {0, 1, 2, 3})).open()
    pipeline = Pipeline(engine, 3)
    found: list[dict[str, Array]] = []
    pipeline.begin(8)
    for seed in range(6):
        slot = pipeline.acquire()

        def deliver(outputs: Any, error: BaseException | None) -> None:
            assert error is None
            found.append({name: array.copy() for name, array in outputs.items()})

        pipeline.submit(slot, fill(slot, batch_of(model, 8, seed)), deliver)
    pipeline.end()
    pipeline.close()
    for seed, outputs in enumerate(found):
        assert_same(outputs, expected(model, batch_of(model, 8, seed)))
    machine.close()


def test_intermediates_are_dropped_after_their_last_reader(machine: Machine) -> None:
    model = convolutional()
    engine = machine.engine(model, cut_up(model, {0, 1, 3})).open()
    slot = engine.slot()
    run(engine, batch_of(model, 8), slot)
    used, made = machine.device.used_bytes, machine.device.allocations
    for seed in range(5):
        run(engine, batch_of(model, 8, seed), slot)
    assert (machine.device.used_bytes, machine.device.allocations) == (used, made)


def test_an_empty_intermediate_passes(machine: Machine) -> None:
    model = data_dependent()
    engine = machine.engine(model, cut_up(model, {0, 4, 5, 6})).open()
    feeds = {"x": -np.ones((3, 4), np.float32)}
    assert_same(run(engine, feeds), expected(model, feeds))


def test_outputs_of_unknown_size_stay_on_the_device(machine: Machine) -> None:
    model = data_dependent()
    engine = machine.engine(model, cut_up(model, {0, 1})).open()
    for seed in range(4):
        feeds = batch_of(model, 6, seed)
        assert_same(run(engine, feeds), expected(model, feeds))


def test_a_shape_is_read_on_the_host(machine: Machine) -> None:
    model = reshaping()
    reshape = next(at for at, node in enumerate(clean(model).graph.node) if "target" in node.input)
    program = cut_up(model, {reshape}, rows=18, values=_SHAPE_VALUES)
    assert "target" in next(each for each in program.segments if each.kind == "tensorrt").inputs
    engine = machine.engine(model, program).open()
    for count in (8, 1, 5):
        feeds = batch_of(model, count)
        assert_same(run(engine, feeds), expected(model, feeds))
    assert engine.notes == ()
    # Ten rows make values outside the profile, though every shape is inside.
    assert_same(run(engine, batch_of(model, 10)), expected(model, batch_of(model, 10)))
    assert "segment" in engine.notes[0]


def test_a_shape_that_tensorrt_leaves_on_the_host_goes_back_to_the_device(machine: Machine) -> None:
    node = helper.make_node
    x, shape = info("x", TensorProto.FLOAT, ["N", 4]), info("shape", TensorProto.INT64, [2])
    y = info("y", TensorProto.FLOAT, ["N", 4])
    first = make([node("Shape", ["x"], ["shape"])], [x], [shape])
    second = make(
        [
            node("Cast", ["shape"], ["sizes"], to=TensorProto.FLOAT),
            node("ReduceSum", ["sizes"], ["sum"], keepdims=0),
            node("Mul", ["x", "sum"], ["y"]),
        ],
        [shape, x],
        [y],
    )
    ranges = {"x": ((1, 4), (8, 4), (8, 4))}
    segments = [
        SegmentProgram(
            kind="tensorrt",
            inputs=tuple(value.name for value in part.graph.input),
            outputs=tuple(value.name for value in part.graph.output),
            onnx=part.SerializeToString(),
            plan=double_plan(part, [ranges], on_host=on_host),
        )
        for part, on_host in ((first, ["shape"]), (second, []))
    ]
    whole_model = make([*first.graph.node, *second.graph.node], [x], [y])
    engine = machine.engine(whole_model, NetworkProgram(segments=tuple(segments))).open()
    slot = engine.slot()
    for count in (8, 3, 8, 3):
        feeds = batch_of(whole_model, count)
        assert_same(run(engine, feeds, slot), expected(whole_model, feeds))
        used = machine.device.used_bytes
    assert_same(run(engine, feeds, slot), expected(whole_model, feeds))
    assert machine.device.used_bytes == used


def test_the_profile_fits_the_batch(machine: Machine) -> None:
    model = convolutional()
    engine = machine.engine(model, whole(model, [rows(1, 64), rows(1, 1), rows(8, 16)])).open()
    for count in (1, 12, 40, 7):
        feeds = batch_of(model, count)
        assert_same(run(engine, feeds), expected(model, feeds))
    # One context for each profile: 64, 1 and 16 rows.
    assert machine.tensorrt.contexts == 3
    assert engine.notes == ()


def test_a_batch_outside_every_profile_runs_natively_and_says_so(machine: Machine) -> None:
    model = convolutional()
    engine = machine.engine(model, whole(model, [rows(2, 4), rows(6, 8)]), most=16).open()
    for count in (4, 5, 16, 8):
        feeds = batch_of(model, count)
        assert_same(run(engine, feeds), expected(model, feeds))
    (note,) = engine.notes
    assert "segment 0 ran in ONNX Runtime at times: image is 5x3x8x8" in note
    assert "2x3x8x8..4x3x8x8, 6x3x8x8..8x3x8x8" in note
    assert machine.tensorrt.executions == 2


def test_too_many_rows_are_refused_with_both_numbers(machine: Machine) -> None:
    model = convolutional()
    engine = machine.engine(model, whole(model, [rows(1, 8)]), most=8).open()
    slot = engine.slot()
    with pytest.raises(UsageError, match="a batch of 9 rows is larger than max_batch_size 8"):
        engine.enqueue(slot, fill(slot, batch_of(model, 9)))
    assert_same(run(engine, batch_of(model, 8), slot), expected(model, batch_of(model, 8)))


def test_a_small_batch_of_a_fixed_size_is_filled_up_and_cut_again(machine: Machine) -> None:
    model = convolutional(batch=4)
    engine = machine.engine(model, cut_up(model, {0, 1, 2})).open()
    slot, feeds = engine.slot(), batch_of(model, 4)
    wanted = expected(model, feeds)
    for count in (3, 4, 1):
        few = {name: array[:count] for name, array in feeds.items()}
        assert_same(run(engine, few, slot), {name: array[:count] for name, array in wanted.items()})


def test_pageable_memory_serves_where_pinned_is_refused() -> None:
    machine, model = Machine(denies_pinned=True), convolutional()
    engine = machine.engine(model, cut_up(model, {1})).open()
    feeds = batch_of(model, 3)
    assert_same(run(engine, feeds), expected(model, feeds))
    assert engine.notes == ("pinned memory was refused",)
    machine.close()


def test_a_refused_plan_is_a_backend_error_and_leaves_nothing() -> None:
    machine, model = Machine(refuses=2), convolutional()
    engine = machine.engine(model, cut_up(model, {0, 1}))
    with pytest.raises(BackendError, match="this machine: unsupported compute capability: the double"):
        engine.open()
    machine.close()


def test_a_malformed_plan_is_a_backend_error_and_leaves_nothing(machine: Machine) -> None:
    model = convolutional()
    (segment,) = whole(model, [rows(1, 8)]).segments
    broken = SegmentProgram(
        kind="tensorrt", inputs=segment.inputs, outputs=segment.outputs, onnx=segment.onnx, plan=b"no plan"
    )
    with pytest.raises(BackendError, match=r"1\.7\.1\.116 does not load the plan: the plan is malformed"):
        machine.engine(model, NetworkProgram(segments=(broken,))).open()


def test_a_plan_of_another_network_is_refused(machine: Machine) -> None:
    model, other = convolutional(), branching()
    (segment,) = whole(model, [rows(1, 8)]).segments
    wrong = SegmentProgram(
        kind="tensorrt",
        inputs=segment.inputs,
        outputs=segment.outputs,
        onnx=segment.onnx,
        plan=double_plan(other, [{"x": ((1, 6),) * 3, "count": ((1, 1),) * 3}]),
    )
    with pytest.raises(ModelError, match="the plan takes x, count and gives centred, flags, best, exp"):
        machine.engine(model, NetworkProgram(segments=(wrong,))).open()


@pytest.mark.parametrize("chosen", [{0, 1, 2, 3, 4}, set(range(9))], ids=["segments", "whole"])
def test_a_batch_that_tensorrt_refuses_leaves_the_engine_usable(chosen: set[int]) -> None:
    machine, model = Machine(fails=666.0), convolutional()
    engine = machine.engine(model, cut_up(model, chosen)).open()
    slot = engine.slot()
    for seed in range(3):
        good, bad = batch_of(model, 4, seed), batch_of(model, 4, seed)
        bad["image"][2, 0, 0, 0] = 666
        assert_same(run(engine, good, slot), expected(model, good))
        with pytest.raises(ExecutionError, match="TensorRT refuses the execution: the double fails"):
            run(engine, bad, slot)
    assert_same(run(engine, good, slot), expected(model, good))
    machine.close()


def test_a_fault_of_the_device_is_reported_by_the_batch_that_had_it() -> None:
    machine, model = Machine(faults=666.0), convolutional()
    engine = machine.engine(model, cut_up(model, {0, 1, 2, 3, 4})).open()
    first, second = engine.slot(), engine.slot()
    bad, good = batch_of(model, 4), batch_of(model, 4, seed=1)
    bad["image"][0] = 666
    with pytest.raises(BackendError, match="the device faults on this batch"):
        run(engine, bad, first)
    assert_same(run(engine, good, second), expected(model, good))
    machine.close()


def test_memory_that_runs_out_is_a_memory_error_and_smaller_batches_still_run() -> None:
    machine, model = Machine(limit_bytes=100_000), convolutional()
    engine = machine.engine(model, cut_up(model, {0, 1, 3}, rows=64), most=64).open()
    slot = engine.slot()
    with pytest.raises(MemoryError):
        run(engine, batch_of(model, 64), slot)
    assert all(stream.is_idle for stream in machine.device.streams.values())
    assert_same(run(engine, batch_of(model, 2), slot), expected(model, batch_of(model, 2)))
    machine.close()


def test_closing_releases_everything_also_with_a_batch_in_flight(machine: Machine) -> None:
    model = data_dependent()
    engine = machine.engine(model, cut_up(model, {0, 1, 5})).open()
    slot = engine.slot()
    engine.enqueue(slot, fill(slot, batch_of(model, 4)))
    engine.close()
    engine.close()
    assert not machine.device.alive


def test_a_slot_that_is_enqueued_again_waits_for_its_first_batch(machine: Machine) -> None:
    model = data_dependent()
    del model.graph.node[4:]
    model.graph.output[0].CopyFrom(info("positives", TensorProto.FLOAT, ["K"]))
    engine = machine.engine(model, cut_up(model, set())).open()
    slot = engine.slot()
    few, many = -np.ones((3, 4), np.float32), np.ones((3, 4), np.float32)
    few[0] = 1
    engine.enqueue(slot, fill(slot, {"x": few}))
    # The outputs need more memory than those of the first batch, which may not be copied yet.
    slot.bind("x", many)
    engine.enqueue(slot, 3)
    engine.wait(slot)
    assert_same(slot.outputs, expected(model, {"x": many}))


def test_a_fixed_batch_is_filled_up_with_its_last_row() -> None:
    machine, model = Machine(), convolutional(batch=4)
    engine = machine.engine(model, cut_up(model, {0})).open()
    slot, feeds = engine.slot(), batch_of(model, 4)
    fill(slot, {"image": feeds["image"][:2]})
    fed = slot.fed(2)["image"]
    np.testing.assert_array_equal(fed, feeds["image"][[0, 1, 1, 1]])
    machine.close()


def test_memory_of_an_output_of_unknown_size_grows_and_goes_back() -> None:
    machine = Machine()
    machine.device.open()
    with machine.device.current():
        pool = Pool(machine.device)
        allocator = output_allocator(machine.tensorrt, pool)
        small = allocator.reallocate_output_async("y", 0, 100, 256, 1)
        assert allocator.reallocate_output_async("y", small, 50, 256, 1) == small
        large = allocator.reallocate_output("y", small, 10_000, 256)
        assert pool.blocks_out == 1
        assert allocator.collect(np.dtype(np.float32)) is None
        allocator.notify_shape("y", (25, 4))
        array = allocator.collect(np.dtype(np.float32))
        assert (array.pointer, array.shape) == (large, (25, 4))
        assert allocator.collect(np.dtype(np.float32)) is None
        array.owner.release()
        assert allocator.reallocate_output("y", 0, 1 << 40, 256) is None
        assert isinstance(allocator.error(), MemoryError)
        assert allocator.error() is None
        pool.close()
    machine.device.close()


def test_an_engine_that_was_never_opened_closes() -> None:
    machine, model = Machine(), convolutional()
    machine.engine(model, cut_up(model, {0})).close()
    assert machine.device.opened == 0
