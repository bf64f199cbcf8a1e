"""Versions and operators of a model against what the installed onnx package knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import onnx
from onnx import defs

from ..errors import ModelError
from .walk import nested_nodes

__all__ = ["check_operators", "check_versions", "normal_domain", "uses_runtime_operators"]

_STANDARD_DOMAINS = ("", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training")
_FIRST_IR_WITH_OPSETS = 3

# ONNX Runtime's optimizer saves these into the default domain at opsets that do not have them.
_RUNTIME_OPERATORS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})


def normal_domain(domain: str) -> str:
    """The domain with the two spellings of the default one made the same."""
    return "" if domain == "ai.onnx" else domain


def check_versions(model: onnx.ModelProto) -> None:
    """Checks the IR version and the operator sets of the model and of its functions.

    Raises:
        ModelError: One of them is newer than the installed onnx package, or not a valid version.
    """
    hint = "upgrade the onnx package, or export the model for an older version"
    if model.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"uses IR version {model.ir_version}, the installed onnx {onnx.__version__} supports up to "
            f"{onnx.IR_VERSION}",
            hint,
        )
    if model.ir_version < _FIRST_IR_WITH_OPSETS:
        raise ModelError(
            f"uses IR version {model.ir_version}, the oldest supported is {_FIRST_IR_WITH_OPSETS}",
            "export the model again with a current exporter",
        )
    if not model.opset_import:
        raise ModelError(
            "imports no operator set", "the file is truncated or was written by a broken exporter"
        )
    for opset in (
        *model.opset_import,
        *(opset for function in model.functions for opset in function.opset_import),
    ):
        domain = normal_domain(opset.domain)
        if domain not in _STANDARD_DOMAINS:
            continue
        newest = _newest_opset(domain)
        if opset.version > newest:
            raise ModelError(
                f"uses opset {opset.version} of domain {_shown(domain)}, the installed onnx "
                f"{onnx.__version__} supports up to {newest}",
                hint,
            )
        if opset.version < 1:
            raise ModelError(
                f"uses opset {opset.version} of domain {_shown(domain)}, the first one is 1", hint
            )


def check_operators(model: onnx.ModelProto) -> tuple[str, ...]:
    """Checks that every operator of a standard domain exists, in subgraphs and functions too.

    Returns:
        The custom domains in use, sorted; whether their operators exist is for the runtime to say.

    Raises:
        ModelError: An operator is unknown, deprecated or missing at its opset, or its domain is not imported.
    """
    local = {(normal_domain(function.domain), function.name) for function in model.functions}
    custom = _check_nodes(model.graph.node, model.opset_import, local)
    for function in model.functions:
        custom |= _check_nodes(function.node, function.opset_import, local)
    return tuple(sorted(custom))


def uses_runtime_operators(model: onnx.ModelProto) -> bool:
    """Whether the default domain has operators that ONNX Runtime knows and the specification lacks."""
    versions = {normal_domain(opset.domain): opset.version for opset in model.opset_import}
    return any(
        node.op_type in _RUNTIME_OPERATORS
        and normal_domain(node.domain) == ""
        and not defs.has(node.op_type, versions[""], "")
        for node in nested_nodes(model.graph.node)
    )


def _check_nodes(
    nodes: Iterable[onnx.NodeProto], opsets: Iterable[onnx.OperatorSetIdProto], local: set[tuple[str, str]]
) -> set[str]:
    """Checks nodes that share one list of imports; returns the custom domains among them."""
    versions = {normal_domain(opset.domain): opset.version for opset in opsets}
    good: set[tuple[str, str]] = set(local)
    custom: set[str] = set()
    for node in nested_nodes(nodes):
        domain = normal_domain(node.domain)
        if (domain, node.op_type) in good:
            continue
        if domain not in versions:
            raise ModelError(
                f"{_label(node)} uses operator {node.op_type} of domain {_shown(domain)}, which the "
                "model does not import",
                "export the model again",
            )
        if domain not in _STANDARD_DOMAINS:
            custom.add(domain)
        elif not (domain == "" and node.op_type in _RUNTIME_OPERATORS):
            _check_known(node, domain, versions[domain])
        good.add((domain, node.op_type))
    return custom


def _check_known(node: onnx.NodeProto, domain: str, opset: int) -> None:
    where = f"domain {_shown(domain)} at opset {opset}"
    if defs.has(node.op_type, opset, domain):
        schema = defs.get_schema(node.op_type, opset, domain)
        if schema.deprecated:
            raise ModelError(
                f"{_label(node)} uses operator {node.op_type}, deprecated in {where}",
                "export the model again with a current exporter",
            )
        return
    schemas = [schema for schema in defs.get_all_schemas_with_history() if schema.domain == domain]
    later = [schema.since_version for schema in schemas if schema.name == node.op_type]
    if later:
        raise ModelError(
            f"{_label(node)} uses operator {node.op_type}, which {where} does not have",
            f"it came with opset {min(later)}: export the model for that opset",
        )
    known = sorted({schema.name for schema in schemas if schema.since_version <= opset})
    nearest = difflib.get_close_matches(node.op_type, known, n=1, cutoff=0.5)
    raise ModelError(
        f"{_label(node)} uses operator {node.op_type}, unknown to {where} (onnx {onnx.__version__})",
        f"the nearest name is {nearest[0]}" if nearest else "a custom operator needs a domain of its own",
    )


def _newest_opset(domain: str) -> int:
    if domain == "":
        return defs.onnx_opset_version()
    return max(
        schema.since_version for schema in defs.get_all_schemas_with_history() if schema.domain == domain
    )


def _label(node: onnx.NodeProto) -> str:
    if node.name:
        return f"node {node.name!r}"
    return f"the node that makes {node.output[0]!r}" if node.output else "an unnamed node"


def _shown(domain: str) -> str:
    return domain or "ai.onnx"
