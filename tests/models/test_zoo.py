"""The stored networks are what they claim: small, valid, the same each time, and usable."""

from __future__ import annotations

import lzma
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from trtfleet.tests.models.strip import fill, read, strip, write
from trtfleet.tests.models.zoo import NETWORKS, ZOO, load, names

HERE = Path(__file__).resolve().parent
STORED = sorted(path for path in NETWORKS.iterdir() if ".onnx" in path.suffixes)
# One of each way to export a network; filling knows tensors only, and not of which network they are.
FILLED = ("mobilenet_v1", "mobilenet_ssd", "icnet")

ASKED_FOR = {
    "classification": {
        "mobilenet_v1", "resnet50", "vgg16", "resnext50", "alexnet", "se_resnext50", "googlenet", "dpn68",
    },
    "detection": {
        "yolov3", "ssd", "mobilenet_ssd", "retinanet", "faster_rcnn", "mask_rcnn", "cascade_rcnn",
    },
    "segmentation": {"icnet"},
}  # fmt: skip


def test_every_network_asked_for_is_there() -> None:
    for family, expected in ASKED_FOR.items():
        assert expected <= set(names(family))  # type: ignore[arg-type]
    assert sum(name.startswith("light_") for name in names()) == 9


def test_every_stored_file_belongs_to_a_network() -> None:
    paths = {entry.path for entry in ZOO.values()}
    assert [path for path in STORED if path not in paths] == []
    assert [path for path in paths if not path.exists()] == []


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.name)
def test_a_stored_network_is_small_and_says_nothing_of_where_it_was_made(path: Path) -> None:
    data = path.read_bytes()
    assert len(data) < 1_000_000
    plain = lzma.decompress(data) if path.suffix == ".xz" else data
    assert b"/tmp/" not in plain
    assert b"site-packages" not in plain
    assert b".py" not in plain


@pytest.mark.parametrize("name", names())
def test_its_definition_is_named(name: str) -> None:
    source = ZOO[name].source
    package, _, rest = source.partition(" ")
    if rest:
        assert package in {"torchvision", "timm", "onnx"}
    else:
        assert (HERE / source).is_file()


@pytest.mark.parametrize("name", FILLED)
def test_the_same_seed_gives_the_same_bytes(name: str) -> None:
    assert load(name).SerializeToString(deterministic=True) == load(name).SerializeToString(
        deterministic=True
    )


def test_another_seed_gives_other_weights() -> None:
    first, second = load("mobilenet_v1"), load("mobilenet_v1", seed=1)
    pairs = zip(first.graph.initializer, second.graph.initializer, strict=True)
    assert any(one.raw_data != other.raw_data for one, other in pairs)


def _linear(weights: np.ndarray, shape: list[int]) -> onnx.ModelProto:
    """``y = reshape(x @ weights, shape)`` with comments everywhere."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"], "product", doc_string="/tmp/model.py"),
            helper.make_node("Reshape", ["product", "shape"], ["y"], "reshape"),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", weights.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array(shape, np.int64), "shape")],
        doc_string="by hand",
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.add(key="where", value="here")
    return model


@settings(deadline=None)
@given(
    rows=st.integers(4, 40),
    columns=st.integers(4, 40),
    mean=st.floats(-10, 10, width=32),
    deviation=st.floats(0, 10, width=32),
    seed=st.integers(0, 2**32 - 1),
)
def test_filled_weights_have_the_mean_deviation_and_range_of_those_taken_out(
    rows: int, columns: int, mean: float, deviation: float, seed: int
) -> None:
    normal = np.random.default_rng(seed).standard_normal((rows, columns))
    weights = (normal * deviation + mean).astype(np.float32)
    model = _linear(weights, [-1, columns])
    before = model.SerializeToString(deterministic=True)
    bare = strip(model)
    assert model.SerializeToString(deterministic=True) == before
    assert bare.ByteSize() < 1000
    filled, shape = map(numpy_helper.to_array, fill(bare, seed).graph.initializer)
    assert filled.shape == weights.shape
    assert filled.dtype == np.float32
    assert shape.tolist() == [-1, columns]
    slack = 1e-4 * (1 + abs(mean) + deviation)
    assert weights.min() - slack <= filled.min() <= filled.max() <= weights.max() + slack
    # Five standard errors of the mean of a uniform sample.
    error = 5 * weights.std() / weights.size**0.5
    assert abs(filled.mean() - weights.mean()) <= error + slack


def test_a_seed_stands_for_the_same_numbers_everywhere() -> None:
    bare = strip(_linear(np.array([[-1, 1, -2, 2]] * 4, np.float32), [-1, 4]))
    filled = numpy_helper.to_array(fill(bare, seed=7).graph.initializer[0])
    np.testing.assert_allclose(filled[0], [2, -0.10329653, 1.42713535, -2], rtol=1e-6)


def test_comments_and_metadata_go() -> None:
    bare = strip(_linear(np.ones((4, 4), np.float32), [-1, 4]))
    assert b"/tmp/model.py" not in bare.SerializeToString()
    assert (bare.graph.doc_string, len(bare.metadata_props), bare.producer_name) == ("", 0, "")


def test_a_table_that_is_no_weight_keeps_its_values() -> None:
    table = np.arange(64, dtype=np.float32).reshape(8, 8)
    model = _linear(table, [-1, 8])
    model.graph.node.add(op_type="Add", input=["w", "w"], output=["sum"], name="sum")
    assert np.array_equal(numpy_helper.to_array(strip(model).graph.initializer[0]), table)


def test_a_large_structure_is_stored_compressed(tmp_path: Path) -> None:
    bare = strip(_linear(np.ones((4, 4), np.float32), [-1, 4]))
    small = write(bare, tmp_path, "net")
    assert small.name == "net.onnx"
    bare.graph.node[0].name = "n" * 1_000_001
    large = write(bare, tmp_path, "net")
    assert (large.name, small.exists()) == ("net.onnx.xz", False)
    assert read(large) == bare
    assert large.stat().st_size < 10_000


def test_the_zoo_needs_no_training_library() -> None:
    source = "import sys, trtfleet.tests.models.zoo; print(sorted({'torch', 'timm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
