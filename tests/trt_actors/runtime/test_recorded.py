"""CUDA graphs of a whole network: when they are captured, when again, and when not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
import pytest
from trtfleet.tests.trt_actors.runtime.machine import Machine, rows, run, whole
from trtfleet.tests.trt_actors.runtime.networks import (
    assert_same,
    batch_of,
    convolutional,
    cut_up,
    data_dependent,
    expected,
)
from trtfleet.trt_actors.runtime.plan import PlanRunner
from trtfleet.trt_actors.runtime.recorded import RecordedRuns
from trtfleet.trt_actors.runtime.segmented import SegmentedEngine


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.close()


def recorded(engine: SegmentedEngine) -> RecordedRuns:
    (runner,) = engine.runners
    assert isinstance(runner, PlanRunner)
    assert runner.recorded is not None
    return runner.recorded


def check(engine: SegmentedEngine, slot: Any, count: int, seed: int) -> None:
    model = convolutional()
    feeds = batch_of(model, count, seed)
    assert_same(run(engine, feeds, slot), expected(model, feeds))


def test_a_shape_that_comes_again_is_captured_once(machine: Machine) -> None:
    engine = machine.engine(convolutional(), whole(convolutional(), [rows(1, 8)])).open()
    slot, runs = engine.slot(), recorded(engine)
    counts = []
    for seed in range(6):
        check(engine, slot, 8, seed)
        counts.append((runs.captures, runs.launches))
    # Once plainly, once to warm up the context of its own, then by graph.
    assert counts == [(0, 0), (0, 0), (1, 1), (1, 2), (1, 3), (1, 4)]


def test_a_shape_that_comes_once_is_not(machine: Machine) -> None:
    engine = machine.engine(convolutional(), whole(convolutional(), [rows(1, 8)])).open()
    slot = engine.slot()
    for count in range(1, 9):
        check(engine, slot, count, count)
    assert (recorded(engine).captures, machine.tensorrt.contexts) == (0, 1)


def test_each_slot_has_its_own_addresses_and_graph(machine: Machine) -> None:
    engine = machine.engine(convolutional(), whole(convolutional(), [rows(1, 8)])).open()
    slots = [engine.slot() for _ in range(3)]
    for turn in range(5):
        for place, slot in enumerate(slots):
            check(engine, slot, 8, 10 * turn + place)
    runs = recorded(engine)
    assert runs.captures == 3
    assert runs.launches == 13
    # One for plain executions, one for all executions of eight rows.
    assert machine.tensorrt.contexts == 2


def test_addresses_that_change_are_captured_again(machine: Machine) -> None:
    engine = machine.engine(convolutional(), whole(convolutional(), [rows(1, 16)])).open()
    slot, runs = engine.slot(), recorded(engine)
    for seed in range(4):
        check(engine, slot, 8, seed)
    assert runs.captures == 1
    # A larger batch needs larger memory, which lies elsewhere.
    check(engine, slot, 16, 9)
    for seed in range(4):
        check(engine, slot, 8, seed)
    assert runs.captures == 2


def test_shapes_alternate_without_being_captured_again(machine: Machine) -> None:
    engine = machine.engine(convolutional(), whole(convolutional(), [rows(1, 4), rows(5, 8)])).open()
    slot, runs = engine.slot(), recorded(engine)
    check(engine, slot, 8, 0)
    for turn in range(6):
        for count in (8, 4, 5):
            check(engine, slot, count, turn)
    assert runs.captures == 3


def test_only_a_few_shapes_and_graphs_are_kept(machine: Machine) -> None:
    engine = machine.engine(convolutional(), whole(convolutional(), [rows(1, 12)])).open()
    slots = [engine.slot() for _ in range(18)]
    for slot in slots:
        check(engine, slot, 12, 0)
    for count in range(1, 13):
        for seed in range(4):
            check(engine, slots[seed % 2], count, seed)
    for turn in range(2):
        for slot in slots:
            check(engine, slot, 12, turn)
    graphs = [thing for thing in machine.device.alive if type(thing).__name__ == "GraphDouble"]
    assert len(graphs) <= 16 + 3 * 2


def test_work_that_cannot_be_captured_runs_plainly_and_says_so(machine: Machine) -> None:
    machine.tensorrt.can_capture = False
    engine = machine.engine(convolutional(), whole(convolutional(), [rows(1, 8)])).open()
    slot = engine.slot()
    for seed in range(5):
        check(engine, slot, 8, seed)
    assert recorded(engine).launches == 0
    (note,) = engine.notes
    assert "segment 0 runs without CUDA graphs: TensorRT refuses the execution: this execution" in note


def test_outputs_of_unknown_size_are_not_captured(machine: Machine) -> None:
    model = data_dependent()
    program = cut_up(model, {0, 1})
    first = program.segments[0]
    part = type(program)(segments=(first,))
    alone = onnx.load_from_string(first.onnx)
    engine = machine.engine(alone, part).open()
    for seed in range(4):
        feeds = batch_of(model, 5, seed)
        assert_same(run(engine, feeds), expected(alone, feeds))
    assert recorded(engine).captures == 0


def test_segments_between_others_are_not_captured(machine: Machine) -> None:
    engine = machine.engine(convolutional(), cut_up(convolutional(), {0, 1, 2})).open()
    slot = engine.slot()
    for seed in range(4):
        check(engine, slot, 8, seed)
    assert [runner.recorded for runner in engine.runners if isinstance(runner, PlanRunner)] == [None]
