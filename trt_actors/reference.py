"""ONNX Runtime on the CPU as a tool: folds constants, tells types, computes the values of a network."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from ..datasets.storage import one_line
from ..errors import ModelError
from .operators import normal_domain
from .walk import nested_nodes

__all__ = ["compute", "fold_constants", "result_types"]

_FATAL_ONLY = 4
_ELEMENT_TYPES = {
    "float": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "double": onnx.TensorProto.DOUBLE,
    "bool": onnx.TensorProto.BOOL,
    "string": onnx.TensorProto.STRING,
    **{
        f"{sign}int{bits}": getattr(onnx.TensorProto, f"{sign}int{bits}".upper())
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}


def _options() -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _session(model: onnx.ModelProto, options: Any) -> Any:
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(
            f"ONNX Runtime {ort.__version__} cannot load the model: {one_line(error)}",
            "does the model run in onnxruntime by itself?",
        ) from error


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Computes what does not depend on inputs, and drops nodes without effect, by ONNX Runtime's basic rules.

    Batch normalization is merged into the convolution before it, as runtimes do anyway; every operator of the
    result is one of the ONNX specification, or of the model's own domains.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
    """
    options = _options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory(prefix="trtfleet-fold-") as folder:
        path = Path(folder, "folded.onnx")
        options.optimized_model_filepath = str(path)
        _session(model, options)
        folded = onnx.load(str(path))
    used = {normal_domain(node.domain) for node in nested_nodes(folded.graph.node)}
    used |= {normal_domain(node.domain) for function in folded.functions for node in function.node}
    kept = [opset for opset in folded.opset_import if normal_domain(opset.domain) in used | {""}]
    del folded.opset_import[:]
    folded.opset_import.extend(kept)
    return folded


def result_types(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, onnx.TypeProto]:
    """The types of values as ONNX Runtime infers them, which knows operators that ONNX does not.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
    """
    session = _session(_with_outputs(model, names), _options())
    found: dict[str, onnx.TypeProto] = {}
    for value in session.get_outputs():
        element = value.type.removeprefix("tensor(").removesuffix(")")
        if value.name in names and element in _ELEMENT_TYPES:
            tensor = onnx.TypeProto.Tensor(elem_type=_ELEMENT_TYPES[element])
            # ONNX Runtime tells a scalar and an unknown rank alike: the rank stays open.
            for size in value.shape:
                dim = tensor.shape.dim.add()
                if isinstance(size, int):
                    dim.dim_value = size
                elif size:
                    dim.dim_param = size
            found[value.name] = onnx.TypeProto(tensor_type=tensor)
    return found


def compute(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Runs a model on the CPU without any optimization and returns the values asked for, inner ones as well.

    Raises:
        ModelError: ONNX Runtime cannot load or run the model.
    """
    if not names:
        # ONNX Runtime takes no name for all of them.
        return {}
    session = _session(_with_outputs(model, names), _options())
    try:
        values = session.run(list(names), dict(feeds))
    except Exception as error:
        raise ModelError(f"the model fails in ONNX Runtime: {one_line(error)}") from error
    return dict(zip(names, values, strict=True))


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    return copy
