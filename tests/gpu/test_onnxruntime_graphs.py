"""CUDA graphs of ONNX Runtime's runs on a real GPU: the same bits with and without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
from trtfleet.tests.trt_actors.runtime.networks import (
    NETWORKS,
    Array,
    batch_of,
    convolutional,
    cut_up,
    data_dependent,
    specs,
)
from trtfleet.trt_actors.pipeline import Pipeline
from trtfleet.trt_actors.runtime import chain
from trtfleet.trt_actors.runtime.cuda import CudaDevice
from trtfleet.trt_actors.runtime.onnxruntime_runner import NativeRunner
from trtfleet.trt_actors.runtime.program import NetworkProgram, SegmentProgram
from trtfleet.trt_actors.runtime.segmented import SegmentedEngine

pytestmark = pytest.mark.gpu("pycuda", "onnxruntime")


class WithoutGraphs(NativeRunner):
    """Never records."""

    def __init__(self, *given: object, **options: object) -> None:
        super().__init__(*given, **{**options, "use_graphs": False})  # type: ignore[arg-type]


def engine_of(model: onnx.ModelProto) -> SegmentedEngine:
    """A network as one native segment."""
    (whole,) = cut_up(model, set()).segments
    program = SegmentProgram(kind="native", inputs=whole.inputs, outputs=whole.outputs, onnx=whole.onnx)
    return SegmentedEngine(
        NetworkProgram(segments=(program,)),
        inputs=specs(model.graph.input),
        outputs=specs(model.graph.output),
        device=CudaDevice(),
    )


def native(engine: SegmentedEngine) -> NativeRunner:
    (runner,) = engine.runners
    assert isinstance(runner, NativeRunner)
    return runner


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[onnx.ModelProto], SegmentedEngine]]:
    """Opens engines without graphs."""
    engines: list[SegmentedEngine] = []

    def open_plainly(model: onnx.ModelProto) -> SegmentedEngine:
        with monkeypatch.context() as patched:
            patched.setattr(chain, "NativeRunner", WithoutGraphs)
            engines.append(engine_of(model).open())
        return engines[-1]

    yield open_plainly
    for engine in engines:
        engine.close()


def outputs_of(
    engine: SegmentedEngine, batches: list[dict[str, Array]], slots: int
) -> list[dict[str, Array]]:
    """Runs batches through a few slots, several in flight."""
    made = [engine.slot() for _ in range(slots)]
    found: list[dict[str, Array]] = []
    for start in range(0, len(batches), slots):
        some = batches[start : start + slots]
        for slot, feeds in zip(made, some, strict=False):
            for name, array in feeds.items():
                slot.buffer(name, array.shape)[:] = array
            engine.enqueue(slot, len(next(iter(feeds.values()))))
        for slot, _ in zip(made, some, strict=False):
            engine.wait(slot)
            found.append({name: array.copy() for name, array in slot.outputs.items()})
    return found


@pytest.mark.parametrize("network", NETWORKS.values(), ids=list(NETWORKS))
@pytest.mark.parametrize("rows", [4, 16])
def test_the_same_bits_with_and_without_graphs(
    network: Callable[[], onnx.ModelProto],
    rows: int,
    plainly: Callable[[onnx.ModelProto], SegmentedEngine],
) -> None:
    model = network()
    engine = engine_of(model).open()
    batches = [batch_of(model, rows, seed) for seed in range(24)]
    found = outputs_of(engine, batches, 3)
    wanted = outputs_of(plainly(model), batches, 3)
    for ours, theirs in zip(found, wanted, strict=True):
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array, err_msg=name)
    engine.close()


def test_a_convolutional_network_runs_by_graph() -> None:
    model = convolutional()
    engine = engine_of(model).open()
    engine.full_rows = 32
    outputs_of(engine, [batch_of(model, 32 - seed % 5, seed) for seed in range(24)], 3)
    recorded = native(engine).recorded
    assert recorded is not None
    assert recorded.refused == ""
    assert (recorded.captures, recorded.launches) == (3, 24 - 3 * 3)
    assert engine.notes == ()
    engine.close()


def test_what_cannot_be_recorded_runs_without_and_says_so() -> None:
    model = data_dependent()
    engine = engine_of(model).open()
    outputs_of(engine, [batch_of(model, 8, seed) for seed in range(9)], 1)
    recorded = native(engine).recorded
    assert recorded is not None
    assert recorded.captures == 0
    assert "segment 0 runs without CUDA graphs" in engine.notes[0]
    engine.close()


def test_graphs_are_recorded_while_other_threads_allocate() -> None:
    """The pipeline's feeders take pinned memory while its engine thread records."""
    model = convolutional()
    engine = engine_of(model).open()
    engine.full_rows = 64
    pipeline = Pipeline(engine, 4)
    errors: list[BaseException] = []
    found: list[Array] = []
    batches = [batch_of(model, 64, seed) for seed in range(4)]
    pipeline.begin(64)
    for turn in range(60):
        slot = pipeline.acquire()
        slot.bind("image", batches[turn % 4]["image"])
        assert engine.device is not None
        with engine.device.current():
            engine.device.host(1 << 16).close()
            engine.device.allocate(1 << 16).close()

        def deliver(outputs: object, error: BaseException | None) -> None:
            if error is not None:
                errors.append(error)
            else:
                found.append(outputs["scores"].copy())  # type: ignore[index]

        pipeline.submit(slot, 64, deliver)
    pipeline.end()
    pipeline.close()
    engine.close()
    assert errors == []
    for turn, scores in enumerate(found):
        np.testing.assert_array_equal(scores, found[turn % 4])
