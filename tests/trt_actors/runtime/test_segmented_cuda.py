"""Native segments on a real GPU: ONNX Runtime on our stream and memory; skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable, Collection

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
    expected,
    specs,
)
from trtfleet.trt_actors.onnxruntime_engine import cuda_missing as onnxruntime_missing
from trtfleet.trt_actors.pipeline import Pipeline
from trtfleet.trt_actors.runtime.cuda import CudaDevice, cuda_missing
from trtfleet.trt_actors.runtime.program import NetworkProgram, SegmentProgram
from trtfleet.trt_actors.runtime.segmented import SegmentedEngine

_MISSING = cuda_missing() or onnxruntime_missing()
pytestmark = pytest.mark.skipif(_MISSING is not None, reason=str(_MISSING))


def engine_of(model: onnx.ModelProto, chosen: Collection[int]) -> SegmentedEngine:
    """A network cut at the chosen nodes, every segment native."""
    segments = [
        SegmentProgram(kind="native", inputs=segment.inputs, outputs=segment.outputs, onnx=segment.onnx)
        for segment in cut_up(model, chosen).segments
    ]
    return SegmentedEngine(
        NetworkProgram(segments=tuple(segments)),
        inputs=specs(model.graph.input),
        outputs=specs(model.graph.output),
        device=CudaDevice(),
    )


def close_to(found: dict[str, Array], wanted: dict[str, Array]) -> None:
    """Equal but for TF32 and the order of additions."""
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        np.testing.assert_allclose(found[name], array, rtol=2e-2, atol=2e-2, err_msg=name)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=list(NETWORKS))
@pytest.mark.parametrize("chosen", [set(), {0, 1}, {1, 3}, {2, 4, 5}], ids=str)
def test_segments_agree_with_the_cpu(network: Callable[[], onnx.ModelProto], chosen: set[int]) -> None:
    model = network()
    engine = engine_of(model, chosen).open()
    assert engine.backend == "onnxruntime-cuda"
    slots = [engine.slot() for _ in range(3)]
    for turn in range(4):
        batches = [batch_of(model, 1 + (turn + place) % 8, 10 * turn + place) for place in range(3)]
        for slot, feeds in zip(slots, batches, strict=True):
            for name, array in feeds.items():
                slot.buffer(name, array.shape)[:] = array
            engine.enqueue(slot, len(next(iter(feeds.values()))))
        for slot, feeds in zip(slots, batches, strict=True):
            engine.wait(slot)
            close_to(dict(slot.outputs), expected(model, feeds))
    engine.close()
    engine.close()


def test_large_batches_overlap_in_the_pipeline() -> None:
    model, count, rows = convolutional(), 40, 2048
    engine = engine_of(model, {2, 3}).open()
    pipeline = Pipeline(engine, 4)
    found: list[Array] = []
    errors: list[BaseException] = []
    batches = [batch_of(model, rows, seed) for seed in range(5)]
    pipeline.begin(rows)
    for turn in range(count):
        slot = pipeline.acquire()
        slot.bind("image", batches[turn % 5]["image"])

        def deliver(outputs: object, error: BaseException | None) -> None:
            if error is not None:
                errors.append(error)
            else:
                found.append(outputs["scores"].copy())  # type: ignore[index]

        pipeline.submit(slot, rows, deliver)
    pipeline.end()
    pipeline.close()
    engine.close()
    assert errors == []
    assert len(found) == count
    for turn, scores in enumerate(found):
        np.testing.assert_array_equal(scores, found[turn % 5])
    np.testing.assert_allclose(found[0], expected(model, batches[0])["scores"], rtol=2e-2, atol=2e-2)


def test_an_error_of_a_batch_leaves_the_engine_usable() -> None:
    model = data_dependent()
    engine = engine_of(model, {0, 1, 2}).open()
    slot = engine.slot()
    slot.bind("x", np.zeros((4, 5), np.float32))
    with pytest.raises(Exception, match=r"(?i)invalid dimension|got: 5 expected: 4"):
        engine.enqueue(slot, 4)
    feeds = batch_of(model, 4)
    slot.bind("x", feeds["x"])
    engine.enqueue(slot, 4)
    engine.wait(slot)
    close_to(dict(slot.outputs), expected(model, feeds))
    engine.close()
