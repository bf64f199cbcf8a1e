"""What is observed, where it is observed, and which values of a batch count."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from trtfleet.errors import BackendError, ModelError, UsageError
from trtfleet.tests.trt_actors.calibration.kernels_double import KernelDevice, compiled, compiler
from trtfleet.tests.trt_actors.calibration.samples import activations, convolutional, images, observe
from trtfleet.trt_actors.calibration.calibrator import open_observer
from trtfleet.trt_actors.calibration.device_observer import DeviceObserver
from trtfleet.trt_actors.calibration.observed import ObservedNetwork, expose, observed
from trtfleet.trt_actors.calibration.observer import HostObserver, counted_elements
from trtfleet.trt_actors.calibration.statistics import TensorStatistics, encode
from trtfleet.trt_actors.graph import StoredInput, prepare
from trtfleet.trt_actors.model import Model, load_model
from trtfleet.trt_actors.normalize import Normalize

TENSORS = ("x", "b", "d", "f")


def network_of(
    model: Model, tensors: Sequence[str] = TENSORS, normalize: str | None = None
) -> ObservedNetwork:
    exposed, values = expose(model, tensors)
    if normalize is None:
        return observed(prepare(exposed), values)
    stored = {"x": StoredInput(dtype=np.dtype(np.uint8), layout="nhwc")}
    return observed(prepare(exposed, stored=stored, normalize=Normalize.parse(normalize)), values)


def transposing(path: Path, batch: int | str) -> Path:
    """The rows are the second dimension of what the product reads: a float32[3, N, 2] called ``t``."""
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
            helper.make_node("MatMul", ["t", "w"], ["p"]),
            helper.make_node("Transpose", ["p"], ["y"], perm=[1, 0, 2]),
        ],
        "transposing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3, 2])],
        [numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if compiler is None:
        pytest.skip("needs g++, which compiles the kernels for the host")
    return compiled(tmp_path_factory.mktemp("kernels"))


class TestWhatIsObserved:
    def test_every_tensor_has_exactly_its_values(self, tmp_path: Path) -> None:
        model = load_model(convolutional(tmp_path / "m.onnx"))
        batches = [rows(8, seed) for seed in range(3)]
        found = observe(HostObserver(network_of(model)), batches)
        assert sorted(found) == sorted(TENSORS)
        for place, name in enumerate(TENSORS[1:]):
            every = [activations(model.proto, {"x": batch}, TENSORS[1:])[place] for batch in batches]
            assert found[name] == TensorStatistics.of(np.concatenate(every)), name
        assert found["x"] == TensorStatistics.of(np.concatenate(batches))

    def test_an_input_is_observed_as_the_network_sees_it(self, tmp_path: Path) -> None:
        model = load_model(convolutional(tmp_path / "m.onnx"))
        pixels = images(8)
        found = observe(HostObserver(network_of(model, normalize="128:64")), [pixels])
        seen = ((pixels.astype(np.float32) - 128) / 64).transpose(0, 3, 1, 2)
        assert found["x"] == TensorStatistics.of(np.ascontiguousarray(seen))

    def test_an_output_of_the_model_can_be_observed(self, tmp_path: Path) -> None:
        model = load_model(convolutional(tmp_path / "m.onnx"))
        batch = rows(4)
        found = observe(HostObserver(network_of(model, ["y"])), [batch])
        assert found["y"] == TensorStatistics.of(activations(model.proto, {"x": batch}, ["y"])[0])

    def test_a_tensor_that_is_not_there_is_a_defect(self, tmp_path: Path) -> None:
        model = load_model(convolutional(tmp_path / "m.onnx"))
        with pytest.raises(ModelError, match="has no tensor 'z'"):
            expose(model, ["z"])

    def test_rows_that_the_network_does_not_take_are_an_error(self, tmp_path: Path) -> None:
        observer = HostObserver(network_of(load_model(convolutional(tmp_path / "m.onnx")))).open()
        with pytest.raises(ModelError, match="does not run on a batch"):
            observer.collection().add({"x": np.zeros((2, 5, 8, 8), np.float32)})


class TestWhatCounts:
    @pytest.mark.parametrize(
        ("shape", "filled_to", "expected"),
        [
            ((8, 5), 8, 15),  # the batch first
            ((16, 5), 8, 30),  # two entries for each row
            ((7, 8, 2), 8, 112),  # the batch is elsewhere: everything
            ((), 8, 1),  # a scalar
            ((3, 5), 3, 15),  # not filled up
            ((0, 5), 8, 0),
        ],
    )
    def test_the_leading_share_of_a_filled_batch(
        self, shape: tuple[int, ...], filled_to: int, expected: int
    ) -> None:
        assert counted_elements(shape, 3, filled_to) == expected

    def test_a_smaller_batch_is_run_as_it_is_where_the_model_takes_it(self, tmp_path: Path) -> None:
        model = load_model(transposing(tmp_path / "t.onnx", "N"))
        batch = np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32)
        found = observe(HostObserver(network_of(model, ["t"])), [batch])
        assert found["t"] == TensorStatistics.of(batch)

    def test_repeated_rows_of_a_fixed_batch_do_not_count(self, tmp_path: Path) -> None:
        fixed = load_model(convolutional(tmp_path / "fixed.onnx", batch=8))
        free = load_model(convolutional(tmp_path / "free.onnx"))
        batch = rows(3)
        found = observe(HostObserver(network_of(fixed)), [batch])
        whole = np.concatenate([batch, np.repeat(batch[-1:], 5, axis=0)])
        for name, values in zip(TENSORS[1:], activations(free.proto, {"x": whole}, TENSORS[1:]), strict=True):
            assert found[name] == TensorStatistics.of(values[:3]), name
        assert found["x"] == TensorStatistics.of(batch)

    def test_no_foreign_value_counts_where_the_rows_cannot_be_told_apart(self, tmp_path: Path) -> None:
        model = load_model(transposing(tmp_path / "t.onnx", 4))
        batch = np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32) + 10
        found = observe(HostObserver(network_of(model, ["t"])), [batch])["t"]
        assert (found.count, found.zeros) == (24, 0)
        assert (found.minimum, found.maximum) == (batch.min(), batch.max())


class TestOnADevice:
    @pytest.mark.parametrize("lazy", [True, False])
    @pytest.mark.parametrize("batch", ["N", 8])
    def test_the_statistics_are_those_of_the_host(
        self, tmp_path: Path, kernels: ctypes.CDLL, batch: int | str, lazy: bool
    ) -> None:
        network = network_of(load_model(convolutional(tmp_path / "m.onnx", batch)), normalize="128:64")
        batches = [images(8), images(8, seed=1), images(5, seed=2)]
        device = KernelDevice(kernels, lazy=lazy)
        assert encode(observe(DeviceObserver(network, device), batches)) == encode(
            observe(HostObserver(network), batches)
        )

    def test_collections_at_once_count_apart_and_counters_are_used_again(
        self, tmp_path: Path, kernels: ctypes.CDLL
    ) -> None:
        network = network_of(load_model(convolutional(tmp_path / "m.onnx")))
        observer = DeviceObserver(network, KernelDevice(kernels)).open()
        first, second = observer.collection(), observer.collection()
        first.add({"x": rows(4, seed=1)})
        second.add({"x": rows(6, seed=2)})
        first.add({"x": rows(4, seed=3)})
        found = [first.statistics(), second.statistics()]
        first.close()
        third = observer.collection()
        third.add({"x": rows(6, seed=2)})
        found.append(third.statistics())
        third.close()
        second.close()
        observer.close()
        expected = [
            observe(HostObserver(network), batches)
            for batches in ([rows(4, seed=1), rows(4, seed=3)], [rows(6, seed=2)])
        ]
        assert found == [expected[0], expected[1], expected[1]]


class TestBackends:
    def test_auto_takes_the_cpu_where_there_is_no_gpu(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        observer, reason = open_observer("auto", network_of(load_model(convolutional(tmp_path / "m.onnx"))))
        observer.close()
        assert (observer.backend, reason) == ("onnxruntime-cpu", "")

    def test_auto_says_why_not_a_gpu_that_is_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        monkeypatch.setattr(
            "trtfleet.trt_actors.calibration.device_observer.cuda_missing", lambda: "it is too hot"
        )
        observer, reason = open_observer("auto", network_of(load_model(convolutional(tmp_path / "m.onnx"))))
        observer.close()
        assert observer.backend == "onnxruntime-cpu"
        assert "it is too hot" in reason
        with pytest.raises(BackendError, match="it is too hot"):
            open_observer("onnxruntime-cuda", network_of(load_model(convolutional(tmp_path / "m.onnx"))))

    def test_others_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="'tensorrt' does not calibrate"):
            open_observer("tensorrt", network_of(load_model(convolutional(tmp_path / "m.onnx"))))
