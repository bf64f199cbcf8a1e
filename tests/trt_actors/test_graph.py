from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from trtfleet.datasets.signature import TensorSpec
from trtfleet.errors import MismatchError, ModelError, UsageError
from trtfleet.trt_actors import external
from trtfleet.trt_actors.graph import Emit, Normalize, Prepared, StoredInput, prepare
from trtfleet.trt_actors.model import Model, load_model

WEIGHTS = np.random.default_rng(3).standard_normal((3 * 7 * 5, 6))
U8 = np.dtype(np.uint8)
PARTLY = Normalize(mean=(0, 1, 2), std=(1, 2, 3))
RGB = Normalize(mean=(120.5, 110.25, 100.0), std=(58.4, 57.1, 57.4))


def rng() -> np.random.Generator:
    """A fresh one for each use: a test's data does not depend on the tests before it."""
    return np.random.default_rng(7)


def save_and_load(folder: Path, model: onnx.ModelProto) -> Model:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return load_model(path)


def value(name: str, dims: Any, dtype: Any = np.float32) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dims)


def build(nodes: Any, inputs: Any, outputs: Any, initializers: Any = (), opset: int = 17) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def image_model(
    *, dtype: Any = np.float32, layout: str = "nchw", batch: int | str = "N", opset: int = 17
) -> onnx.ModelProto:
    """A linear model over images, and the image it sees as the second output, to compare bit for bit."""
    row = [3, 7, 5] if layout == "nchw" else [7, 5, 3]
    weights = numpy_helper.from_array((WEIGHTS / 1000).astype(dtype), "w")
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        helper.make_node("Identity", ["image"], ["seen"]),
    ]
    outputs = [value("logits", [batch, 6], dtype), value("seen", [batch, *row], dtype)]
    return build(nodes, [value("image", [batch, *row], dtype)], outputs, [weights], opset)


def linear(width: int = 6, *, dtype: Any = np.float32, opset: int = 17, batch: Any = "N") -> onnx.ModelProto:
    """x -> logits = -x."""
    node = helper.make_node("Neg", ["x"], ["logits"])
    return build(
        [node], [value("x", [batch, width], dtype)], [value("logits", [batch, width], dtype)], (), opset
    )


def session(prepared: Prepared) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if prepared.external_folder:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, prepared.external_folder)
    return ort.InferenceSession(prepared.model_bytes, options, providers=["CPUExecutionProvider"])


