"""Stores a network without its weights, and fills such a network with new ones.

A weight that is taken out leaves its name, its type, its dimensions and four numbers (mean, standard
deviation, smallest and largest value) as ``external_data`` of its tensor. Filling draws from a uniform
distribution of that mean and deviation, so activations stay of the size they had at the export.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["fill", "read", "strip", "write"]

_LOCATION = "seeded"
_LEAST_ELEMENTS = 16
_MOST_PLAIN_BYTES = 1_000_000

# Which inputs of an operator are learned; everything else may decide shapes, anchors or indices and stays.
_LEARNED = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (1,),
    "BatchNormalization": (1, 2, 3, 4),
    "PRelu": (1,),
}


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model without learned weights, comments and traces.

    Args:
        model: A network whose float32 weights are initializers; not changed.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    learned = _learned(bare.graph)
    for tensor in bare.graph.initializer:
        if tensor.name in learned:
            _empty(tensor)
    bare.producer_name, bare.producer_version, bare.doc_string = "", "", ""
    del bare.metadata_props[:]
    for function in bare.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            _forget_origin(node)
    for graph in _graphs(bare.graph):
        graph.doc_string = ""
        del graph.metadata_props[:]
        del graph.value_info[:]
        for value in (*graph.input, *graph.output, *graph.initializer):
            value.doc_string = ""
            del value.metadata_props[:]
        for node in graph.node:
            _forget_origin(node)
    return bare


def fill(bare: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Puts weights into a model in place; the same bytes for the same seed.

    Args:
        bare: What `strip` returned.
        seed: Another seed gives other weights.

    Returns:
        The model given.
    """
    for tensor in bare.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        kept = {entry.key: entry.value for entry in tensor.external_data}
        mean, deviation, low, high = (np.float32(kept[key]) for key in ("mean", "deviation", "low", "high"))
        # Each tensor has a stream of its own, so that none depends on the order of the others.
        stream = np.random.Generator(np.random.PCG64([seed, zlib.crc32(tensor.name.encode())]))
        values = stream.random(int(np.prod(tensor.dims)), dtype=np.float32)
        values -= np.float32(0.5)
        values *= deviation * np.float32(12**0.5)
        values += mean
        np.clip(values, low, high, out=values)
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        tensor.raw_data = values.tobytes()
    return bare


def write(bare: onnx.ModelProto, folder: Path, name: str) -> Path:
    """Stores a stripped model as ``NAME.onnx``, or as ``NAME.onnx.xz`` where that would be large."""
    data = bare.SerializeToString(deterministic=True)
    plain, packed = folder / f"{name}.onnx", folder / f"{name}.onnx.xz"
    plain.unlink(missing_ok=True)
    packed.unlink(missing_ok=True)
    if len(data) < _MOST_PLAIN_BYTES:
        plain.write_bytes(data)
        return plain
    packed.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    return packed


def read(path: Path) -> onnx.ModelProto:
    """Reads what `write` stored."""
    data = path.read_bytes()
    return onnx.load_model_from_string(lzma.decompress(data) if path.suffix == ".xz" else data)


def _learned(graph: onnx.GraphProto) -> set[str]:
    """Names of float32 initializers that serve as weights and as nothing else."""
    as_weight: set[str] = set()
    otherwise = {value.name for value in graph.output}
    for inner in _graphs(graph):
        for node in inner.node:
            places = _LEARNED.get(node.op_type, ()) if inner is graph else ()
            for place, name in enumerate(node.input):
                (as_weight if place in places else otherwise).add(name)
    # A matrix may be turned over before its product.
    for node in graph.node:
        if node.op_type == "Transpose" and node.output[0] in as_weight - otherwise:
            as_weight.add(node.input[0])
            otherwise.discard(node.input[0])
    return {
        tensor.name
        for tensor in graph.initializer
        if tensor.name in as_weight - otherwise
        and tensor.data_type == onnx.TensorProto.FLOAT
        and np.prod(tensor.dims) >= _LEAST_ELEMENTS
    }


def _empty(tensor: onnx.TensorProto) -> None:
    values = numpy_helper.to_array(tensor).astype(np.float64)
    kept = {"mean": values.mean(), "deviation": values.std(), "low": values.min(), "high": values.max()}
    for storage in ("raw_data", "float_data"):
        tensor.ClearField(storage)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": _LOCATION, **{key: f"{value:.6g}" for key, value in kept.items()}}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def _forget_origin(node: onnx.NodeProto) -> None:
    node.doc_string = ""
    del node.metadata_props[:]


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)
