"""The segments of a network as runners, and the values that pass between them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from ...errors import InternalError
from ..building.flavour import Flavour
from .device import Device, Stream
from .memory import Pool
from .onnxruntime_runner import HostRunner, NativeRunner
from .plan import OutsideProfile, PlanRunner
from .program import SegmentProgram
from .values import DeviceArray, Place, Value, release

__all__ = ["Chain", "Runner"]


class Runner(Protocol):
    """Executes one segment."""

    def run(self, values: Mapping[str, Value], place: Place) -> dict[str, Value]:
        """Executes on some inputs, or adds that to a stream; the caller owns the outputs."""

    def close(self) -> None:
        """Releases what the runner holds; harmless when repeated."""


class Chain:
    """Runs segments in order.

    Args:
        segments: In order.
        drops: For each segment the values that nobody reads after it.
        outputs: What to return.
        flavour: Whose plans they are.
        device: Open while the chain is; None for host memory.
        threads: CPU threads of one operator.
    """

    def __init__(
        self,
        segments: Sequence[SegmentProgram],
        *,
        drops: Sequence[tuple[str, ...]],
        outputs: Sequence[str],
        flavour: Flavour | None,
        device: Device | None,
        threads: int,
    ) -> None:
        self._segments = tuple(segments)
        self._drops = tuple(drops)
        self._outputs = tuple(outputs)
        self._flavour = flavour
        self._device = device
        self._threads = threads
        self._stream: Stream | None = None
        self._pool: Pool | None = None
        self._runners: list[Runner] = []
        self._natives: dict[int, Runner] = {}
        self._fell_back: dict[int, str] = {}

    @property
    def notes(self) -> list[str]:
        """What a user should know of the executions so far."""
        said = list(self._fell_back.values())
        for place, runner in enumerate(self._runners):
            recorded = runner.recorded if isinstance(runner, PlanRunner | NativeRunner) else None
            if recorded is not None and recorded.refused:
                said.append(f"segment {place} runs without CUDA graphs: {recorded.refused}")
        return said

    @property
    def runners(self) -> Sequence[Runner]:
        """The segments' runners while open."""
        return self._runners

    def open(self, stream: Stream | None, pool: Pool | None) -> None:
        """Loads every segment.

        Args:
            stream: Where work on the device goes.
            pool: Where its memory comes from.

        Raises:
            ModelError: A segment cannot be loaded.
            BackendError: TensorRT refuses a plan, or ONNX Runtime the device.
        """
        self._stream, self._pool = stream, pool
        for place, segment in enumerate(self._segments):
            if self._device is not None and segment.kind == "tensorrt":
                self._runners.append(self._planned(segment))
            else:
                self._runners.append(self._native(place))

    def _planned(self, segment: SegmentProgram) -> Runner:
        if self._flavour is None or self._device is None or self._stream is None or self._pool is None:
            raise InternalError("a plan is loaded without a device")
        assert segment.plan is not None
        return PlanRunner(
            segment.plan,
            flavour=self._flavour,
            inputs=segment.inputs,
            outputs=segment.outputs,
            device=self._device,
            stream=self._stream,
            pool=self._pool,
            # Between several segments memory moves, and every move would be another graph.
            use_graphs=len(self._segments) == 1,
        )

    def _native(self, place: int) -> Runner:
        """A segment in ONNX Runtime, loaded at the first call."""
        found = self._natives.get(place)
        if found is not None:
            return found
        segment = self._segments[place]
        if self._device is None or self._stream is None or self._pool is None:
            made: Runner = HostRunner(segment.onnx, outputs=segment.outputs, threads=self._threads)
        else:
            made = NativeRunner(
                segment.onnx,
                outputs=segment.outputs,
                device=self._device,
                stream=self._stream,
                pool=self._pool,
                threads=self._threads,
                # As above; and host memory has no graphs.
                use_graphs=self._device.memory_kind == "cuda"
                and segment.kind == "native"
                and len(self._segments) == 1,
            )
        self._natives[place] = made
        return made

    def run(self, inputs: Mapping[str, Value], target: Place | None) -> dict[str, Value]:
        """Runs the network.

        Args:
            inputs: Its inputs, which stay the caller's.
            target: Finds memory for outputs of the network whose shape is known beforehand.

        Returns:
            Its outputs; the caller releases them.
        """
        values: dict[str, Value] = dict(inputs)
        mine: dict[str, Value] = {}
        try:
            for place in range(len(self._segments)):
                made = self._step(place, values, target)
                values |= made
                mine |= made
                for name in self._drops[place]:
                    values.pop(name, None)
                    if name in mine:
                        release(mine.pop(name))
        except BaseException:
            for value in mine.values():
                release(value)
            raise
        return {name: values[name] for name in self._outputs}

    def _step(self, place: int, values: Mapping[str, Value], target: Place | None) -> dict[str, Value]:
        feeds = {name: values[name] for name in self._segments[place].inputs}
        try:
            return self._runners[place].run(feeds, self._placing(target))
        except OutsideProfile as outside:
            self._fell_back.setdefault(place, f"segment {place} ran in ONNX Runtime at times: {outside}")
            return self._native(place).run(feeds, self._placing(target))

    def _placing(self, target: Place | None) -> Place:
        def place(name: str, shape: tuple[int, ...], dtype: np.dtype) -> DeviceArray:
            if target is not None and name in self._outputs:
                return target(name, shape, dtype)
            assert self._pool is not None
            return self._pool.array(shape, dtype)

        return place

    def close(self) -> None:
        """Closes every segment, also when one of them fails to."""
        with contextlib.ExitStack() as last:
            for runner in {id(r): r for r in (*self._runners, *self._natives.values())}.values():
                last.callback(runner.close)
            self._runners.clear()
            self._natives.clear()
