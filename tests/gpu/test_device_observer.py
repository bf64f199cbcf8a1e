"""Calibration on a real GPU: no activation leaves it, and the statistics are those of its activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trtfleet
from trtfleet.tests.trt_actors.calibration.samples import (
    NORMALIZE,
    convolutional,
    images,
    observe,
    write_images,
)
from trtfleet.trt_actors.calibration.collector import Collector
from trtfleet.trt_actors.calibration.device_observer import DeviceObserver
from trtfleet.trt_actors.calibration.observed import ObservedNetwork, expose, observed
from trtfleet.trt_actors.calibration.observer import HostObserver
from trtfleet.trt_actors.calibration.session import open_session
from trtfleet.trt_actors.calibration.statistics import encode, merge_all
from trtfleet.trt_actors.calibration.table import CalibrationTable
from trtfleet.trt_actors.graph import StoredInput, prepare
from trtfleet.trt_actors.model import load_model
from trtfleet.trt_actors.normalize import Normalize

pytestmark = pytest.mark.gpu("onnxruntime", "pycuda")

TENSORS = ("x", "b", "d", "f")
SETTINGS = {"device_id": "0", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}


def network_of(path: Path, batch: int | str = "N") -> ObservedNetwork:
    exposed, values = expose(load_model(convolutional(path, batch)), TENSORS)
    stored = {"x": StoredInput(dtype=np.dtype(np.uint8), layout="nhwc")}
    return observed(prepare(exposed, stored=stored, normalize=Normalize.parse(NORMALIZE)), values)


def test_counts_exactly_what_the_network_computes_there(tmp_path: Path) -> None:
    network = network_of(tmp_path / "m.onnx")
    batches = [images(32, seed) for seed in range(3)] + [images(7, seed=9)]
    session = open_session(network.network, [("CUDAExecutionProvider", SETTINGS), "CPUExecutionProvider"])
    collector = Collector()
    for batch in batches:
        found = session.run(list(network.tensors.values()), {"x": batch})
        for tensor, values in zip(network.tensors, found, strict=True):
            collector.add(tensor, values)
    assert encode(observe(DeviceObserver(network), batches)) == encode(collector.statistics())


def test_is_the_same_whoever_observes(tmp_path: Path) -> None:
    network = network_of(tmp_path / "m.onnx")
    batches = [images(32, seed) for seed in range(4)]
    whole = observe(DeviceObserver(network), batches)
    halves = [observe(DeviceObserver(network), part) for part in (batches[2:], batches[:2])]
    assert encode(merge_all(halves)) == encode(whole)


def test_is_close_to_the_cpu(tmp_path: Path) -> None:
    network = network_of(tmp_path / "m.onnx")
    batches = [images(32)]
    there, here = observe(DeviceObserver(network), batches), observe(HostObserver(network), batches)
    for tensor in TENSORS:
        assert there[tensor].count == here[tensor].count
        np.testing.assert_allclose(there[tensor].minimum, here[tensor].minimum, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(there[tensor].maximum, here[tensor].maximum, rtol=1e-4, atol=1e-4)


def test_repeated_rows_of_a_fixed_batch_do_not_count(tmp_path: Path) -> None:
    network = network_of(tmp_path / "m.onnx", batch=8)
    found = observe(DeviceObserver(network), [images(3)])
    assert {name: one.count for name, one in found.items()} == {
        "x": 3 * 3 * 64,
        "b": 3 * 4 * 64,
        "d": 3 * 4 * 64,
        "f": 3 * 4,
    }


@pytest.mark.ray
def test_the_table_is_the_same_for_one_actor_and_for_two_on_one_gpu(
    tmp_path: Path, ray_session: None
) -> None:
    import ray

    if not ray.cluster_resources().get("GPU"):
        pytest.skip("Ray sees no GPU on this machine")
    convolutional(tmp_path / "m.onnx")
    write_images(tmp_path / "data")
    for actors in (1, 2):
        summary = trtfleet.calibrate(
            tmp_path / "m.onnx",
            tmp_path / "data",
            tmp_path / f"{actors}.json",
            actors=actors,
            gpus_per_actor=0.5,
            samples=100,
            batch_size=8,
            normalize=NORMALIZE,
            layout="nhwc",
        )
        assert (summary.backend, summary.actors) == ("onnxruntime-cuda", actors)
    tables = [(tmp_path / f"{actors}.json").read_bytes() for actors in (1, 2)]
    assert tables[0] == tables[1]
    assert sorted(CalibrationTable.decode(tables[0], "table").tensors) == ["b", "d", "f", "x"]
