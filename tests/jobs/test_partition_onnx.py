"""The transformed network as an ONNX file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from trtfleet.errors import OutputError
from trtfleet.jobs.partition_onnx import write_partition_onnx
from trtfleet.trt_actors.partition.partition import Partition
from trtfleet.trt_actors.partition.partitioner import partition_model
from trtfleet.trt_actors.partition.support import ParserProcess


def mixed_network() -> onnx.ModelProto:
    """Matrix products that TensorRT takes, around an unknown number of rows that it does not."""
    weights = np.random.default_rng(0).random((8, 8), dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "second"),
        helper.make_node("MatMul", ["b", "w"], ["c"], "third"),
        helper.make_node("StringNormalizer", ["words"], ["normal"], "strings", case_change_action="LOWER"),
        helper.make_node("NonZero", ["c"], ["found"], "found_at"),
        helper.make_node("Cast", ["found"], ["places"], "as_float", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["v", "places"], ["answer"], "fourth"),
    ]
    graph = helper.make_graph(
        nodes,
        "mixed",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 8]),
            helper.make_tensor_value_info("words", TensorProto.STRING, [3]),
        ],
        [
            helper.make_tensor_value_info("c", TensorProto.FLOAT, [4, 8]),
            helper.make_tensor_value_info("answer", TensorProto.FLOAT, [5, "n"]),
            helper.make_tensor_value_info("normal", TensorProto.STRING, ["k"]),
        ],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.ones((5, 2), np.float32), "v"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"author": "somebody"})
    return model


@pytest.fixture(scope="module")
def partition() -> Iterator[Partition]:
    with ParserProcess("tensorrt-rtx") as parser:
        yield partition_model(mixed_network(), parser, flavour="tensorrt-rtx 1", exclude_ops=["NonZero"])


@pytest.fixture
def written(partition: Partition, tmp_path: Path) -> onnx.ModelProto:
    write_partition_onnx(partition, tmp_path / "p.onnx", {partition.tensorrt[0].name: "s3://plans/abc.plan"})
    return onnx.load(tmp_path / "p.onnx")


def contexts(model: onnx.ModelProto) -> list[dict[str, object]]:
    return [
        {a.name: helper.get_attribute_value(a) for a in node.attribute}
        for node in model.graph.node
        if node.op_type == "EPContext"
    ]


def test_segments_become_one_node_each_with_the_plan(partition: Partition, written: onnx.ModelProto) -> None:
    assert partition.tensorrt
    assert partition.native
    found = contexts(written)
    assert [context["partition_name"] for context in found] == [s.name.encode() for s in partition.tensorrt]
    assert found[0]["ep_cache_context"] == b"s3://plans/abc.plan"
    assert found[0]["embed_mode"] == 0
    assert found[0]["main_context"] == 1
    assert found[0]["source"] == b"trtfleet"
    assert found[0]["ep_sdk_version"] == b"tensorrt-rtx 1"
    assert b"no plan" not in found[0]["notes"]  # type: ignore[operator]


def test_without_a_plan_the_node_says_so(partition: Partition, tmp_path: Path) -> None:
    write_partition_onnx(partition, tmp_path / "p.onnx")
    for context in contexts(onnx.load(tmp_path / "p.onnx")):
        assert context["ep_cache_context"] == b""
        assert b"no plan yet" in context["notes"]  # type: ignore[operator]


def test_native_nodes_stay_as_they_are(partition: Partition, written: onnx.ModelProto) -> None:
    kept = [node for node in written.graph.node if node.op_type != "EPContext"]
    assert kept == [
        partition.cleaned.graph.node[index]
        for segment in partition.segments
        if segment.kind == "native"
        for index in segment.nodes
    ]
    assert [tensor.name for tensor in written.graph.initializer] == ["v"]


def test_the_file_is_valid_and_in_topological_order(partition: Partition, written: onnx.ModelProto) -> None:
    onnx.checker.check_model(written, full_check=True)
    known = {value.name for value in (*written.graph.input, *written.graph.initializer)}
    for node in written.graph.node:
        assert set(filter(None, node.input)) <= known
        known.update(node.output)
    assert {value.name for value in written.graph.output} <= known
    assert written.graph.input == partition.cleaned.graph.input
    assert written.graph.output == partition.cleaned.graph.output


def test_domain_and_coverage_are_declared(partition: Partition, written: onnx.ModelProto) -> None:
    assert {opset.domain: opset.version for opset in written.opset_import} == {"": 17, "com.microsoft": 1}
    properties = {entry.key: entry.value for entry in written.metadata_props}
    assert float(properties["trtfleet.node_share"]) == pytest.approx(partition.node_share, abs=1e-6)
    assert float(properties["trtfleet.multiply_add_share"]) == pytest.approx(
        partition.multiply_add_share, abs=1e-6
    )
    assert properties["trtfleet.native_nodes"] == str(len(partition.native))


def test_a_value_between_segments_keeps_its_type(written: onnx.ModelProto, partition: Partition) -> None:
    declared = {value.name: value.type for value in written.graph.value_info}
    made = {name for node in written.graph.node for name in node.output}
    assert declared
    assert declared.keys() <= made
    assert all(declared[name] == partition.types[name] for name in declared)


def test_a_place_that_cannot_be_written_is_one_clear_error(partition: Partition, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"missing/p\.onnx cannot be written"):
        write_partition_onnx(partition, tmp_path / "missing" / "p.onnx")
