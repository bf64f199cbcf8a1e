"""Walks over everything an ONNX model nests: subgraphs of nodes, model-local functions, and their tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx

__all__ = ["all_tensors", "defined_names", "nested_nodes", "strings_are_text", "subgraphs", "used_names"]


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that one node carries as attributes (the branches of If, the bodies of Loop and Scan)."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def nested_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The given nodes, each followed by those of its subgraphs, at any depth."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from nested_nodes(graph.node)


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every constant tensor, dense or sparse: the initializers and attributes of all graphs and functions."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def defined_names(graph: onnx.GraphProto) -> set[str]:
    """The names of values that this graph itself defines, without those of its subgraphs."""
    names = {value.name for value in graph.input}
    names.update(tensor.name for tensor in graph.initializer)
    names.update(tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        names.update(node.output)
    return names


def used_names(graph: onnx.GraphProto) -> set[str]:
    """Every name of a value or a node in this graph and its subgraphs: none is free for something new."""
    names = defined_names(graph)
    names.update(value.name for value in (*graph.output, *graph.value_info))
    for node in graph.node:
        names.add(node.name)
        names.update(node.input)
        for nested in subgraphs(node):
            names |= used_names(nested)
    return names


def strings_are_text(message: Any) -> bool:
    """Whether every string in a protobuf message is UTF-8; others arrive as bytes and break what follows."""
    if isinstance(message, onnx.TensorProto):
        # Not through ListFields, which would copy the weights.
        return isinstance(message.name, str) and all(map(strings_are_text, message.external_data))
    for field, content in message.ListFields():
        if field.type == field.TYPE_STRING:
            texts = [content] if isinstance(content, str | bytes) else content
            if not all(isinstance(text, str) for text in texts):
                return False
        elif field.type == field.TYPE_MESSAGE:
            parts = [content] if hasattr(content, "ListFields") else content
            if not all(map(strings_are_text, parts)):
                return False
    return True


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (
            *((attribute.sparse_tensor,) if attribute.HasField("sparse_tensor") else ()),
            *attribute.sparse_tensors,
        ):
            yield from (sparse.values, sparse.indices)
    for graph in subgraphs(node):
        yield from _graph_tensors(graph)
