from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from PIL import Image
from trtfleet.errors import ModelError
from trtfleet.trt_actors import external
from trtfleet.trt_actors.model import Model, load_model

Dims = Sequence[int | str | None] | None


def value(name: str, dims: Dims, elem_type: int = T.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, elem_type, dims)


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    *,
    initializers: Sequence[onnx.TensorProto] = (),
    opsets: dict[str, int] | None = None,
    ir_version: int = 8,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    imports = [helper.make_opsetid(domain, version) for domain, version in (opsets or {"": 17}).items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=functions)


def relu(dims: Dims = ("N", 3), out: Dims = ("N", 3), **kwargs: Any) -> onnx.ModelProto:
    return build(
        [helper.make_node("Relu", ["x"], ["y"], name="r")], [value("x", dims)], [value("y", out)], **kwargs
    )


def save(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def load(folder: Path, model: onnx.ModelProto) -> Model:
    return load_model(save(folder, model))


def refused(path: Path, *parts: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    for part in parts:
        assert part in str(caught.value)
    assert str(path) in caught.value.fact
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return caught.value


def specs(model: Model) -> list[str]:
    return [str(spec) for spec in (*model.inputs, *model.outputs)]


def test_describes_inputs_and_outputs(tmp_path: Path) -> None:
    model = load(tmp_path, relu())
    assert specs(model) == ["x: float32[N, 3]", "y: float32[N, 3]"]
    assert (model.batch, model.external_folder, model.custom_domains) == (None, None, ())
    assert model.digest == hashlib.sha256((tmp_path / "model.onnx").read_bytes()).hexdigest()
    assert "graph" not in repr(model)


def test_accepts_a_str_path(tmp_path: Path) -> None:
    assert specs(load_model(str(save(tmp_path, relu()))))[0] == "x: float32[N, 3]"


def test_fixed_batch(tmp_path: Path) -> None:
    model = load(tmp_path, relu((4, 3), (4, 3)))
    assert model.batch == 4
    assert specs(model) == ["x: float32[4, 3]", "y: float32[4, 3]"]


def test_nameless_dims_get_names(tmp_path: Path) -> None:
    model = load(tmp_path, relu((None, None, -1, "W"), (None, None, -1, "W")))
    assert model.inputs[0].row_shape == ("x_dim1", "x_dim2", "W")
    assert model.outputs[0].row_shape[1:] == ("y_dim2", "W")
    assert model.batch is None


def test_generated_names_avoid_the_models_own(tmp_path: Path) -> None:
    model = load(tmp_path, relu(("N", None, "x_dim1"), ("N", None, "x_dim1")))
    assert model.inputs[0].row_shape == ("x_dim1_", "x_dim1")


def test_initializers_are_no_inputs(tmp_path: Path) -> None:
    model = build(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        [value("w", [3]), value("x", ["N", 3])],
        [value("y", ["N", 3])],
        initializers=[numpy_helper.from_array(np.ones(3, np.float32), "w")],
        ir_version=3,
    )
    assert [spec.name for spec in load(tmp_path, model).inputs] == ["x"]


@pytest.mark.parametrize(
    ("elem_type", "dtype"),
    [
        *[(T.FLOAT16, "float16"), (T.DOUBLE, "float64"), (T.UINT8, "uint8"), (T.INT8, "int8")],
        *[(T.UINT16, "uint16"), (T.INT16, "int16"), (T.UINT32, "uint32"), (T.INT32, "int32")],
        *[(T.UINT64, "uint64"), (T.INT64, "int64"), (T.BOOL, "bool")],
    ],
)
def test_dtypes(tmp_path: Path, elem_type: int, dtype: str) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    model = load(tmp_path, build([node], [value("x", ["N"], elem_type)], [value("y", ["N"], elem_type)]))
    assert [spec.dtype for spec in (*model.inputs, *model.outputs)] == [np.dtype(dtype)] * 2


# What is not a model


def not_a_model_files() -> list[tuple[str, Callable[[Path], object], str]]:
    whole = relu().SerializeToString()
    return [
        ("empty", lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
        ("text", lambda path: path.write_text("hello world, this is no model\n"), "not an ONNX model"),
        ("zeros", lambda path: path.write_bytes(bytes(100)), "not an ONNX model"),
        ("jpeg", lambda path: Image.new("RGB", (8, 8)).save(path, "JPEG"), "is a JPEG image"),
        ("parquet", lambda path: pq.write_table(pa.table({"a": [1]}), path), "is a Parquet file"),
        ("truncated", lambda path: path.write_bytes(whole[: len(whole) // 2]), "is truncated"),
        (
            "lfs",
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
            "Git LFS pointer",
        ),
        ("unknown", lambda path: path.write_bytes(b"\xa2\x06\x01a"), "no IR version"),
        (
            "no graph",
            lambda path: path.write_bytes(onnx.ModelProto(ir_version=8).SerializeToString()),
            "no graph",
        ),
    ]


@pytest.mark.parametrize(
    ("name", "write", "part"), not_a_model_files(), ids=lambda arg: arg if isinstance(arg, str) else ""
)
def test_files_that_are_no_models(
    tmp_path: Path, name: str, write: Callable[[Path], object], part: str
) -> None:
    path = tmp_path / "model.onnx"
    write(path)
    assert refused(path, part).hint


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = relu().SerializeToString()
    path = tmp_path / "model.onnx"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        refused(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    refused(tmp_path / "absent.onnx", "does not exist")
    refused(tmp_path, "is a directory")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a regular file")


def test_file_beyond_the_protobuf_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    refused(path, "has 2147483648 bytes", "at most 2147483647", "external data")


# Versions and operators


def test_newer_ir_version(tmp_path: Path) -> None:
    model = relu()
    model.ir_version = 99
    refused(save(tmp_path, model), "IR version 99", f"up to {onnx.IR_VERSION}", onnx.__version__)


def test_ir_version_without_opsets(tmp_path: Path) -> None:
    model = relu()
    model.ir_version = 2
    refused(save(tmp_path, model), "IR version 2")


@pytest.mark.parametrize(
    ("domain", "newest"),
    [("", onnx.defs.onnx_opset_version()), ("ai.onnx.ml", onnx.defs.onnx_ml_opset_version())],
)
def test_newer_opset(tmp_path: Path, domain: str, newest: int) -> None:
    opsets = {"": 17} | {domain: 999}
    refused(save(tmp_path, relu(opsets=opsets)), "opset 999", f"up to {newest}", domain or "ai.onnx")


def test_opset_zero_and_no_opset(tmp_path: Path) -> None:
    refused(save(tmp_path, relu(opsets={"": 0})), "uses opset 0")
    model = relu()
    del model.opset_import[:]
    refused(save(tmp_path, model), "imports no operator set")


def test_unknown_operator_names_the_nearest(tmp_path: Path) -> None:
    model = relu()
    model.graph.node[0].op_type = "Reluu"
    refused(save(tmp_path, model), "node 'r'", "Reluu", "ai.onnx at opset 17", "nearest name is Relu")


def test_unknown_operator_of_an_unnamed_node(tmp_path: Path) -> None:
    model = relu(opsets={"": 17, "ai.onnx.ml": 3})
    model.graph.node[0].CopyFrom(helper.make_node("TreeEnsembleRegresor", ["x"], ["y"], domain="ai.onnx.ml"))
    refused(
        save(tmp_path, model), "makes 'y'", "ai.onnx.ml at opset 3", "nearest name is TreeEnsembleRegressor"
    )


def test_operator_of_a_later_opset(tmp_path: Path) -> None:
    model = relu()
    model.graph.node[0].op_type = "Gelu"
    refused(save(tmp_path, model), "Gelu", "opset 17 does not have", "came with opset 20")


def test_deprecated_operator(tmp_path: Path) -> None:
    model = relu(opsets={"": 10})
    model.graph.node[0].op_type = "Upsample"
    refused(save(tmp_path, model), "Upsample", "deprecated")


def test_domain_that_is_not_imported(tmp_path: Path) -> None:
    model = relu()
    model.graph.node[0].domain = "com.example"
    refused(save(tmp_path, model), "com.example", "does not import")


def test_both_spellings_of_the_default_domain(tmp_path: Path) -> None:
    model = relu(opsets={"ai.onnx": 17})
    assert load(tmp_path, model).custom_domains == ()


def test_custom_domains_are_collected(tmp_path: Path) -> None:
    model = relu(opsets={"": 17, "com.microsoft": 1, "b": 1, "unused": 1})
    model.graph.node[0].output[0] = "a"
    model.graph.node.append(helper.make_node("FastGelu", ["a"], ["c"], domain="com.microsoft"))
    model.graph.node.append(helper.make_node("Anything", ["c"], ["y"], domain="b"))
    assert load(tmp_path, model).custom_domains == ("b", "com.microsoft")


def test_operator_that_only_the_runtime_has_in_the_default_domain(tmp_path: Path) -> None:
    node = helper.make_node("LayerNormalization", ["x", "s"], ["y"], axis=-1)
    scale = numpy_helper.from_array(np.ones(3, np.float32), "s")
    model = build(
        [node], [value("x", ["N", 3])], [value("y", ["N", 3])], initializers=[scale], opsets={"": 14}
    )
    assert specs(load(tmp_path, model))[1] == "y: float32[N, 3]"
    ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def if_model(op_type: str) -> onnx.ModelProto:
    branch = helper.make_graph(
        [helper.make_node(op_type, ["x"], ["b"])], "branch", [], [value("b", ["N", 3])]
    )
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["c"])], "other", [], [value("c", ["N", 3])])
    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=other)
    flag = numpy_helper.from_array(np.array(True), "flag")
    return build([node], [value("x", ["N", 3])], [value("y", ["N", 3])], initializers=[flag])


def test_subgraphs_are_walked(tmp_path: Path) -> None:
    assert specs(load(tmp_path, if_model("Relu")))[1] == "y: float32[N, 3]"
    refused(save(tmp_path, if_model("Rellu")), "Rellu", "Relu")


def function(op_type: str) -> onnx.FunctionProto:
    node = helper.make_node(op_type, ["a"], ["b"])
    return helper.make_function("local", "Twice", ["a"], ["b"], [node], [helper.make_opsetid("", 17)])


def test_local_functions_are_known_and_walked(tmp_path: Path) -> None:
    model = relu(opsets={"": 17, "local": 1}, functions=[function("Relu")])
    model.graph.node[0].CopyFrom(helper.make_node("Twice", ["x"], ["y"], domain="local"))
    assert load(tmp_path, model).custom_domains == ()
    model.functions[0].CopyFrom(function("Rellu"))
    refused(save(tmp_path, model), "Rellu", "nearest name is Relu")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    for good, bad in ((b"Relu", b"Re\xffu"), (b"x", b"\xff"), (b"g", b"\xfe")):
        path = tmp_path / "model.onnx"
        path.write_bytes(relu().SerializeToString().replace(good, bad))
        refused(path, "not UTF-8")


def test_line_breaks_in_names_stay_out_of_messages(tmp_path: Path) -> None:
    model = relu()
    model.graph.node[0].op_type = "Re\nlu"
    refused(save(tmp_path, model), "operator Re lu")


def test_checker_message_is_one_line(tmp_path: Path) -> None:
    model = relu()
    model.graph.node[0].input[0] = "nothing"
    refused(save(tmp_path, model), "not a valid ONNX model", "'nothing'")


# Inputs


@pytest.mark.parametrize(
    ("elem_type", "name"),
    [
        *[(T.STRING, "string"), (T.COMPLEX64, "complex64"), (T.BFLOAT16, "bfloat16"), (T.INT4, "int4")],
        *[(T.FLOAT8E4M3FN, "float8e4m3fn"), (T.UNDEFINED, "undefined"), (123, "number 123")],
    ],
)
def test_input_types_that_are_not_supported(tmp_path: Path, elem_type: int, name: str) -> None:
    model = relu()
    model.graph.input[0].type.tensor_type.elem_type = elem_type
    refused(save(tmp_path, model), "'x'", name, "not supported as an input type")


@pytest.mark.parametrize("kind", ["sequence", "optional", "sparse tensor", "untyped"])
def test_inputs_that_are_no_tensors(tmp_path: Path, kind: str) -> None:
    tensor = helper.make_tensor_type_proto(T.FLOAT, ["N"])
    types = {
        "sequence": helper.make_sequence_type_proto(tensor),
        "optional": helper.make_optional_type_proto(tensor),
        "sparse tensor": helper.make_sparse_tensor_type_proto(T.FLOAT, ["N"]),
        "untyped": onnx.TypeProto(),
    }
    model = relu()
    model.graph.input[0].type.CopyFrom(types[kind])
    refused(save(tmp_path, model), "'x' is not a tensor", kind)


def test_inputs_without_a_batch_dimension(tmp_path: Path) -> None:
    refused(save(tmp_path, relu([])), "rank 0", "cannot be batched")
    refused(save(tmp_path, relu(None)), "unknown rank", "cannot be batched")
    refused(save(tmp_path, relu(("N", 0))), "dimension 1 of input 'x' has size 0")


def test_no_inputs(tmp_path: Path) -> None:
    node = helper.make_node("Constant", [], ["y"], value_floats=[1.0, 2.0])
    refused(save(tmp_path, build([node], [], [value("y", [2])])), "has no inputs")


def add_model(first: int | str, second: int | str) -> onnx.ModelProto:
    inputs = [value("x", [first, 3]), value("z", [second, 3])]
    return build([helper.make_node("Add", ["x", "z"], ["y"])], inputs, [value("y", None)])


def test_fixed_batch_sizes_must_agree(tmp_path: Path) -> None:
    refused(save(tmp_path, add_model(4, 8)), "'x' has 4", "'z' has 8")
    assert [spec.batch for spec in load(tmp_path, add_model("N", 4)).inputs] == [4, 4]


# Outputs


def test_output_shapes_are_inferred(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones((3, 7), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    for out in (None, [None, None]):
        model = build([node], [value("x", ["N", 3])], [value("y", out)], initializers=[weights])
        loaded = load(tmp_path, model)
        assert str(loaded.outputs[0]) == "y: float32[N, 7]"
        assert loaded.proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_inference_propagates_data(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([0]), "zero"),
        numpy_helper.from_array(np.array([2, 3]), "rest"),
    ]
    model = build(nodes, [value("x", ["N", 6])], [value("y", None)], initializers=constants)
    assert str(load(tmp_path, model).outputs[0]) == "y: float32[N, 2, 3]"


def test_outputs_without_batch_or_tensor_are_listed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Cast", ["x"], ["text"], to=T.STRING),
        helper.make_node("SequenceConstruct", ["x"], ["list"]),
        helper.make_node("Custom", ["x"], ["blob"], domain="c"),
    ]
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(T.FLOAT, None))
    outputs = [
        *[value("y", ["N", 3]), value("total", []), value("shape", [2], T.INT64)],
        *[value("text", ["N", 3], T.STRING), helper.make_value_info("list", sequence), value("blob", None)],
    ]
    model = load(tmp_path, build(nodes, [value("x", ["N", 3])], outputs, opsets={"": 17, "c": 1}))
    assert [spec.name for spec in model.outputs] == ["y"]
    assert model.unbatched_outputs == ("total", "shape", "blob")
    assert model.unsupported_outputs == ("text", "list")


def test_no_batched_output(tmp_path: Path) -> None:
    node = helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0)
    refused(
        save(tmp_path, build([node], [value("x", ["N", 3])], [value("total", [])])), "no output", "['total']"
    )


def test_inference_failure_is_told_when_it_matters(tmp_path: Path) -> None:
    model = relu(out=None)
    del model.graph.node[0].input[:]
    refused(save(tmp_path, model), "no output", "shape inference failed", "out of bounds")
    model = if_model("Relu")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    branch = next(item.g for item in model.graph.node[0].attribute if item.name == "else_branch")
    branch.output[0].type.tensor_type.elem_type = 92
    refused(save(tmp_path, model), "shape inference failed", "Invalid tensor data type 92")


# External data


def external_model(
    folder: Path, *, location: str = "w.bin", entries: dict[str, object] | None = None, offset: int = 8
) -> Path:
    """A model y = x @ w whose 3x2 weights lie in another file, behind `offset` bytes."""
    weights = np.arange(6, dtype=np.float32).reshape(3, 2)
    (folder / "w.bin").write_bytes(bytes(offset) + weights.tobytes())
    tensor = T(name="w", data_type=T.FLOAT, dims=[3, 2], data_location=T.EXTERNAL)
    for key, entry in ({"location": location, "offset": offset, "length": 24} | (entries or {})).items():
        tensor.external_data.add(key=key, value=str(entry))
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return save(folder, build([node], [value("x", ["N", 3])], [value("y", None)], initializers=[tensor]))


def run_external(model: Model) -> np.ndarray:
    options = ort.SessionOptions()
    if model.external_folder:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, model.external_folder)
    data = model.proto.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.eye(3, dtype=np.float32)})[0]


