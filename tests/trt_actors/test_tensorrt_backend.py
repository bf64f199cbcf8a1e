"""From a prepared network to rows: real partition, builds and cache; plans run on the device double."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper
from trtfleet.errors import BackendError, CacheError, UsageError
from trtfleet.tests.trt_actors.runtime.device_double import DeviceDouble
from trtfleet.tests.trt_actors.runtime.doubles import TensorRTDouble, double_plan
from trtfleet.trt_actors import backends
from trtfleet.trt_actors.backends import open_engine, why_not
from trtfleet.trt_actors.building.flavour import Flavour, find_flavour
from trtfleet.trt_actors.building.network_build import BuiltNetwork, build_network
from trtfleet.trt_actors.building.options import BuildOptions
from trtfleet.trt_actors.cuda_backend import whole_on_cuda
from trtfleet.trt_actors.engine_facts import engine_facts
from trtfleet.trt_actors.graph import prepare
from trtfleet.trt_actors.model import load_model
from trtfleet.trt_actors.onnxruntime_engine import OnnxRuntimeEngine
from trtfleet.trt_actors.prepared import Prepared
from trtfleet.trt_actors.runtime.program import NetworkProgram
from trtfleet.trt_actors.runtime.segmented import SegmentedEngine
from trtfleet.trt_actors.scorer import Scorer
from trtfleet.trt_actors.task import TensorRTSettings
from trtfleet.trt_actors.tensorrt_backend import identity_of, open_tensorrt
from trtfleet.trt_actors.trace import Tracer


class Builds:
    """Builds with the real builder and swaps each plan for one that the double runs; counts the builds."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, model: onnx.ModelProto, options: BuildOptions, flavour: Flavour) -> BuiltNetwork:
        self.count += 1
        built = build_network(model, options, find_flavour("tensorrt-rtx"))
        segments = []
        for segment, program in zip(built.partition.segments, built.program.segments, strict=True):
            plan = None
            if program.plan is not None:
                assert program.plan[:4] == b"vtrt"
                shapes = {p.name: (p.min, p.opt, p.max) for p in built.profiles[segment.name]}
                plan = double_plan(onnx.load_from_string(program.onnx), [shapes])
            segments.append(replace(program, plan=plan))
        return replace(built, program=NetworkProgram(segments=tuple(segments)))


@pytest.fixture
def builds() -> Builds:
    return Builds()


@pytest.fixture
def network(digits: tuple[Path, Path]) -> Prepared:
    return prepare(load_model(digits[0]))


def settings_for(tmp_path: Path, **options: Any) -> TensorRTSettings:
    options = {"max_batch_size": 32, **options}
    return TensorRTSettings(
        options=BuildOptions(**options), model_digest="digest", cache=str(tmp_path / "cache")
    )


def opened(
    network: Prepared, settings: TensorRTSettings, builds: Builds
) -> tuple[SegmentedEngine, DeviceDouble]:
    device = DeviceDouble()
    double = TensorRTDouble(device)
    return open_tensorrt(network, settings, flavour=double.flavour, device=device, build=builds), device


def run(engine: Any, rows: int) -> dict[str, np.ndarray]:
    slot = engine.slot()
    rng = np.random.default_rng(rows)
    for spec in engine.inputs:
        slot.bind(spec.name, rng.random((rows, *spec.row_shape), np.float32))
    engine.enqueue(slot, rows)
    engine.wait(slot)
    return {name: np.array(values) for name, values in slot.outputs.items()}


def reference(network: Prepared) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(network.model_bytes, inputs=network.inputs, outputs=network.outputs).open()


def test_it_computes_what_onnxruntime_computes(network: Prepared, tmp_path: Path, builds: Builds) -> None:
    engine, device = opened(network, settings_for(tmp_path), builds)
    assert engine.backend.startswith("tensorrt")
    for rows in (1, 7, 32):
        expected = run(reference(network), rows)
        found = run(engine, rows)
        np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-4, atol=1e-4)
    engine.close()
    assert device.used_bytes == 0


def test_the_second_actor_finds_what_the_first_built(
    network: Prepared, tmp_path: Path, builds: Builds
) -> None:
    for _ in range(3):
        opened(network, settings_for(tmp_path), builds)[0].close()
    assert builds.count == 1


