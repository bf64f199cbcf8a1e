"""A partition whose every segment ONNX Runtime executes on the CPU computes what the whole network does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trtfleet.errors import ModelError, UsageError
from trtfleet.tests.trt_actors.runtime.networks import (
    NETWORKS,
    Array,
    assert_same,
    batch_of,
    convolutional,
    cut_up,
    expected,
    specs,
)
from trtfleet.trt_actors.engine import Engine
from trtfleet.trt_actors.runtime.program import NetworkProgram
from trtfleet.trt_actors.runtime.segmented import SegmentedEngine


def engine_of(model: onnx.ModelProto, program: NetworkProgram, most: int | None = None) -> SegmentedEngine:
    return SegmentedEngine(
        program, inputs=specs(model.graph.input), outputs=specs(model.graph.output), max_batch_size=most
    )


def run(engine: SegmentedEngine, feeds: dict[str, Array]) -> dict[str, Array]:
    slot = engine.slot()
    for name, array in feeds.items():
        slot.bind(name, array)
    engine.enqueue(slot, len(next(iter(feeds.values()))))
    engine.wait(slot)
    return dict(slot.outputs)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=list(NETWORKS))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_choice_of_nodes_computes_the_same(
    network: Callable[[], onnx.ModelProto], data: st.DataObject
) -> None:
    model = network()
    chosen = data.draw(st.sets(st.integers(0, len(model.graph.node) - 1)))
    rows = data.draw(st.integers(1, 9))
    feeds = batch_of(model, rows, seed=len(chosen))
    engine = engine_of(model, cut_up(model, chosen)).open()
    assert_same(run(engine, feeds), expected(model, feeds))
    engine.close()


def test_it_is_an_engine_and_says_what_it_is() -> None:
    model = convolutional()
    engine = engine_of(model, cut_up(model, {0, 1}), most=16)
    assert isinstance(engine, Engine)
    assert (engine.backend, engine.max_batch_size, engine.notes) == ("onnxruntime-cpu", 16, ())


def test_a_small_batch_of_a_fixed_size_is_filled_up_and_cut_again() -> None:
    model = convolutional(batch=4)
    engine = engine_of(model, cut_up(model, {2, 3, 4})).open()
    assert engine.max_batch_size == 4
    feeds = batch_of(model, 4)
    few = {name: array[:3] for name, array in feeds.items()}
    assert_same(run(engine, few), {name: array[:3] for name, array in expected(model, feeds).items()})
    engine.close()


def test_too_many_rows_are_refused_with_both_numbers() -> None:
    model = convolutional()
    engine = engine_of(model, cut_up(model, set()), most=4).open()
    slot = engine.slot()
    with pytest.raises(UsageError, match="a batch of 5 rows is larger than max_batch_size 4"):
        engine.enqueue(slot, 5)
    assert_same(run(engine, batch_of(model, 4)), expected(model, batch_of(model, 4)))
    engine.close()


def test_inputs_are_borrowed_and_buffers_are_filled_in_place() -> None:
    model = convolutional()
    engine = engine_of(model, cut_up(model, {5})).open()
    feeds = batch_of(model, 2)
    slot = engine.slot()
    slot.buffer("image", (2, 3, 8, 8))[:] = feeds["image"]
    engine.enqueue(slot, 2)
    engine.wait(slot)
    assert_same(slot.outputs, expected(model, feeds))
    transposed = np.ascontiguousarray(feeds["image"].T).T
    slot.bind("image", transposed)
    engine.enqueue(slot, 2)
    assert_same(slot.outputs, expected(model, feeds))
    engine.close()


def test_segments_that_do_not_fit_are_refused() -> None:
    model = convolutional()
    program = cut_up(model, {3, 4})
    with pytest.raises(ModelError, match=r"segment 0 reads .*, which nothing before it makes"):
        engine_of(model, NetworkProgram(segments=program.segments[1:]))
    with pytest.raises(ModelError, match="no segment makes the output 'embedding'"):
        engine_of(model, NetworkProgram(segments=program.segments[:1]))


def test_closing_twice_is_harmless_and_reopening_works() -> None:
    model = convolutional()
    engine = engine_of(model, cut_up(model, {0})).open()
    engine.close()
    engine.close()
    engine.open()
    assert_same(run(engine, batch_of(model, 1)), expected(model, batch_of(model, 1)))
    engine.close()
