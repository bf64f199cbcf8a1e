"""CUDA graphs of ONNX Runtime's runs: when they are recorded, what is refused, that no batch fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from trtfleet.errors import BackendError
from trtfleet.tests.trt_actors.runtime.device_double import DeviceDouble, of
from trtfleet.tests.trt_actors.runtime.networks import (
    Array,
    batch_of,
    branching,
    convolutional,
    data_dependent,
    expected,
    info,
    make,
)
from trtfleet.trt_actors.runtime.memory import Pool
from trtfleet.trt_actors.runtime.native_graphs import NativeGraphs
from trtfleet.trt_actors.runtime.onnxruntime_runner import NativeRunner
from trtfleet.trt_actors.runtime.values import DeviceArray, nbytes


class StreamRunner(NativeRunner):
    """Runs in the stream's order, as ONNX Runtime does on a GPU, so that its runs can be recorded."""

    def _execute(self, binding: Any) -> None:
        of(self._stream).add(lambda: self._session.run_with_iobinding(binding, self._options))


class Bench:
    """A runner on a device double, and memory for its inputs and outputs as slots have it."""

    def __init__(self, model: onnx.ModelProto, kind: type[NativeRunner] = StreamRunner) -> None:
        self.model = model
        self.device = DeviceDouble().open()
        self._buffers: dict[tuple[int, str], Any] = {}
        with self.device.current():
            self.stream, self.pool = self.device.stream(), Pool(self.device)
            self.runner = kind(
                model.SerializeToString(),
                outputs=[value.name for value in model.graph.output],
                device=self.device,
                stream=self.stream,
                pool=self.pool,
                use_graphs=True,
            )

    @property
    def recorded(self) -> NativeGraphs:
        assert self.runner.recorded is not None
        return self.runner.recorded

    def memory(self, slot: int, name: str, shape: tuple[int, ...], dtype: np.dtype) -> DeviceArray:
        size = nbytes(shape, dtype)
        found = self._buffers.get((slot, name))
        if found is None or found.size_bytes < size:
            if found is not None:
                found.close()
            found = self._buffers[slot, name] = self.device.allocate(size)
        return DeviceArray(pointer=found.pointer, shape=shape, dtype=dtype)

    def run(self, feeds: Mapping[str, Array], slot: int = 0) -> dict[str, Array]:
        with self.device.current():
            values = {}
            for name, array in feeds.items():
                values[name] = self.memory(slot, name, array.shape, array.dtype)
                self.device.upload(values[name].pointer, array, self.stream)
            made = self.runner.run(values, lambda *what: self.memory(slot, *what))
            found = {}
            for name, value in made.items():
                assert isinstance(value, DeviceArray)
                found[name] = np.empty(value.shape, value.dtype)
                self.device.download(found[name], value.pointer, self.stream)
            self.stream.synchronize()
            for value in made.values():
                if isinstance(value, DeviceArray) and value.owner is not None:
                    value.owner.release()
        return found

    def check(self, rows: int, seed: int, slot: int = 0) -> None:
        feeds = batch_of(self.model, rows, seed)
        found, wanted = self.run(feeds, slot), expected(self.model, feeds)
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)

    def close(self) -> None:
        with self.device.current():
            self.runner.close()
            self.runner.close()
            for buffer in self._buffers.values():
                buffer.close()
            self.pool.close()
            self.stream.close()
        self.device.close()


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(*request.param)
    yield made
    made.close()


def on(model: onnx.ModelProto, kind: type[NativeRunner] = StreamRunner) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("bench", [(model, kind)], indirect=True, ids=[kind.__name__])


