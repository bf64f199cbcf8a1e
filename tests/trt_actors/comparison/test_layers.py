"""Where two networks part, on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trtfleet.tests.trt_actors.comparison.networks import images_of, int8_of, prepared, scaled, table_of
from trtfleet.trt_actors.comparison.difference import Difference
from trtfleet.trt_actors.comparison.layers import Layer, common_tensors, explain, with_tensors
from trtfleet.trt_actors.comparison.runner import SessionRunner
from trtfleet.trt_actors.graph import prepare
from trtfleet.trt_actors.model import load_model
from trtfleet.trt_actors.prepared import Prepared
from trtfleet.trt_actors.quantization.source import quantizable

REPOSITORY = Path(__file__).resolve().parents[3]


def layers_of(
    a: Prepared, b: Prepared, images: np.ndarray, excludable: frozenset[str] = frozenset()
) -> Mapping[str, Layer]:
    _, lineages = common_tensors(a, b)
    names = tuple(lineages)
    with (
        SessionRunner("onnxruntime-cpu", with_tensors(a, names), names) as one,
        SessionRunner("onnxruntime-cpu", with_tensors(b, names), names) as other,
    ):
        x, y = one.run({"image": images}).tensors, other.run({"image": images}).tensors
    found = {name: Difference.of(x[name], y[name]) for name in names}
    return {layer.tensor: layer for layer in explain(found, lineages, excludable)}


def test_a_scaled_weight_is_where_the_error_is_new(digits: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = digits
    broken = prepared(scaled(model, "conv2.weight", 1.5, tmp_path / "broken.onnx"))
    layers = layers_of(prepared(model), broken, images_of(data))
    assert list(layers) == ["conv1.out", "relu1.out", "conv2.out", "relu2.out", "flatten.out", "logits"]
    assert layers["relu1.out"].relative_error == 0.0
    assert 0.4 < layers["conv2.out"].relative_error < 0.8
    assert max(layers.values(), key=lambda layer: layer.added).suspects == ("conv2",)


def test_a_bad_range_is_blamed_on_the_node_that_reads_it(digits: tuple[Path, Path]) -> None:
    model, images = load_model(digits[0]), images_of(digits[1])
    int8 = int8_of(model, table_of(model, images, {"relu1.out": 0.01}))
    layers = layers_of(prepare(model), int8, images, frozenset({"conv1", "conv2", "fc"}))
    worst = max(layers.values(), key=lambda layer: layer.added)
    assert (worst.tensor, worst.suspects) == ("conv2.out", ("conv2",))
    assert worst.relative_error > 0.9
    assert layers["relu1.out"].suspects == ()


def test_networks_with_folded_norms_share_the_results_of_these() -> None:
    model = load_model(REPOSITORY / "benchmarks" / "digits" / "deep.onnx")
    folded = prepare(replace(model, proto=quantizable(model.proto)))
    images = np.random.default_rng(0).random((4, 1, 32, 32), dtype=np.float32)
    layers = layers_of(prepare(model), folded, images)
    assert len(layers) > 20
    assert all(layer.relative_error < 1e-5 for layer in layers.values())


def test_new_errors_add_up_like_independent_ones() -> None:
    layer = Layer(
        tensor="t",
        node="n",
        op_type="Conv",
        relative_error=0.5,
        before=0.3,
        largest=1.0,
        sqnr_db=6.0,
        suspects=(),
    )
    assert layer.added == pytest.approx(0.4)
    assert replace(layer, before=0.6).added == 0.0
    assert replace(layer, relative_error=np.inf).added == np.inf
    assert replace(layer, relative_error=np.inf, before=np.inf).as_json()["relative_error"] is None