def run(prepared: Prepared, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    """Runs a prepared model and checks that it is what its specs say."""
    proto = onnx.load_model_from_string(prepared.model_bytes)
    if not prepared.external_folder:
        onnx.checker.check_model(proto, full_check=True)
    runtime = session(prepared)
    assert [item.name for item in runtime.get_inputs()] == [spec.name for spec in prepared.inputs]
    assert [item.name for item in runtime.get_outputs()] == [spec.name for spec in prepared.outputs]
    for spec, item in zip(
        [*prepared.inputs, *prepared.outputs], [*runtime.get_inputs(), *runtime.get_outputs()], strict=True
    ):
        assert item.shape[1:] == list(spec.row_shape)
        assert item.shape[0] == (spec.batch or "N")
    for spec in prepared.inputs:
        assert feeds[spec.name].dtype == spec.dtype
    results = dict(zip((spec.name for spec in prepared.outputs), runtime.run(None, feeds), strict=True))
    for spec in prepared.outputs:
        assert results[spec.name].dtype == spec.dtype
        assert results[spec.name].shape[1:] == spec.row_shape
    return results


def reference_rows(
    rows: np.ndarray,
    *,
    to_nchw: bool,
    to_nhwc: bool,
    normalize: Normalize | None,
    channels: int,
    dtype: np.dtype,
) -> np.ndarray:
    """The documented formula in numpy, on the stored layout; `channels` is its channel axis."""
    if normalize:
        compute = np.dtype(np.float64) if dtype == np.float64 else np.dtype(np.float32)
        shape = [1] * rows.ndim
        shape[channels] = len(normalize.mean)
        mean = np.array(normalize.mean).astype(compute).reshape(shape)
        scale = (1 / np.array(normalize.std)).astype(compute).reshape(shape)
        rows = (rows.astype(compute) - mean) * scale
    if to_nchw:
        rows = rows.transpose(0, 3, 1, 2)
    if to_nhwc:
        rows = rows.transpose(0, 2, 3, 1)
    return rows.astype(dtype)


def softmax(values: np.ndarray) -> np.ndarray:
    exponents = np.exp(values - values.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


STORED = ["uint8", "int16", "float16", "float32", "float64", "bool"]
NORMALIZE = {"none": None, "scalar": Normalize(mean=(0.5,), std=(16.0,)), "channels": RGB, "partly": PARTLY}


@pytest.mark.parametrize("batch", ["N", 2])
@pytest.mark.parametrize("normalize", list(NORMALIZE))
@pytest.mark.parametrize(
    ("model_layout", "stored_layout"),
    [("nchw", None), ("nchw", "nchw"), ("nchw", "nhwc"), ("nhwc", "nchw"), ("nhwc", "nhwc"), ("nhwc", None)],
)
@pytest.mark.parametrize("model_dtype", ["float32", "float16", "float64"])
def test_input_side_equals_numpy_bit_for_bit(
    tmp_path: Path, model_dtype: str, model_layout: str, stored_layout: Any, normalize: str, batch: int | str
) -> None:
    dtype = np.dtype(model_dtype)
    model = save_and_load(tmp_path, image_model(dtype=dtype, layout=model_layout, batch=batch))
    layout = stored_layout or model_layout
    row = (7, 5, 3) if layout == "nhwc" else (3, 7, 5)
    for stored_dtype in map(np.dtype, STORED):
        rows = (rng().random((2, *row)) * 255).astype(stored_dtype)
        prepared = prepare(
            model,
            stored={"image": StoredInput(dtype=stored_dtype, layout=stored_layout)},
            normalize={"image": NORMALIZE[normalize]} if NORMALIZE[normalize] else None,
        )
        assert prepared.inputs == (
            TensorSpec(name="image", dtype=stored_dtype, row_shape=row, batch=model.batch),
        )
        results = run(prepared, image=rows)
        expected = reference_rows(
            rows,
            to_nchw=(layout, model_layout) == ("nhwc", "nchw"),
            to_nhwc=(layout, model_layout) == ("nchw", "nhwc"),
            normalize=NORMALIZE[normalize],
            channels=3 if layout == "nhwc" else 1,
            dtype=dtype,
        )
        np.testing.assert_array_equal(results["seen"], expected)
        flat = expected.reshape(2, -1).astype(np.float64) @ (WEIGHTS / 1000).astype(dtype).astype(np.float64)
        tolerance = 2e-2 if dtype == np.float16 else 1e-4
        np.testing.assert_allclose(results["logits"], flat, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("batch", ["N", 3])
@pytest.mark.parametrize("emit", ["raw", "softmax", "argmax", "topk:1", "topk:4"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("opset", [11, 13, 17])
def test_emit_equals_numpy(tmp_path: Path, opset: int, dtype: str, emit: str, batch: int | str) -> None:
    model = save_and_load(tmp_path, linear(dtype=dtype, opset=opset, batch=batch))
    rows = rng().standard_normal((3, 6)).astype(dtype)
    results = run(prepare(model, emit=Emit.parse(emit)), x=rows)
    logits = -rows
    if emit == "raw":
        np.testing.assert_array_equal(results.pop("logits"), logits)
    elif emit == "softmax":
        wide = np.float64 if dtype == "float64" else np.float32
        got = results.pop("logits_softmax")
        assert got.dtype == wide
        np.testing.assert_allclose(got, softmax(logits.astype(np.float64)), rtol=1e-6)
    elif emit == "argmax":
        got = results.pop("logits_argmax")
        assert got.dtype == np.int64
        np.testing.assert_array_equal(got, logits.argmax(-1))
    else:
        order = np.argsort(-logits, axis=-1)[:, : Emit.parse(emit).k]
        assert list(results) == ["logits_topk_indices", "logits_topk_values"]
        np.testing.assert_array_equal(results.pop("logits_topk_indices"), order)
        np.testing.assert_array_equal(
            results.pop("logits_topk_values"), np.take_along_axis(logits, order, -1)
        )
    assert not results


@pytest.mark.parametrize(
    ("stored", "layout", "normalize", "emit", "batch"),
    list(
        itertools.product(
            ["uint8", "float32"], ["nchw", "nhwc"], [None, RGB], ["softmax", "argmax", "topk:2"], ["N", 2]
        )
    ),
)
def test_both_ends_together(
    tmp_path: Path, stored: str, layout: Any, normalize: Normalize | None, emit: str, batch: int | str
) -> None:
    model = save_and_load(tmp_path, image_model(dtype=np.float16, batch=batch))
    row = (7, 5, 3) if layout == "nhwc" else (3, 7, 5)
    rows = rng().integers(0, 256, (2, *row)).astype(stored)
    common: dict[str, Any] = {
        "stored": {"image": StoredInput(dtype=np.dtype(stored), layout=layout)},
        "normalize": normalize,
        "outputs": ["logits"],
    }
    logits = run(prepare(model, **common), image=rows)["logits"]
    results = run(prepare(model, emit=Emit.parse(emit), **common), image=rows)
    if emit == "softmax":
        # ONNX Runtime multiplies in float32 and drops the rounding to float16 in front of the cast back.
        np.testing.assert_allclose(results["logits_softmax"], softmax(logits.astype(np.float64)), rtol=5e-3)
    elif emit == "argmax":
        np.testing.assert_array_equal(results["logits_argmax"], logits.argmax(-1))
    else:
        np.testing.assert_array_equal(results["logits_topk_values"], -np.sort(-logits, axis=-1)[:, :2])
        taken = np.take_along_axis(logits, results["logits_topk_indices"], -1)
        np.testing.assert_array_equal(taken, results["logits_topk_values"])


def test_softmax_is_over_the_last_axis_only_before_opset_13_too(tmp_path: Path) -> None:
    node = helper.make_node("Neg", ["x"], ["y"])
    model = build([node], [value("x", ["N", 2, 3])], [value("y", ["N", 2, 3])], opset=9)
    rows = rng().standard_normal((4, 2, 3)).astype(np.float32)
    results = run(prepare(save_and_load(tmp_path, model), emit=Emit(kind="softmax")), x=rows)
    np.testing.assert_allclose(results["y_softmax"], softmax(-rows), rtol=1e-5)
    argmax = run(prepare(load_model(tmp_path / "model.onnx"), emit=Emit(kind="argmax")), x=rows)
    np.testing.assert_array_equal(argmax["y_argmax"], (-rows).argmax(-1))


def test_nothing_asked_changes_nothing(tmp_path: Path) -> None:
    model = save_and_load(tmp_path, image_model())
    prepared = prepare(model)
    assert prepared.model_bytes == model.proto.SerializeToString(deterministic=True)
    assert (prepared.inputs, prepared.outputs) == (model.inputs, model.outputs)


def test_the_model_is_not_changed_and_bytes_are_deterministic(tmp_path: Path) -> None:
    model = save_and_load(tmp_path, image_model())
    before = model.proto.SerializeToString(deterministic=True)
    arguments: dict[str, Any] = {
        "stored": {"image": StoredInput(dtype=U8, layout="nhwc")},
        "normalize": RGB,
        "emit": Emit(kind="topk", k=2),
        "outputs": ["logits"],
    }
    first, second = prepare(model, **arguments), prepare(model, **arguments)
    assert model.proto.SerializeToString(deterministic=True) == before
    assert first.model_bytes == second.model_bytes
    assert first.digest == hashlib.sha256(first.model_bytes).hexdigest()
    assert first.digest != prepare(model).digest
    assert "model_bytes" not in repr(first)
    carried = onnx.load_model_from_string(first.model_bytes).graph.initializer
    assert list(carried) == list(model.proto.graph.initializer)


def test_order_of_nodes_in_front(tmp_path: Path) -> None:
    model = save_and_load(tmp_path, image_model(dtype=np.float16))
    prepared = prepare(model, stored={"image": StoredInput(dtype=U8, layout="nhwc")}, normalize=RGB)
    nodes = onnx.load_model_from_string(prepared.model_bytes).graph.node
    front = [node.op_type for node in nodes if node.op_type != "Constant"][:5]
    assert front == ["Cast", "Transpose", "Sub", "Mul", "Cast"]


def test_steps_without_effect_are_left_out(tmp_path: Path) -> None:
    model = save_and_load(tmp_path, linear())
    normalize = Normalize(mean=(0,), std=(16,))
    prepared = prepare(model, stored={"x": StoredInput(dtype=U8)}, normalize=normalize)
    nodes = onnx.load_model_from_string(prepared.model_bytes).graph.node
    assert [node.op_type for node in nodes] == ["Cast", "Constant", "Mul", "Neg"]
    rows = rng().integers(0, 17, (3, 6), dtype=np.uint8)
    np.testing.assert_array_equal(run(prepared, x=rows)["logits"], -(rows.astype(np.float32) / 16))
    assert prepare(model, normalize=Normalize(mean=(0,), std=(1,))).model_bytes == prepare(model).model_bytes


def test_symbolic_dimensions_keep_their_names(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    model = build([node], [value("x", ["rows", 3, "H", "W"])], [value("y", ["rows", 3, "H", "W"])])
    prepared = prepare(
        save_and_load(tmp_path, model),
        stored={"x": StoredInput(dtype=U8, layout="nhwc")},
        emit=Emit(kind="argmax"),
    )
    assert str(prepared.inputs[0]) == "x: uint8[N, H, W, 3]"
    runtime = session(prepared)
    assert runtime.get_inputs()[0].shape == ["rows", "H", "W", 3]
    assert runtime.get_outputs()[0].shape == ["rows", 3, "H"]
    rows = rng().integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    expected = rows.transpose(0, 3, 1, 2).argmax(-1)
    np.testing.assert_array_equal(runtime.run(None, {"x": rows})[0], expected)


def test_explicit_model_layout_beats_the_guess(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    model = save_and_load(tmp_path, build([node], [value("x", ["N", 4, 7, 3])], [value("y", ["N", 4, 7, 3])]))
    stored = {"x": StoredInput(dtype=U8, layout="nhwc")}
    rows = rng().integers(0, 256, (2, 4, 7, 3), dtype=np.uint8)
    explicit = prepare(model, stored=stored, normalize=RGB, model_layout={"x": "nhwc"})
    assert explicit.inputs[0].row_shape == (4, 7, 3)
    expected = (rows.astype(np.float32) - np.float32(RGB.mean)) * (1 / np.array(RGB.std)).astype(np.float32)
    np.testing.assert_array_equal(run(explicit, x=rows)["y"], expected)
    assert prepare(model, stored=stored).inputs[0].row_shape == (7, 3, 4)


def test_layout_that_cannot_be_guessed(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    model = save_and_load(
        tmp_path, build([node], [value("x", ["N", 8, 9, 10])], [value("y", ["N", 8, 9, 10])])
    )
    stored = {"x": StoredInput(dtype=U8, layout="nhwc")}
    with pytest.raises(MismatchError, match="does not tell where its channels are"):
        prepare(model, stored=stored)
    prepared = prepare(model, stored=stored, model_layout={"x": "nchw"})
    assert prepared.inputs[0].row_shape == (9, 10, 8)
    assert prepare(model, normalize=Normalize(mean=(1,), std=(2,))).inputs == model.inputs


def test_names_never_collide(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["x_uint8"], to=T.UINT8, name="logits_argmax_node"),
        helper.make_node("Cast", ["x_uint8"], ["x_float32"], to=T.FLOAT),
        helper.make_node("Neg", ["x_float32"], ["logits_argmax"]),
        helper.make_node("Neg", ["logits_argmax"], ["logits"]),
    ]
    model = save_and_load(tmp_path, build(nodes, [value("x", ["N", 4])], [value("logits", ["N", 4])]))
    stored = {"x": StoredInput(dtype=U8)}
    prepared = prepare(
        model, stored=stored, normalize=Normalize(mean=(1,), std=(2,)), emit=Emit(kind="argmax")
    )
    assert [spec.name for spec in prepared.outputs] == ["logits_argmax_1"]
    rows = np.array([[1, 9, 3, 3]], np.uint8)
    assert run(prepared, x=rows)["logits_argmax_1"].tolist() == [1]
    proto = onnx.load_model_from_string(prepared.model_bytes)
    names = [node.name for node in proto.graph.node if node.name]
    assert len(names) == len(set(names))


def branching_model(shadow: bool) -> onnx.ModelProto:
    """If over branches that read the outer input; with `shadow` one has its own of that name."""
    then_nodes = [helper.make_node("Relu", ["x"], ["t"])]
    else_nodes = [helper.make_node("Neg", ["x"], ["e"])]
    then = helper.make_graph(then_nodes, "then", [], [value("t", ["N", 3])])
    other = helper.make_graph(else_nodes, "else", [], [value("e", ["N", 3])])
    if shadow:
        other.initializer.append(numpy_helper.from_array(np.array([[1, 2, 3]], np.float32), "x"))
    node = helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other)
    return build(
        [node],
        [value("x", ["N", 3])],
        [value("y", ["N", 3])],
        [numpy_helper.from_array(np.array(not shadow), "flag")],
    )


@pytest.mark.parametrize("shadow", [False, True])
def test_subgraphs_read_the_prepared_value(tmp_path: Path, shadow: bool) -> None:
    model = save_and_load(tmp_path, branching_model(shadow))
    stored = {"x": StoredInput(dtype=U8)}
    prepared = prepare(model, stored=stored, normalize=Normalize(mean=(2,), std=(1,)))
    rows = np.array([[1, 5, 3]], np.uint8)
    # Not `run`: onnx's full check takes a shadowed value for the outer one.
    results = session(prepared).run(None, {"x": rows}) if shadow else [run(prepared, x=rows)["y"]]
    assert results[0].tolist() == [[-1, -2, -3] if shadow else [0, 3, 1]]


def test_local_functions_stay_as_they_are(tmp_path: Path) -> None:
    inner = [helper.make_node("Add", ["x", "x"], ["y"])]
    function = helper.make_function("local", "Twice", ["x"], ["y"], inner, [helper.make_opsetid("", 17)])
    graph = helper.make_graph(
        [helper.make_node("Twice", ["x"], ["y"], domain="local")],
        *("g", [value("x", ["N", 3])], [value("y", ["N", 3])]),
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=8, functions=[function])
    prepared = prepare(
        save_and_load(tmp_path, proto), stored={"x": StoredInput(dtype=U8)}, emit=Emit(kind="argmax")
    )
    assert onnx.load_model_from_string(prepared.model_bytes).functions[0] == function
    assert run(prepared, x=np.array([[1, 7, 3]], np.uint8))["y_argmax"].tolist() == [1]


def test_model_that_imports_no_default_domain(tmp_path: Path) -> None:
    node = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0], scale=[2.0])
    graph = helper.make_graph([node], "g", [value("x", ["N", 3])], [value("y", ["N", 3])])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8)
    prepared = prepare(
        save_and_load(tmp_path, proto), stored={"x": StoredInput(dtype=U8)}, emit=Emit(kind="softmax")
    )
    rows = np.array([[1, 2, 3]], np.uint8)
    np.testing.assert_allclose(run(prepared, x=rows)["y_softmax"], softmax(rows * 2.0), rtol=1e-5)


def test_old_ir_version_where_initializers_are_inputs(tmp_path: Path) -> None:
    proto = build(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        [value("x", ["N", 3]), value("w", [3])],
        [value("y", ["N", 3])],
        [numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w")],
        opset=11,
    )
    proto.ir_version = 3
    stored = {"x": StoredInput(dtype=U8)}
    normalize = Normalize(mean=(1,), std=(2,))
    prepared = prepare(
        save_and_load(tmp_path, proto), stored=stored, normalize=normalize, emit=Emit(kind="topk", k=1)
    )
    onnx.checker.check_model(onnx.load_model_from_string(prepared.model_bytes))
    got = session(prepared).run(None, {"x": np.array([[3, 3, 3]], np.uint8)})
    assert [part.tolist() for part in got] == [[[2]], [[3.0]]]


def test_external_data_stays_referenced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "MAX_INLINE_BYTES", 64)
    path = tmp_path / "model.onnx"
    proto = image_model()
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    prepared = prepare(
        load_model(path), stored={"image": StoredInput(dtype=U8, layout="nhwc")}, emit=Emit(kind="argmax"),
        outputs=["logits"],
    )  # fmt: skip
    assert prepared.external_folder == str(tmp_path)
    assert len(prepared.model_bytes) < WEIGHTS.size * 4
    rows = rng().integers(0, 256, (2, 7, 5, 3), dtype=np.uint8)
    expected = (rows.transpose(0, 3, 1, 2).reshape(2, -1) @ WEIGHTS).argmax(-1)
    np.testing.assert_array_equal(run(prepared, image=rows)["logits_argmax"], expected)


# Several inputs and outputs


def pair_model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Neg", ["a"], ["left"]),
        helper.make_node("Cast", ["b"], ["right"], to=T.FLOAT),
        helper.make_node("Identity", ["b"], ["ids"]),
        helper.make_node("ReduceMax", ["a"], ["flat"], axes=[1], keepdims=0),
        helper.make_node("ReduceMax", ["a"], ["total"], keepdims=0),
    ]
    inputs = [value("a", ["N", 3]), value("b", ["N", 4], np.int64)]
    outputs = [
        *[value("left", ["N", 3]), value("right", ["N", 4]), value("ids", ["N", 4], np.int64)],
        *[value("flat", ["N"]), value("total", [])],
    ]
    return build(nodes, inputs, outputs)


PAIR = {"a": np.array([[1, 3, 2]], np.float32), "b": np.array([[5, 6, 8, 7]])}


def test_outputs_are_selected_and_ordered(tmp_path: Path) -> None:
    prepared = prepare(save_and_load(tmp_path, pair_model()), outputs=["ids", "left"])
    assert list(run(prepared, **PAIR)) == ["ids", "left"]


def test_outputs_that_do_not_fit_pass_through(tmp_path: Path) -> None:
    prepared = prepare(save_and_load(tmp_path, pair_model()), emit=Emit(kind="argmax"))
    results = run(prepared, **PAIR)
    assert {name: part.tolist() for name, part in results.items()} == {
        "left_argmax": [0],
        "right_argmax": [2],
        "ids": [[5, 6, 8, 7]],
        "flat": [3.0],
    }


def test_single_normalize_goes_to_the_only_floating_input(tmp_path: Path) -> None:
    prepared = prepare(save_and_load(tmp_path, pair_model()), normalize=Normalize(mean=(1,), std=(2,)))
    results = run(prepared, **PAIR)
    np.testing.assert_array_equal(results["left"], [[0, -1, -0.5]])
    np.testing.assert_array_equal(results["ids"], PAIR["b"])


def test_single_normalize_prefers_images(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in ("table", "image")]
    dims = {"table": ["N", 2], "image": ["N", 1, 2, 2]}
    model = build(
        nodes,
        [value(name, shape) for name, shape in dims.items()],
        [value(f"{name}_out", shape) for name, shape in dims.items()],
    )
    prepared = prepare(save_and_load(tmp_path, model), normalize=Normalize(mean=(1,), std=(1,)))
    ones = {name: np.ones((1, *shape[1:]), np.float32) for name, shape in dims.items()}
    results = run(prepared, **ones)
    assert (results["table_out"].max(), results["image_out"].max()) == (1, 0)


def test_single_normalize_needs_one_candidate(tmp_path: Path) -> None:
    model = build(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        [value("a", ["N", 3]), value("b", ["N", 3])],
        [value("y", ["N", 3])],
    )
    with pytest.raises(MismatchError, match="image input or a single floating one"):
        prepare(save_and_load(tmp_path, model), normalize=Normalize(mean=(1,), std=(1,)))


def test_wide_integers_are_taken_when_they_fit(tmp_path: Path) -> None:
    model = save_and_load(tmp_path, pair_model())
    rows = PAIR | {"b": PAIR["b"].astype(np.int32)}
    results = run(prepare(model, stored={"b": StoredInput(dtype=np.dtype(np.int32))}), **rows)
    np.testing.assert_array_equal(results["ids"], PAIR["b"])


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stored": {"imag": StoredInput(dtype=U8)}}, "no input 'imag', it has image.*did you mean 'image'"),
        ({"normalize": {"imag": RGB}}, "no input 'imag'"),
        ({"model_layout": {"imag": "nchw"}}, "no input 'imag'"),
        ({"outputs": ["logit"]}, "no output 'logit', it has logits, seen.*did you mean 'logits'"),
        ({"outputs": ["seen", "seen"]}, "named twice"),
        ({"emit": Emit(kind="topk", k=7), "outputs": ["logits"]}, "asks for 7 entries.*'logits' has 6"),
        ({"normalize": Normalize(mean=(1, 2), std=(1, 2))}, "2 means.*has 3 channels"),
    ],
)
def test_mismatches(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        prepare(save_and_load(tmp_path, image_model()), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"outputs": ["total"]}, "'total' has no batch dimension"),
        ({"outputs": ["ids", "flat"], "emit": Emit(kind="softmax")}, "floating output of rank >= 2"),
        ({"normalize": {"b": Normalize(mean=(1,), std=(1,))}}, "only floating inputs"),
        ({"normalize": {"a": RGB}}, "need rows of rank 3"),
        ({"stored": {"a": StoredInput(dtype=U8, layout="nhwc")}}, "no image rows"),
        ({"stored": {"b": StoredInput(dtype=np.dtype(np.uint64))}}, "cannot take stored uint64"),
        ({"stored": {"b": StoredInput(dtype=np.dtype(np.float32))}}, "cannot take stored float32"),
    ],
)
def test_mismatches_of_several(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        prepare(save_and_load(tmp_path, pair_model()), **arguments)


def test_output_of_unsupported_type(tmp_path: Path) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Cast", ["x"], ["text"], to=T.STRING)]
    text = helper.make_tensor_value_info("text", T.STRING, ["N", 3])
    model = save_and_load(tmp_path, build(nodes, [value("x", ["N", 3])], [value("y", ["N", 3]), text]))
    with pytest.raises(MismatchError, match="'text' has an unsupported type"):
        prepare(model, outputs=["text"])
    assert [spec.name for spec in prepare(model).outputs] == ["y"]


def test_old_opsets(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"topk needs opset >= 11, the model imports 10.*version_converter"):
        prepare(save_and_load(tmp_path, linear(opset=10)), emit=Emit(kind="topk", k=1))
    old = save_and_load(tmp_path, linear(opset=6))
    with pytest.raises(ModelError, match="opset 6, pre- and post-processing needs >= 7"):
        prepare(old, emit=Emit(kind="argmax"))
    assert prepare(old).outputs == old.outputs


def test_output_that_is_the_replaced_input(tmp_path: Path) -> None:
    proto = linear()
    proto.graph.output.append(value("x", ["N", 6]))
    model = save_and_load(tmp_path, proto)
    for emit in (Emit(kind="raw"), Emit(kind="argmax")):
        with pytest.raises(ModelError, match="'x' is the input of that name"):
            prepare(model, stored={"x": StoredInput(dtype=U8)}, emit=emit)
    prepared = prepare(model, stored={"x": StoredInput(dtype=U8)}, outputs=["logits"])
    assert run(prepared, x=np.ones((1, 6), np.uint8))["logits"].tolist() == [[-1.0] * 6]


def test_stored_input_is_validated() -> None:
    with pytest.raises(UsageError, match="number or bool, got"):
        StoredInput(dtype=np.dtype("U3"))
    with pytest.raises(UsageError, match="nhwc or nchw, got 'hwc'"):
        StoredInput(dtype=U8, layout="hwc")  # type: ignore[arg-type]


def test_model_layout_is_validated(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nhwc or nchw"):
        prepare(save_and_load(tmp_path, image_model()), model_layout={"image": "chw"})  # type: ignore[dict-item]


# Normalize and Emit


def test_normalize_parse() -> None:
    assert Normalize.parse("0:16") == Normalize(mean=(0,), std=(16,))
    assert Normalize.parse("127.5:127.5") == Normalize(mean=(127.5,), std=(127.5,))
    three = Normalize.parse("123.7,116.3,103.5:58.4,57.1,57.4")
    assert three == Normalize(mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
    imagenet = Normalize.parse("imagenet")
    np.testing.assert_allclose(imagenet.mean, [123.675, 116.28, 103.53])
    np.testing.assert_allclose(imagenet.std, [58.395, 57.12, 57.375])


def test_normalize_constants_round_once() -> None:
    mean, scale = Normalize(mean=(0.1,), std=(3,)).constants(np.dtype(np.float32))
    assert (mean.dtype, scale.dtype, mean.shape, scale.shape) == (np.float32, np.float32, (1,), (1,))
    assert (mean[0], scale[0]) == (np.float32(0.1), np.float32(1 / 3))


@pytest.mark.parametrize(
    "text",
    [
        *["", "image-net", "1", "1:2:3", ":", "1:", ":1", "a:b", "1,2:3", "1:2,3", "1,:2,3", "1;2:3;4"],
        *["0:0", "0,0:1,0", "0:-1", "nan:1", "1:nan", "inf:1", "1:inf", "1e39:1", "0:1e-39", "0:1e46"],
    ],
)
def test_normalize_parse_refuses(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Normalize.parse(text)
    assert "imagenet" in caught.value.hint


def test_normalize_needs_a_value() -> None:
    with pytest.raises(UsageError, match="one or more means"):
        Normalize(mean=(), std=())


def test_emit_parse() -> None:
    for kind in ("raw", "softmax", "argmax"):
        assert Emit.parse(kind) == Emit(kind=kind)
    assert Emit.parse("topk:5") == Emit(kind="topk", k=5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "top",
        "topk",
        "topk:",
        "topk:0",
        "topk:-1",
        "topk:x",
        "topk:1.5",
        "topk:²",
        "topk:9999999999",
        "raw:1",
        "argmax:2",
    ],
)
def test_emit_parse_refuses(text: str) -> None:
    with pytest.raises(UsageError):
        Emit.parse(text)


def test_emit_is_validated() -> None:
    with pytest.raises(UsageError, match="one of raw, softmax, argmax, topk, got 'best'"):
        Emit(kind="best")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="softmax takes no count, got 3"):
        Emit(kind="softmax", k=3)