@on(convolutional())
def test_a_batch_whose_addresses_come_again_is_recorded_once(bench: Bench) -> None:
    counts = []
    for seed in range(6):
        bench.check(8, seed)
        counts.append((bench.recorded.captures, bench.recorded.launches))
    # Two warm up; the third is recorded and found right; the others are launched.
    assert counts == [(0, 0), (0, 0), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert bench.recorded.refused == ""


@on(branching())
def test_slots_and_shapes_have_graphs_of_their_own(bench: Bench) -> None:
    for turn in range(5):
        for slot in range(3):
            bench.check(8, 10 * turn + slot, slot)
            bench.check(5, 100 + 10 * turn + slot, slot)
    assert bench.recorded.captures == 6
    assert bench.recorded.launches == 12


@on(convolutional())
def test_memory_that_moves_is_recorded_again(bench: Bench) -> None:
    for seed in range(4):
        bench.check(4, seed)
    bench.check(16, 9)
    for seed in range(4):
        bench.check(4, seed)
    assert bench.recorded.captures == 2


@on(convolutional())
def test_only_a_few_graphs_are_kept(bench: Bench) -> None:
    for rows in range(20, 0, -1):
        for seed in range(3):
            bench.check(rows, seed)
    assert bench.recorded.captures == 20
    graphs = [thing for thing in bench.device.alive if type(thing).__name__ == "GraphDouble"]
    assert len(graphs) == 16
    bench.check(20, 1)
    bench.check(1, 1)
    assert bench.recorded.launches == 1


@on(convolutional(batch=4))
def test_a_fixed_batch_is_recorded(bench: Bench) -> None:
    for seed in range(4):
        bench.check(4, seed)
    assert (bench.recorded.captures, bench.recorded.launches) == (1, 1)


@on(convolutional(), NativeRunner)
def test_a_recording_that_fails_is_given_up_for_good(bench: Bench) -> None:
    for seed in range(6):
        bench.check(8, seed)
    assert (bench.recorded.captures, bench.recorded.launches) == (0, 0)
    assert "the stream is being captured" in bench.recorded.refused


class HostWork(StreamRunner):
    """Records something that a check finds."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)

        def refuse(stream: Any) -> None:
            raise BackendError("the session does work on the host", "")

        assert self.recorded is not None
        self.recorded._check = refuse


@on(convolutional(), HostWork)
def test_work_on_the_host_is_found_while_recording(bench: Bench) -> None:
    for seed in range(5):
        bench.check(8, seed)
    assert bench.recorded.refused == "the session does work on the host"
    assert not [thing for thing in bench.device.alive if type(thing).__name__ == "GraphDouble"]


class Changing(StreamRunner):
    """What is recorded does not compute what the session does: its outputs are left as they are."""

    def _execute(self, binding: Any) -> None:
        if of(self._stream).captured is None:
            super()._execute(binding)


@on(convolutional(), Changing)
def test_a_graph_with_other_results_is_given_up(bench: Bench) -> None:
    for seed in range(5):
        bench.check(8, seed)
    assert bench.recorded.refused == "its results are not those of the session"
    assert bench.recorded.captures == 0


class FailsOnce(StreamRunner):
    """As a library that reports a failed recording with the next call."""

    failures = 0

    def _execute(self, binding: Any) -> None:
        if of(self._stream).captured is not None:
            self.failures = 1
            raise RuntimeError("operation not permitted when stream is capturing")
        if self.failures:
            self.failures = 0
            raise RuntimeError("an earlier call failed")
        super()._execute(binding)


@on(convolutional(), FailsOnce)
def test_an_error_that_a_recording_leaves_behind_reaches_no_batch(bench: Bench) -> None:
    for seed in range(5):
        bench.check(8, seed)
    assert "not permitted" in bench.recorded.refused


def test_outputs_of_unknown_size_rule_graphs_out() -> None:
    model = data_dependent()
    del model.graph.node[4:]
    model.graph.output[0].CopyFrom(info("positives", TensorProto.FLOAT, ["K"]))
    bench = Bench(model, NativeRunner)
    assert bench.runner.recorded is None
    bench.check(6, 0)
    bench.close()


def test_a_model_that_declares_wrong_shapes_runs_without_graphs() -> None:
    x, y = info("x", TensorProto.FLOAT, ["N", 4]), info("y", TensorProto.FLOAT, ["N", 4])
    model = make([helper.make_node("Concat", ["x", "x"], ["y"], axis=0)], [x], [y])
    bench = Bench(model, NativeRunner)
    for seed in range(4):
        bench.check(3, seed)
    assert bench.recorded.captures == 0
    bench.close()


@on(convolutional(), NativeRunner)
def test_a_batch_that_is_to_blame_raises_and_the_next_runs(bench: Bench) -> None:
    with pytest.raises(Exception, match=r"(?i)invalid dimensions|got: 7 expected: 8"):
        bench.run({"image": np.zeros((4, 3, 8, 7), np.float32)}, slot=1)
    bench.check(4, 0)
