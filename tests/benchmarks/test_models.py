"""The benchmarks' models have the shapes and sizes they claim and give usable numbers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest


def load_models() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "models.py"
    spec = importlib.util.spec_from_file_location("benchmark_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


models = load_models()


@dataclass(frozen=True, kw_only=True)
class Case:
    build: Callable[[], onnx.ModelProto]
    source: str
    row_shape: tuple[int, ...]
    classes: int
    parameters: int
    multiply_adds: int


# torchvision's resnet18 has 11,689,512 parameters, of which 4,800 are the scales that folding takes away.
RESNET18_PARAMETERS = 11_689_512 - 4_800

CASES = {
    "small_resnet": Case(
        build=models.small_resnet,
        source="image",
        row_shape=(3, 64, 64),
        classes=100,
        parameters=1_250_660,
        multiply_adds=63_824_896,
    ),
    "resnet18": Case(
        build=models.resnet18,
        source="image",
        row_shape=(3, 224, 224),
        classes=1000,
        parameters=RESNET18_PARAMETERS,
        multiply_adds=1_814_073_344,
    ),
    "tiny_mlp": Case(
        build=lambda: models.tiny_mlp(16, 4),
        source="features",
        row_shape=(16,),
        classes=4,
        parameters=16 * 32 + 32 + 32 * 4 + 4,
        multiply_adds=16 * 32 + 32 * 4,
    ),
}


def multiply_adds_of(model: onnx.ModelProto) -> int:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
        for value in [*graph.value_info, *graph.output]
    }
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type in {"Conv", "Gemm"}:
            positions = np.prod(shapes[node.output[0]][1:], dtype=int)
            total += int(np.prod(weights[node.input[1]], dtype=int) * positions)
    return total


def activations_of(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs the model and returns every tensor that a node makes."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    names = [name for node in probe.graph.node for name in node.output]
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, feed), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_shapes_sizes_and_activations(name: str) -> None:
    case = CASES[name]
    model = case.build()
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    assert sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer) == case.parameters
    assert multiply_adds_of(model) == case.multiply_adds

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (source,), (result,) = session.get_inputs(), session.get_outputs()
    assert (source.name, source.type, source.shape) == (case.source, "tensor(float)", ["N", *case.row_shape])
    assert (result.name, result.type, result.shape) == ("logits", "tensor(float)", ["N", case.classes])

    rows = np.random.default_rng(7).standard_normal((2, *case.row_shape), dtype=np.float32)
    activations = activations_of(model, {case.source: rows})
    assert activations["logits"].shape == (2, case.classes)
    assert not np.array_equal(activations["logits"][0], activations["logits"][1])
    for tensor, values in activations.items():
        assert np.isfinite(values).all(), tensor
        assert 0.05 < values.std() < 20, f"{tensor} has std {values.std():.3g}"


def test_layers_of_resnet18_have_readable_names() -> None:
    names = [node.name for node in models.resnet18(classes=10, size=64).graph.node if node.op_type == "Conv"]
    assert len(names) == 20
    assert names[:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert [name for name in names if "downsample" in name] == [
        f"layer{stage}.0.downsample" for stage in (2, 3, 4)
    ]


def test_classes_and_size_are_the_callers() -> None:
    model = models.small_resnet(classes=7, size=32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": np.zeros((3, 3, 32, 32), np.float32)})
    assert logits.shape == (3, 7)


def test_weights_depend_on_the_seed_alone() -> None:
    first, again, other = models.tiny_mlp(8, 3), models.tiny_mlp(8, 3), models.tiny_mlp(8, 3, seed=1)
    assert first.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    assert first.SerializeToString(deterministic=True) != other.SerializeToString(deterministic=True)


def test_builder_refuses_a_graph_that_contradicts_its_declared_output() -> None:
    graph = models.GraphBuilder()
    logits = graph.linear("fc", "x", np.ones((3, 4), np.float32), np.zeros(3, np.float32))
    with pytest.raises(onnx.shape_inference.InferenceError):
        graph.model("wrong", source=("x", [4]), result=(logits, "logits", [5]))