def test_small_external_data_is_inlined(tmp_path: Path) -> None:
    model = load_model(external_model(tmp_path))
    (tmp_path / "w.bin").unlink()
    assert model.external_folder is None
    assert not any(tensor.external_data for tensor in model.proto.graph.initializer)
    np.testing.assert_array_equal(run_external(model), np.arange(6, dtype=np.float32).reshape(3, 2))


def test_large_external_data_stays_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inlined = load_model(external_model(tmp_path))
    monkeypatch.setattr(external, "MAX_INLINE_BYTES", 64)
    model = load_model(tmp_path / "model.onnx")
    assert model.external_folder == str(tmp_path)
    assert str(model.outputs[0]) == "y: float32[N, 2]"
    assert model.digest == inlined.digest
    np.testing.assert_array_equal(run_external(model), np.arange(6, dtype=np.float32).reshape(3, 2))


def test_digest_covers_referred_bytes_only(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    data = bytearray((tmp_path / "w.bin").read_bytes())
    digests = set()
    for index in (None, 8, len(data) - 1):
        changed = bytearray(data)
        if index is not None:
            changed[index] ^= 1
        (tmp_path / "w.bin").write_bytes(changed)
        digests.add(load_model(path).digest)
    assert len(digests) == 3
    (tmp_path / "w.bin").write_bytes(b"\xff" * 8 + data[8:] + b"tail")
    region = hashlib.sha256(data[8:]).digest()
    expected = hashlib.sha256(hashlib.sha256(path.read_bytes()).digest() + b"w.bin\x008\x0024\x00" + region)
    assert load_model(path).digest == expected.hexdigest()


def test_external_attributes_and_subgraphs_are_inlined(tmp_path: Path) -> None:
    tensor = T(name="c", data_type=T.FLOAT, dims=[3], data_location=T.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "w.bin").write_bytes(np.array([1, 2, 3], np.float32).tobytes())
    model = if_model("Relu")
    branch = next(item.g for item in model.graph.node[0].attribute if item.name == "then_branch")
    branch.node[0].CopyFrom(helper.make_node("Constant", [], ["k"], value=tensor))
    branch.node.append(helper.make_node("Mul", ["x", "k"], ["b"]))
    loaded = load(tmp_path, model)
    session = ort.InferenceSession(loaded.proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": np.ones((1, 3), np.float32)})[0], [[1, 2, 3]])


def test_tensors_share_files_and_regions(tmp_path: Path) -> None:
    path = external_model(tmp_path)
    model = onnx.load(path, load_external_data=False)
    for name, offset, dims in (("same", 8, [3, 2]), ("inside", 12, [2]), ("first", 0, [2])):
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(model.graph.initializer[0])
        tensor.name, tensor.dims[:] = name, dims
        for entry, text in zip(tensor.external_data, ("w.bin", offset, 4 * int(np.prod(dims))), strict=True):
            entry.value = str(text)
    loaded = {
        item.name: numpy_helper.to_array(item) for item in load(tmp_path, model).proto.graph.initializer
    }
    np.testing.assert_array_equal(loaded["same"], loaded["w"])
    assert (loaded["inside"].tolist(), loaded["first"].tolist()) == ([1, 2], [0, 0])


def test_sparse_external_data_is_inlined(tmp_path: Path) -> None:
    model = relu(ir_version=8)
    (tmp_path / "w.bin").write_bytes(np.array([5, 6], np.float32).tobytes() + np.array([0, 2]).tobytes())
    sparse = onnx.SparseTensorProto(dims=[4])
    for part, elem_type, offset in ((sparse.values, T.FLOAT, 0), (sparse.indices, T.INT64, 8)):
        part.CopyFrom(T(name="s", data_type=elem_type, dims=[2], data_location=T.EXTERNAL))
        part.external_data.add(key="location", value="w.bin")
        part.external_data.add(key="offset", value=str(offset))
    model.graph.sparse_initializer.append(sparse)
    loaded = load(tmp_path, model).proto.graph.sparse_initializer[0]
    assert numpy_helper.to_array(loaded.values).tolist() == [5, 6]
    assert numpy_helper.to_array(loaded.indices).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("location", "part"),
    [
        *[("absent.bin", "No such file"), ("/etc/hostname", "absolute path"), ("C:\\w.bin", "absolute path")],
        *[
            ("../w.bin", "contains '..'"),
            ("sub/../../w.bin", "contains '..'"),
            ("..\\w.bin", "contains '..'"),
        ],
        *[("", "not a file name"), ("w\0.bin", "not a file name"), (".", "not a regular file")],
    ],
)
def test_external_locations_that_are_refused(tmp_path: Path, location: str, part: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(100))
    refused(external_model(folder, location=location), "tensor 'w'", part)


def test_symbolic_links_may_not_leave_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = external_model(folder)
    os.rename(folder / "w.bin", folder / "real.bin")
    (folder / "w.bin").symlink_to("real.bin")
    assert load_model(path).outputs
    os.rename(folder / "real.bin", tmp_path / "real.bin")
    (folder / "w.bin").unlink()
    (folder / "w.bin").symlink_to("../real.bin")
    refused(path, "'w.bin'", "symbolic link")
    (folder / "sub").symlink_to("..")
    refused(external_model(folder, location="sub/real.bin"), "symbolic link")


def test_a_folder_with_the_same_prefix_is_outside(tmp_path: Path) -> None:
    folder, sibling = tmp_path / "a", tmp_path / "ab"
    folder.mkdir()
    sibling.mkdir()
    (sibling / "x.bin").write_bytes(bytes(100))
    (folder / "link").symlink_to(sibling)
    refused(external_model(folder, location="link/x.bin"), "symbolic link")


def test_every_location_is_checked_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external_model(tmp_path)
    model = onnx.load(path, load_external_data=False)
    bad = model.graph.initializer.add()
    bad.CopyFrom(model.graph.initializer[0])
    bad.name = "z"
    bad.external_data[0].value = "../z.bin"
    save(tmp_path, model)

    def never(*args: object) -> bytes:
        raise AssertionError("external data was read")

    monkeypatch.setattr(external, "_consume", never)
    refused(path, "'../z.bin'")


@pytest.mark.parametrize(
    ("entries", "part"),
    [
        ({"offset": 12}, "holds 32 bytes, tensor 'w' needs bytes 12 to 36"),
        ({"offset": -1}, "external offset '-1'"),
        ({"length": "many"}, "external length 'many'"),
        ({"length": 20}, "declares 20 bytes"),
    ],
)
def test_external_ranges_that_are_refused(tmp_path: Path, entries: dict[str, object], part: str) -> None:
    refused(external_model(tmp_path, entries=entries), part)


def test_external_length_and_offset_may_be_left_out(tmp_path: Path) -> None:
    path = external_model(tmp_path, entries={"length": "", "offset": ""}, offset=0)
    np.testing.assert_array_equal(run_external(load_model(path))[2], [4, 5])


@pytest.mark.parametrize(
    ("elem_type", "dims", "needed"), [(T.INT4, [5], 3), (T.BFLOAT16, [5], 10), (T.INT8, [0], 0)]
)
def test_external_sizes_of_other_types(tmp_path: Path, elem_type: int, dims: list[int], needed: int) -> None:
    model = relu(opsets={"": 21}, ir_version=10)
    tensor = T(name="w", data_type=elem_type, dims=dims, data_location=T.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    model.graph.initializer.append(tensor)
    (tmp_path / "w.bin").write_bytes(bytes(needed))
    assert len(load(tmp_path, model).proto.graph.initializer[0].raw_data) == needed
    tensor.external_data.add(key="length", value=str(needed + 1))
    model.graph.initializer[0].CopyFrom(tensor)
    refused(save(tmp_path, model), f"declares {needed + 1} bytes", f"need {needed}")


@pytest.mark.parametrize(("elem_type", "dims"), [(T.STRING, [2]), (T.FLOAT, [-2]), (99, [2])])
def test_external_tensors_of_no_size(tmp_path: Path, elem_type: int, dims: list[int]) -> None:
    model = relu()
    tensor = T(name="w", data_type=elem_type, dims=dims, data_location=T.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    model.graph.initializer.append(tensor)
    refused(save(tmp_path, model), "tensor 'w'")
