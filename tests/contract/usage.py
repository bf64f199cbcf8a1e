"""What the product uses of TensorRT's interface, read off its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trtfleet.tests.contract.bindings import Interface

REPOSITORY = Path(__file__).resolve().parents[2]

MODULES = ("api", "self._api", "flavour.api", "self._flavour.api")
"""Expressions that are a flavour's module."""

OBJECTS = {
    "": {
        "builder": "Builder",
        "config": "IBuilderConfig",
        "engine": "ICudaEngine",
        "inspector": "EngineInspector",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "runtime": "Runtime",
    },
    "trt_actors/building/builder.py": {
        "cache": "ITimingCache",
        "layer": "ILayer",
        "made": "IOptimizationProfile",
        "tensor": "ITensor",
    },
    "trt_actors/partition/ask_worker.py": {"error": "ParserError"},
    "trt_actors/runtime/context.py": {"self._inner": "IExecutionContext"},
    "trt_actors/runtime/plan.py": {"self._engine": "ICudaEngine", "self._runtime": "Runtime"},
    "trt_actors/runtime/settings.py": {
        "self._cache": "IRuntimeCache",
        "config": "IRuntimeConfig",
        "strategies": "DynamicShapesKernelSpecializationStrategy",
        "self._engine": "ICudaEngine",
    },
}
"""Expressions that are an object of TensorRT, everywhere and in single files."""

GUARDED = {
    "Runtime.get_engine_validity": frozenset(
        {"EngineValidity", "EngineValidity.INVALID", "EngineInvalidityDiagnostics"}
    ),
    "DynamicShapesKernelSpecializationStrategy": frozenset(
        {
            "DynamicShapesKernelSpecializationStrategy.EAGER",
            "DynamicShapesKernelSpecializationStrategy.LAZY",
            "ICudaEngine.create_runtime_config",
            "IRuntimeConfig",
            "IRuntimeConfig.create_runtime_cache",
            "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
            "IRuntimeConfig.set_runtime_cache",
        }
    ),
}
"""Names that the product asks for with hasattr, and what it uses only where they are."""


@dataclass(frozen=True)
class Use:
    """One place where the interface is used.

    Attributes:
        where: File and line.
        name: ``Class``, ``Class.member``, or the name of an enumeration's member.
        call: How many positional and which keyword arguments; None when it is not called.
    """

    where: str
    name: str
    call: tuple[int, frozenset[str]] | None


def files() -> list[Path]:
    """The product's modules that have to do with a flavour's module."""
    return [path for path in _product() if any(_is_module(node) for node in ast.walk(_tree(path)))]


def _product() -> list[Path]:
    return sorted(path for layer in ("jobs", "trt_actors") for path in (REPOSITORY / layer).rglob("*.py"))


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


def _is_module(node: ast.AST) -> bool:
    return isinstance(node, ast.expr) and ast.unparse(node) in MODULES


def name_of(path: Path) -> str:
    """A file's name as `OBJECTS` has it."""
    return str(path.relative_to(REPOSITORY))


def objects_in(path: Path) -> dict[str, str]:
    """Expressions that are TensorRT's objects in one file, with their classes."""
    return {**OBJECTS[""], **OBJECTS.get(name_of(path), {})}


def uses(path: Path) -> Iterator[Use]:
    """Every use in one file."""
    objects, tree = objects_in(path), _tree(path)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        name = _named(node, objects)
        if name is None:
            continue
        call = calls.get(id(node))
        how = None
        if call is not None:
            how = (len(call.args), frozenset(word.arg or "" for word in call.keywords))
        yield Use(where=f"{name_of(path)}:{node.lineno}", name=name, call=how)


def _named(node: ast.Attribute, objects: dict[str, str]) -> str | None:
    owner = node.value
    if node.attr.startswith("__"):
        return None
    if _is_module(owner):
        return node.attr
    if isinstance(owner, ast.Attribute) and _is_module(owner.value):
        return f"{owner.attr}.{node.attr}"
    known = objects.get(ast.unparse(owner))
    return f"{known}.{node.attr}" if known and not _is_module(node) else None


def subclasses(path: Path) -> Iterator[tuple[str, list[ast.FunctionDef]]]:
    """Classes of the product that derive from one of TensorRT's, with their public methods."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                if isinstance(base, ast.Attribute) and _is_module(base.value):
                    yield (
                        base.attr,
                        [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name[0] != "_"],
                    )


def unknown_objects(path: Path, interface: Interface) -> list[str]:
    """Assignments of an object of TensorRT to an expression that `OBJECTS` does not know."""
    objects, found = objects_in(path), []
    for node in ast.walk(_tree(path)):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Call):
            continue
        function = node.value.func
        name = _named(function, objects) if isinstance(function, ast.Attribute) else None
        if name is None or not interface.has(name):
            continue
        made = {name} if "." not in name else {each.returns for each in interface.signatures(name)}
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        found += [
            f"{name_of(path)}:{node.lineno} {target} = {name}(): {sorted(made)}"
            for target in map(ast.unparse, targets)
            if any(interface.has(kind) and objects.get(target) != kind for kind in made)
        ]
    return found