def test_without_use_static_nothing_is_kept(network: Prepared, tmp_path: Path, builds: Builds) -> None:
    settings = replace(settings_for(tmp_path), use_static=False)
    for _ in range(2):
        opened(network, settings, builds)[0].close()
    assert builds.count == 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "change", [{"max_batch_size": 16}, {"optimization_level": 1}, {"workspace_size": 1 << 24}]
)
def test_other_options_are_another_engine(
    change: dict[str, Any], network: Prepared, tmp_path: Path, builds: Builds
) -> None:
    opened(network, settings_for(tmp_path), builds)[0].close()
    opened(network, settings_for(tmp_path, **change), builds)[0].close()
    assert builds.count == 2


def test_a_flipped_byte_never_reaches_the_runtime(network: Prepared, tmp_path: Path, builds: Builds) -> None:
    opened(network, settings_for(tmp_path), builds)[0].close()
    for blob in (tmp_path / "cache" / "blobs").iterdir():
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 1
        blob.chmod(0o600)
        blob.write_bytes(bytes(data))
    with pytest.raises(CacheError):
        opened(network, settings_for(tmp_path), builds)
    assert builds.count == 1


def test_a_batch_beyond_max_batch_size_names_both(network: Prepared, tmp_path: Path, builds: Builds) -> None:
    engine, _ = opened(network, settings_for(tmp_path), builds)
    slot = engine.slot()
    slot.bind("image", np.zeros((33, 1, 8, 8), np.float32))
    with pytest.raises(UsageError, match="33 rows is larger than max_batch_size 32"):
        engine.enqueue(slot, 33)
    engine.close()


def test_a_flavour_that_refuses_the_gpu_is_a_backend_error(
    network: Prepared, tmp_path: Path, builds: Builds
) -> None:
    device = DeviceDouble()
    double = TensorRTDouble(device, refuses=2)
    with pytest.raises(BackendError, match="refuses the plan on this machine"):
        open_tensorrt(network, settings_for(tmp_path), flavour=double.flavour, device=device, build=builds)
    assert device.used_bytes == 0


