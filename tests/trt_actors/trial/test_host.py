"""One trial after the other on this machine's CPU, in real processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from trtfleet.trt_actors.building.options import BuildOptions
from trtfleet.trt_actors.graph import prepare
from trtfleet.trt_actors.model import load_model
from trtfleet.trt_actors.task import TensorRTSettings
from trtfleet.trt_actors.trial.host import TrialHost, run_trial
from trtfleet.trt_actors.trial.task import Measure, Order

QUICK = Measure(runs=40, seconds=0.05, warm_up_s=0.3, timeout_s=60)


def order_for(path: Path, **changes: object) -> Order:
    model = load_model(path)
    order = Order(
        network=prepare(model),
        settings=TensorRTSettings(options=BuildOptions(), model_digest=model.digest),
        backend="onnxruntime-cpu",
        batch_size=4,
        row_shapes={
            spec.name: tuple(d for d in spec.row_shape if isinstance(d, int)) for spec in model.inputs
        },
        measure=QUICK,
    )
    return replace(order, **changes)  # type: ignore[arg-type]


def test_a_trial_measures_latency_and_throughput(linear_model: Callable[..., Path]) -> None:
    found = TrialHost().run(order_for(linear_model()))
    assert found.error is None
    assert found.executed == "onnxruntime-cpu"
    assert found.device_name
    assert found.latency_runs is not None
    assert found.latency_runs >= 40
    assert found.throughput_runs is not None
    assert found.throughput_runs >= 40
    times = (found.engine_p50_ms, found.host_p50_ms, found.host_p90_ms, found.host_p99_ms)
    assert None not in times
    assert list(times) == sorted(times)  # type: ignore[type-var]
    assert found.rows_per_s is not None
    assert found.rows_per_s_low is not None
    assert found.rows_per_s_high is not None
    assert 0 < found.rows_per_s_low <= found.rows_per_s <= found.rows_per_s_high
    assert (found.gpu_clock_mhz, found.power_w, found.throttled) == (None, None, None)


def test_contexts_and_actors_run_at_once(linear_model: Callable[..., Path]) -> None:
    found = run_trial(order_for(linear_model(), contexts=2, actors=2), [])
    assert found.error is None
    assert found.latency_runs is not None
    assert found.latency_runs >= 4 * QUICK.runs


def test_a_mode_leaves_the_other_out(linear_model: Callable[..., Path]) -> None:
    found = run_trial(order_for(linear_model(), measure=replace(QUICK, mode="latency")), [])
    assert found.host_p50_ms is not None
    assert (found.rows_per_s, found.throughput_runs) == (None, None)


def test_a_backend_that_is_not_there_is_the_trials_error(linear_model: Callable[..., Path]) -> None:
    found = run_trial(order_for(linear_model(), backend="onnxruntime-cuda"), [])
    assert found.error is not None
    assert "onnxruntime-cuda is not available" in found.error
    assert found.host_p50_ms is None


def test_a_network_that_fails_is_the_trials_error(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["shape"], value_ints=[-1, 7]),
            helper.make_node("Reshape", ["x", "shape"], ["y"], "sevens"),
        ],
        "failing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 7])],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "failing.onnx")
    found = run_trial(order_for(tmp_path / "failing.onnx"), [])
    assert found.error is not None
    assert "sevens" in found.error


@pytest.mark.parametrize("timeout_s", [0.0])
def test_a_trial_that_takes_too_long_is_ended(linear_model: Callable[..., Path], timeout_s: float) -> None:
    found = run_trial(order_for(linear_model(), measure=replace(QUICK, timeout_s=timeout_s)), [])
    assert found.error == "it took more than 0 s"
