"""A partition as an ONNX file that graph viewers open: each TensorRT segment is one ``EPContext`` node."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType

import onnx
from onnx import helper

from ..datasets.storage import foreign_errors
from ..errors import OutputError
from ..trt_actors.operators import normal_domain
from ..trt_actors.partition.network import Network
from ..trt_actors.partition.partition import Partition, Segment

__all__ = ["write_partition_onnx"]

_DOMAIN = "com.microsoft"
_NOT_BUILT = "no plan yet: `trtfleet build` makes it"


def write_partition_onnx(
    partition: Partition,
    path: str | os.PathLike[str],
    plans: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes the transformed network: native nodes as they are, one ``EPContext`` node for each segment.

    The file is for looking at. An ``EPContext`` node follows the ONNX Runtime convention of that name, with
    the plan's place as its ``ep_cache_context``; constants of native nodes are in the file, those of TensorRT
    segments are in the plans. A model with more than 2 GB of native constants keeps them in ``PATH.data``.

    Args:
        partition: What to write.
        path: The file, replaced if it is there.
        plans: Names or URLs of built plans, by segment name; a node of any other segment says in ``notes``
            that its plan is not built.

    Raises:
        OutputError: The file cannot be written.
    """
    model = _transformed(partition, plans)
    place = os.fspath(path)
    with foreign_errors(OutputError, f"{place} cannot be written"):
        if model.ByteSize() < onnx.checker.MAXIMUM_PROTOBUF:
            onnx.save(model, place)
            return
        data = place + ".data"
        if os.path.exists(data):
            # It would be appended to.
            os.remove(data)
        onnx.save(model, place, save_as_external_data=True, location=os.path.basename(data))


def _transformed(partition: Partition, plans: Mapping[str, str]) -> onnx.ModelProto:
    whole, network = partition.cleaned, Network(partition.cleaned)
    model = onnx.ModelProto(
        ir_version=whole.ir_version,
        producer_name="trtfleet",
        doc_string=whole.doc_string,
        domain=whole.domain,
    )
    model.opset_import.extend(whole.opset_import)
    if partition.tensorrt and all(normal_domain(o.domain) != _DOMAIN for o in whole.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    model.functions.extend(whole.functions)
    graph = model.graph
    graph.name = whole.graph.name or "network"
    for segment in partition.segments:
        if segment.kind == "tensorrt":
            graph.node.append(_context_node(segment, partition.flavour, plans.get(segment.name)))
        else:
            graph.node.extend(whole.graph.node[index] for index in segment.nodes)
    native = {index for s in partition.segments if s.kind == "native" for index in s.nodes}
    used = {name for index in native for name in network.node_reads[index]} | set(network.outputs)
    graph.initializer.extend(tensor for tensor in whole.graph.initializer if tensor.name in used)
    graph.sparse_initializer.extend(
        tensor for tensor in whole.graph.sparse_initializer if tensor.values.name in used
    )
    # What the original gives a default for is not asked for once nothing reads it.
    optional = {tensor.name for tensor in partition.original.graph.initializer} - used
    graph.input.extend(value for value in whole.graph.input if value.name not in optional)
    graph.output.extend(whole.graph.output)
    ends = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    inner = dict.fromkeys(name for node in graph.node for name in node.output if name and name not in ends)
    graph.value_info.extend(
        onnx.ValueInfoProto(name=name, type=partition.types[name])
        for name in inner
        if name in partition.types
    )
    helper.set_model_props(model, {**{p.key: p.value for p in whole.metadata_props}, **_facts(partition)})
    return model


def _context_node(segment: Segment, flavour: str, plan: str | None) -> onnx.NodeProto:
    return helper.make_node(
        "EPContext",
        list(segment.inputs),
        list(segment.outputs),
        segment.name,
        domain=_DOMAIN,
        main_context=1,
        embed_mode=0,
        ep_cache_context=plan or "",
        ep_sdk_version=flavour,
        partition_name=segment.name,
        source="trtfleet",
        notes=f"{len(segment.nodes)} nodes, {segment.multiply_adds} multiply-adds"
        + ("" if plan else f"; {_NOT_BUILT}"),
    )


def _facts(partition: Partition) -> dict[str, str]:
    return {
        "trtfleet.flavour": partition.flavour,
        "trtfleet.nodes": str(len(partition.cleaned.graph.node)),
        "trtfleet.node_share": f"{partition.node_share:.6f}",
        "trtfleet.multiply_add_share": f"{partition.multiply_add_share:.6f}",
        "trtfleet.tensorrt_segments": str(len(partition.tensorrt)),
        "trtfleet.native_nodes": str(len(partition.native)),
    }
