"""The search for segments, against a parser that is made up and against the real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from trtfleet.trt_actors.partition.network import Network
from trtfleet.trt_actors.partition.partition import Partition
from trtfleet.trt_actors.partition.partitioner import partition_model
from trtfleet.trt_actors.partition.support import Answer, ParserProcess
from trtfleet.trt_actors.reference import compute


class Refusing:
    """A parser that names only the first node it refuses, and then counts all nodes as unsupported."""

    def __init__(self, refuses: Callable[[onnx.NodeProto], bool], crashes: bool = False) -> None:
        self._refuses = refuses
        self._crashes = crashes
        self.questions = 0

    def ask(self, model: onnx.ModelProto) -> Answer:
        self.questions += 1
        onnx.checker.check_model(model)
        for index, node in enumerate(model.graph.node):
            if self._refuses(node):
                if self._crashes:
                    return Answer(supported=False, crashed=True)
                everything = tuple(range(len(model.graph.node)))
                return Answer(
                    supported=False, unsupported=everything, errors=((index, f"no {node.op_type}"),)
                )
        return Answer(supported=True)


def network(ops: Sequence[str], inputs: Sequence[Sequence[int]]) -> onnx.ModelProto:
    """Nodes of one or two inputs over float32[N, 4]; -1 stands for the model's input."""
    nodes = []
    for index, (op, sources) in enumerate(zip(ops, inputs, strict=True)):
        names = ["x" if source < 0 else f"v{source}" for source in sources]
        if op == "Mul":
            names = [names[0], "scale"]
        nodes.append(helper.make_node(op, names, [f"v{index}"], name=f"node{index}"))
    used = {name for node in nodes for name in node.input}
    results = [f"v{index}" for index in range(len(ops)) if f"v{index}" not in used]
    shape = ["N", 4]
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in results],
        [numpy_helper.from_array(np.array([0.5, -1, 2, 0.25], np.float32), "scale")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    size = draw(st.integers(1, 14))
    ops, inputs = [], []
    for index in range(size):
        op = draw(st.sampled_from(["Add", "Mul", "Tanh", "Sin", "Abs"]))
        sources = st.integers(-1, index - 1)
        ops.append(op)
        inputs.append([draw(sources)] + ([draw(sources)] if op == "Add" else []))
    return network(ops, inputs)


def run_segments(partition: Partition, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    values = dict(feeds)
    for segment in partition.segments:
        model = partition.model_of(segment)
        onnx.checker.check_model(model)
        values |= compute(model, {name: values[name] for name in segment.inputs}, list(segment.outputs))
    return values


@settings(deadline=None, max_examples=60)
@given(networks(), st.integers(1, 4))
def test_segments_compute_what_the_whole_computes(model: onnx.ModelProto, least: int) -> None:
    partition = partition_model(
        model, Refusing(lambda node: node.op_type == "Sin"), flavour="made up", min_subgraph_size=least
    )
    whole = Network(partition.cleaned)
    assert sorted(n for s in partition.segments for n in s.nodes) == list(range(len(whole.nodes)))
    assert all(len(segment.nodes) >= least for segment in partition.tensorrt)
    in_tensorrt = {whole.nodes[index].op_type for s in partition.tensorrt for index in s.nodes}
    assert "Sin" not in in_tensorrt
    feeds = {"x": np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)}
    values = run_segments(partition, feeds)
    for name, expected in compute(model, feeds, list(whole.outputs)).items():
        np.testing.assert_allclose(values[name], expected, rtol=1e-6, atol=1e-6)


def chain(*ops: str) -> onnx.ModelProto:
    return network(ops, [[index - 1] for index in range(len(ops))])


def test_one_refused_node_leaves_two_segments_and_its_reason() -> None:
    model = chain("Tanh", "Abs", "Tanh", "Sin", "Tanh", "Abs", "Tanh")
    partition = partition_model(model, Refusing(lambda node: node.op_type == "Sin"), flavour="made up")
    assert [(s.kind, len(s.nodes)) for s in partition.segments] == [
        ("tensorrt", 3),
        ("native", 1),
        ("tensorrt", 3),
    ]
    assert [(node.name, node.reason) for node in partition.native] == [("node3", "no Sin")]


def test_small_segments_are_given_back_naming_the_limit() -> None:
    model = chain("Tanh", "Abs", "Sin", "Tanh", "Abs", "Tanh")
    partition = partition_model(model, Refusing(lambda node: node.op_type == "Sin"), flavour="made up")
    assert [(s.kind, len(s.nodes)) for s in partition.segments] == [("native", 3), ("tensorrt", 3)]
    assert partition.native[0].reason == "in a segment of 2 nodes, min_subgraph_size is 3"


def test_a_crash_is_traced_to_its_node() -> None:
    model = chain("Tanh", "Abs", "Tanh", "Sin", "Tanh", "Abs", "Tanh")
    parser = Refusing(lambda node: node.op_type == "Sin", crashes=True)
    partition = partition_model(model, parser, flavour="made up")
    assert [(node.op_type, node.reason) for node in partition.native] == [
        ("Sin", "TensorRT's parser crashes on this node")
    ]


def test_excluded_operators_stay_native() -> None:
    model = chain("Tanh", "Abs", "Tanh", "Abs")
    partition = partition_model(
        model, Refusing(lambda node: False), flavour="made up", exclude_ops=["Tanh"], min_subgraph_size=1
    )
    assert {node.op_type for node in partition.native} == {"Tanh"}
    assert partition.native[0].reason == "excluded by --exclude-op Tanh"


def test_constants_travel_with_every_segment_that_uses_them() -> None:
    model = network(["Mul", "Sin", "Mul"], [[-1], [0], [1]])
    partition = partition_model(
        model, Refusing(lambda node: node.op_type == "Sin"), flavour="made up", min_subgraph_size=1
    )
    assert [len(partition.model_of(s).graph.initializer) for s in partition.segments] == [1, 0, 1]


def conditional() -> onnx.ModelProto:
    """Two convolution-free halves around an If whose branches read a value from outside."""
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["v1"], [f"{name}_out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["N", 4])],
        )
        for name, op in (("then", "Neg"), ("else", "Abs"))
    }
    nodes = [
        helper.make_node("Tanh", ["x"], ["v0"]),
        helper.make_node("Abs", ["v0"], ["v1"]),
        helper.make_node("ReduceMax", ["v1"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "half"], ["is_large"]),
        helper.make_node(
            "If", ["is_large"], ["v2"], then_branch=branches["then"], else_branch=branches["else"]
        ),
        helper.make_node("Tanh", ["v2"], ["v3"]),
        helper.make_node("Abs", ["v3"], ["v4"]),
        helper.make_node("Tanh", ["v4"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "conditional",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.float32(0.5), "half")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_control_flow_stays_native_and_gets_what_its_branches_read() -> None:
    model = conditional()
    partition = partition_model(model, Refusing(lambda node: False), flavour="made up")
    assert [s.kind for s in partition.segments] == ["tensorrt", "native", "tensorrt"]
    assert set(partition.segments[1].inputs) == {"is_large", "v1"}
    for scale in (0.1, 2.0):
        feeds = {"x": np.full((2, 4), scale, np.float32)}
        np.testing.assert_array_equal(run_segments(partition, feeds)["y"], compute(model, feeds, ["y"])["y"])


@pytest.fixture(scope="module")
def parser() -> Iterator[ParserProcess]:
    with ParserProcess("tensorrt-rtx") as process:
        yield process


def with_nonzero() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Tanh", ["x"], ["a"]),
        helper.make_node("Abs", ["a"], ["b"]),
        helper.make_node("Tanh", ["b"], ["c"]),
        helper.make_node("NonZero", ["c"], ["where"], name="find"),
        helper.make_node("Cast", ["where"], ["as_float"], to=TensorProto.FLOAT),
        helper.make_node("Tanh", ["as_float"], ["d"]),
        helper.make_node("Abs", ["d"], ["e"]),
        helper.make_node("Tanh", ["e"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "with_nonzero",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, "found"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_the_real_parser_takes_a_plain_network_whole(parser: ParserProcess) -> None:
    partition = partition_model(chain("Tanh", "Abs", "Mul", "Sin"), parser, flavour="tensorrt-rtx")
    assert partition.is_whole
    assert partition.node_share == 1.0


def test_the_real_parser_keeps_nonzero_out_and_says_why(parser: ParserProcess) -> None:
    partition = partition_model(with_nonzero(), parser, flavour="tensorrt-rtx")
    native = [node for node in partition.native if node.op_type == "NonZero"]
    assert [node.name for node in native] == ["find"]
    assert native[0].reason
    assert [s.kind for s in partition.segments] == ["tensorrt", "native", "tensorrt"]
    feeds = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)}
    np.testing.assert_allclose(
        run_segments(partition, feeds)["y"], compute(with_nonzero(), feeds, ["y"])["y"], rtol=1e-6
    )


def test_a_custom_domain_stays_native_and_is_named(parser: ParserProcess) -> None:
    model = chain("Tanh", "Abs", "Tanh")
    model.graph.node.insert(
        3, helper.make_node("FastGelu", ["v2"], ["w"], domain="com.microsoft", name="gelu")
    )
    model.graph.output[0].name = "w"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    partition = partition_model(model, parser, flavour="tensorrt-rtx")
    assert [(node.name, node.reason) for node in partition.native] == [
        ("gelu", "operator of the custom domain com.microsoft")
    ]
    assert [s.kind for s in partition.segments] == ["tensorrt", "native"]


class Answering:
    """A parser that gives prepared answers, then supports everything."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.asked: list[list[str]] = []

    def ask(self, model: onnx.ModelProto) -> Answer:
        self.asked.append([node.op_type for node in model.graph.node])
        return self._answers.pop(0) if self._answers else Answer(supported=True)


def test_an_operator_that_tensorrt_lacks_is_asked_about_once() -> None:
    model = chain("Tanh", "Sin", "Tanh", "Sin", "Tanh", "Sin", "Tanh")
    words = "Plugin not found, are the plugin name, version, and namespace correct?"
    parser = Answering(Answer(supported=False, errors=((1, words),)))
    partition = partition_model(model, parser, flavour="made up", min_subgraph_size=1)
    assert [node.op_type for node in partition.native] == ["Sin"] * 3
    assert {node.reason for node in partition.native} == {words}
    assert len(parser.asked) == 1 + 4


def test_what_turns_outside_sizes_into_shapes_stays_native() -> None:
    model = with_nonzero()
    first = Answer(supported=False, errors=((3, "no NonZero"),))
    parser = Answering(first, Answer(supported=True), Answer(supported=True, sizes=("where",)))
    partition = partition_model(model, parser, flavour="made up", min_subgraph_size=1)
    reasons = {node.op_type: node.reason for node in partition.native}
    assert reasons == {"NonZero": "no NonZero", "Cast": "its shape depends on the value of where"}


def test_segments_that_multiply_nothing_are_given_back_where_others_multiply() -> None:
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight")
    model = chain("Tanh", "Abs", "Tanh", "Sin", "Tanh", "Abs", "Tanh")
    model.graph.node.insert(1, helper.make_node("MatMul", ["v0", "weight"], ["m"], name="matmul"))
    model.graph.node[2].input[0] = "m"
    model.graph.initializer.append(weight)
    partition = partition_model(model, Refusing(lambda node: node.op_type == "Sin"), flavour="made up")
    assert [(s.kind, len(s.nodes)) for s in partition.segments] == [("tensorrt", 4), ("native", 4)]
    assert "multiplies" in partition.native[-1].reason or "multiply" in partition.native[-1].reason