def test_a_mixed_network_runs_both_kinds_of_segments(tmp_path: Path, builds: Builds) -> None:
    ops = ["Tanh", "Abs", "Tanh", "Sin", "Tanh", "Abs", "Tanh"]
    names = ["x", *(f"v{index}" for index in range(len(ops)))]
    nodes = [
        helper.make_node(op, [source], [result])
        for op, source, result in zip(ops, names[:-1], names[1:], strict=True)
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("x", "v6")]
    graph = helper.make_graph(nodes, "mixed", values[:1], values[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        str(tmp_path / "mixed.onnx"),
    )
    network = prepare(load_model(tmp_path / "mixed.onnx"))
    engine, device = opened(network, settings_for(tmp_path, exclude_ops=("Sin",)), builds)
    np.testing.assert_allclose(run(engine, 5)["v6"], run(reference(network), 5)["v6"], rtol=1e-5)
    facts = engine_facts(engine)
    assert [(s.name, s.kind, s.nodes) for s in facts.segments] == [
        ("tensorrt-0", "tensorrt", 3),
        ("native-1", "native", 1),
        ("tensorrt-2", "tensorrt", 3),
    ]
    assert (facts.origin, facts.segments_total, len(facts.runtimes)) == ("built", 3, 2)
    ((reason, count),) = facts.native
    assert (count, "excluded" in reason) == (1, True)
    engine.close()
    assert device.used_bytes == 0
    again, _ = opened(network, settings_for(tmp_path, exclude_ops=("Sin",)), builds)
    assert replace(engine_facts(again), origin="built") == facts
    assert engine_facts(again).origin == "found"
    again.close()


def test_rows_end_up_in_parts(
    digits: tuple[Path, Path],
    tmp_path: Path,
    planned: Callable[..., Any],
    builds: Builds,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = DeviceDouble()
    flavour = TensorRTDouble(device).flavour
    from trtfleet.trt_actors import tensorrt_backend

    real = open_tensorrt
    monkeypatch.setattr(tensorrt_backend, "tensorrt_missing", lambda: None)
    monkeypatch.setattr(
        tensorrt_backend,
        "open_tensorrt",
        lambda network, settings: real(network, settings, flavour=flavour, device=device, build=builds),
    )
    model, data = digits
    job = planned(
        model,
        data,
        normalize="0:16",
        keep="id",
        backend="tensorrt",
        batch_size=64,
        cache=str(tmp_path / "cache"),
    )
    with Scorer(job.task) as scorer:
        assert scorer.info.backend.startswith("tensorrt")
        record = scorer.score(job.shards[0], "a").record
    assert record.rows == 1797
    table = job.part(record)
    assert table["id"].to_pylist() == list(range(1797))
    labels = pq.read_table(data)["label"].to_numpy()
    right = np.stack(table["logits"].to_pylist()).argmax(axis=1) == labels
    assert right.mean() > 0.98
    assert device.used_bytes == 0


def test_auto_says_why_it_does_not_take_tensorrt(
    network: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(
        backends,
        "why_not",
        lambda name, has_gpu: (
            None if name.endswith("cpu") else f"{name} is broken today" if has_gpu else "no GPU"
        ),
    )
    engine, reasons = open_engine("auto", network, settings=settings_for(tmp_path), threads=1)
    assert engine.backend == "onnxruntime-cpu"
    assert reasons == (
        "tensorrt: tensorrt is broken today; onnxruntime-cuda: onnxruntime-cuda is broken today"
    )


def test_without_a_gpu_only_the_cpu_is_left() -> None:
    assert why_not("onnxruntime-cpu", has_gpu=False) is None
    assert why_not("tensorrt", has_gpu=False) == "this process was given no GPU"
    assert why_not("onnxruntime-cuda", has_gpu=False) == "this process was given no GPU"


def test_the_identity_tells_networks_and_gpus_apart(tmp_path: Path) -> None:
    settings, flavour = settings_for(tmp_path), find_flavour("tensorrt-rtx")
    one, other = (identity_of(settings, digest, flavour, None) for digest in ("a", "b"))
    assert one.key != other.key
    assert [field for field, *_ in one.differences(other)] == ["network"]
    assert (one.compute_capability, one.gpu) == ("any", "any")


def test_onnxruntime_on_a_device_goes_through_the_same_slots(network: Prepared) -> None:
    device = DeviceDouble()
    engine = whole_on_cuda(network, 1, device)
    assert engine is not None
    engine.open()
    assert engine.depth > 1
    np.testing.assert_allclose(run(engine, 9)["logits"], run(reference(network), 9)["logits"], rtol=1e-5)
    assert engine.device_s is not None
    assert engine.device_s > 0
    engine.close()
    assert device.used_bytes == 0


def test_smaller_batches_are_filled_up_so_that_the_device_sees_one_shape(network: Prepared) -> None:
    engine = whole_on_cuda(network, 1, DeviceDouble())
    assert engine is not None
    engine.open()
    engine.full_rows = 16
    shapes = []
    (runner,) = engine.runners
    ran = runner.run

    def watched(values: Any, place: Any) -> Any:
        shapes.append(values["image"].shape)
        return ran(values, place)

    runner.run = watched  # type: ignore[method-assign]
    slot = engine.slot()
    for rows in (16, 5, 1, 16):
        images = np.random.default_rng(rows).random((rows, 1, 8, 8), np.float32)
        slot.bind("image", images)
        engine.enqueue(slot, rows)
        engine.wait(slot)
        assert slot.outputs["logits"].shape == (rows, 10)
        cpu = reference(network)
        expected = cpu.slot()
        expected.bind("image", images)
        cpu.enqueue(expected, rows)
        np.testing.assert_allclose(slot.outputs["logits"], expected.outputs["logits"], rtol=1e-4, atol=1e-5)
    assert shapes == [(16, 1, 8, 8)] * 4
    engine.close()


def test_a_tracer_is_told_what_the_three_streams_do(network: Prepared) -> None:
    engine = whole_on_cuda(network, 1, DeviceDouble())
    assert engine is not None
    engine.open()
    tracer = Tracer()
    engine.trace(tracer)
    run(engine, 4)
    run(engine, 4)
    tracks = [event.track for event in tracer.events() if event.track in ("H2D", "compute", "D2H")]
    assert sorted(tracks) == ["D2H", "D2H", "H2D", "H2D", "compute", "compute"]
    engine.close()
