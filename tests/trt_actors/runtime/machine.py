"""A device double with TensorRT's double on it, and the engines that tests make there."""

from __future__ import annotations

import gc
from typing import Any

import onnx
from trtfleet.tests.trt_actors.runtime.device_double import DeviceDouble
from trtfleet.tests.trt_actors.runtime.doubles import TensorRTDouble, double_plan
from trtfleet.tests.trt_actors.runtime.networks import Array, specs
from trtfleet.trt_actors.runtime.program import NetworkProgram, SegmentProgram
from trtfleet.trt_actors.runtime.segmented import SegmentedEngine


class Machine:
    """A device, TensorRT on it, and the engines made there."""

    def __init__(self, *, lazy: bool = True, **options: Any) -> None:
        of_device = {key: options.pop(key) for key in ("limit_bytes", "denies_pinned") if key in options}
        self.device = DeviceDouble(lazy=lazy, **of_device)
        self.tensorrt = TensorRTDouble(self.device, **options)
        self.engines: list[SegmentedEngine] = []

    def engine(
        self, model: onnx.ModelProto, program: NetworkProgram, most: int | None = None
    ) -> SegmentedEngine:
        engine = SegmentedEngine(
            program,
            inputs=specs(model.graph.input),
            outputs=specs(model.graph.output),
            max_batch_size=most,
            flavour=self.tensorrt.flavour,
            device=self.device,
        )
        self.engines.append(engine)
        return engine

    def close(self) -> None:
        """Closes everything and asserts that nothing is left."""
        while self.engines:
            self.engines.pop().close()
        gc.collect()
        assert not self.device.alive
        assert not list(self.tensorrt.alive)


def fill(slot: Any, feeds: dict[str, Array]) -> int:
    """Fills a slot in place; returns the rows."""
    for name, array in feeds.items():
        slot.buffer(name, array.shape)[:] = array
    return len(next(iter(feeds.values())))


def run(engine: SegmentedEngine, feeds: dict[str, Array], slot: Any = None) -> dict[str, Array]:
    """Runs a batch and copies its outputs."""
    slot = slot or engine.slot()
    engine.enqueue(slot, fill(slot, feeds))
    engine.wait(slot)
    return {name: array.copy() for name, array in slot.outputs.items()}


def whole(model: onnx.ModelProto, profiles: list[dict[str, Any]]) -> NetworkProgram:
    """A network as one plan."""
    segment = SegmentProgram(
        kind="tensorrt",
        inputs=tuple(value.name for value in model.graph.input),
        outputs=tuple(value.name for value in model.graph.output),
        onnx=model.SerializeToString(),
        plan=double_plan(model, profiles),
    )
    return NetworkProgram(segments=(segment,))


def rows(low: int, high: int) -> dict[str, Any]:
    """A profile of the convolutional network."""
    shapes = [(size, 3, 8, 8) for size in (low, high, high)]
    return {"image": tuple(shapes)}
