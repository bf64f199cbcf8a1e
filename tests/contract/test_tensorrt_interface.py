"""Everything the product uses of TensorRT, and everything the double pretends, is in the real bindings."""

from __future__ import annotations

import inspect
import re
from enum import Enum
from pathlib import Path

import pytest
from trtfleet.tests.contract import usage
from trtfleet.tests.contract.bindings import Interface, Wheel, dump
from trtfleet.tests.trt_actors.runtime import doubles

FLAVOURS = ("tensorrt_rtx", "11.4.0.106", "10.16.1.11")
FILES = usage.files()
DOUBLED = [
    thing
    for name, thing in vars(doubles).items()
    if isinstance(thing, type) and thing.__module__ == doubles.__name__ and name[0] != "_"
    if thing is not doubles.TensorRTDouble
]
_HOOKED = ("ILogger", "IOutputAllocator", "IProgressMonitor")


@pytest.fixture(scope="session", params=FLAVOURS)
def interface(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Interface:
    """TensorRT-RTX as installed, and the bindings of two versions of TensorRT."""
    if request.param == "tensorrt_rtx":
        return dump(request.param)
    return Wheel(request.param, tmp_path_factory.mktemp("bindings")).interface


@pytest.fixture(scope="session")
def rtx() -> Interface:
    """TensorRT-RTX as installed."""
    return dump("tensorrt_rtx")


def is_excused(name: str, interface: Interface) -> bool:
    """Whether the product asks before it uses a name, and would be told that it is not there."""
    return any(
        (name == guard or name in group) and not interface.has(guard)
        for guard, group in usage.GUARDED.items()
    )


def fits(interface: Interface, use: usage.Use) -> bool:
    if is_excused(use.name, interface):
        return True
    if not interface.has(use.name):
        return False
    signatures = interface.signatures(use.name) if use.call else []
    # A value that is called, such as an enumeration converting a number, has no signature to compare.
    return not signatures or any(each.takes(*use.call) for each in signatures if use.call)


def test_there_is_something_to_look_at() -> None:
    names = set(map(usage.name_of, FILES))
    assert {f"trt_actors/runtime/{name}.py" for name in ("context", "tensors", "plan", "validity")} <= names
    found = {use.name for path in FILES for use in usage.uses(path)}
    assert {"ILogger.ERROR", "Runtime", "IExecutionContext.execute_async_v3", "OnnxParser.parse"} <= found


@pytest.mark.parametrize("path", FILES, ids=usage.name_of)
def test_every_use_exists_with_these_arguments(path: Path, interface: Interface) -> None:
    assert [use for use in usage.uses(path) if not fits(interface, use)] == []


@pytest.mark.parametrize("path", FILES, ids=usage.name_of)
def test_every_object_is_known_to_this_test(path: Path, rtx: Interface) -> None:
    assert usage.unknown_objects(path, rtx) == []


def test_no_file_uses_objects_out_of_sight() -> None:
    assert [name for name in usage.OBJECTS if name and not (usage.REPOSITORY / name).exists()] == []
    assert [name for name in usage.OBJECTS if name and usage.REPOSITORY / name not in FILES] == []


def test_a_use_that_does_not_exist_would_be_found(rtx: Interface) -> None:
    def use(name: str, positional: int = 0, *keywords: str) -> usage.Use:
        return usage.Use(where="", name=name, call=(positional, frozenset(keywords)))

    assert fits(rtx, use("IExecutionContext.set_tensor_address", 2))
    assert fits(rtx, use("IExecutionContext.set_tensor_address", 1, "memory"))
    assert not fits(rtx, use("IExecutionContext.set_tensor_address", 1, "address"))
    assert not fits(rtx, use("IExecutionContext.set_tensor_address", 3))
    assert not fits(rtx, use("IExecutionContext.execute_async_v2", 1))
    assert not fits(rtx, use("TensorIOMode.SIDEWAYS"))


def test_the_guards_are_asked_for_and_needed(rtx: Interface) -> None:
    assert [
        name for guard, group in usage.GUARDED.items() for name in (guard, *group) if not rtx.has(name)
    ] == []
    source = "".join(path.read_text() for path in FILES)
    asked = re.findall(r"hasattr\([\w.]+, \"(\w+)\"\)", source)
    assert {guard.rpartition(".")[2] for guard in usage.GUARDED} <= set(asked)


@pytest.mark.parametrize("path", FILES, ids=usage.name_of)
def test_callbacks_have_the_documented_parameters(path: Path, interface: Interface) -> None:
    for base, methods in usage.subclasses(path):
        assert base in _HOOKED
        hooks = documented_hooks(interface, base)
        for method in methods:
            if method.name in hooks:
                assert len(method.args.args) - 1 == len(hooks[method.name]), method.name
        assert hooks
        assert hooks.keys() <= {method.name for method in methods}, base


def documented_hooks(interface: Interface, base: str) -> dict[str, list[str]]:
    """The methods that a class calls back, with their parameters: its own or those in its documentation."""
    shown = re.findall(r"def ([a-z]\w*)\(self, ([^)]*)\)", interface.doc(base))
    hooks = {name: [part.strip() for part in arguments.split(",")] for name, arguments in shown}
    for member in interface.members(base):
        for signature in interface.signatures(f"{base}.{member}") if member[0] != "_" else ():
            hooks[member] = list(signature.names)
    return hooks


@pytest.mark.parametrize("double", DOUBLED, ids=lambda double: double.__name__)
def test_the_double_has_nothing_that_is_not_real(double: type, rtx: Interface) -> None:
    name = double.__name__
    assert rtx.has(name)
    hooks = documented_hooks(rtx, name) if name in _HOOKED else {}
    if issubclass(double, Enum):
        assert [member for member in double.__members__ if not rtx.has(f"{name}.{member}")] == []
        return
    for member, value in vars(double).items():
        if member.startswith("_") or member == "model" or member in hooks:
            continue
        assert rtx.has(f"{name}.{member}"), member
        if inspect.isfunction(value):
            wanted = list(inspect.signature(value).parameters)[1:]
            real = rtx.signatures(f"{name}.{member}")
            assert any(set(wanted) <= set(each.names) and each.required <= len(wanted) for each in real), (
                member
            )


@pytest.mark.parametrize("hooked", ["IOutputAllocator", "ILogger"])
def test_the_double_calls_back_as_documented(hooked: str, rtx: Interface) -> None:
    for name, parameters in documented_hooks(rtx, hooked).items():
        ours = list(inspect.signature(getattr(getattr(doubles, hooked), name)).parameters)[1:]
        assert len(ours) == len(parameters), name


def test_the_double_has_the_values_of_the_real_enumerations() -> None:
    import tensorrt_rtx

    for double in DOUBLED:
        if issubclass(double, Enum):
            real = getattr(tensorrt_rtx, double.__name__)
            assert {name: int(getattr(real, name)) for name in double.__members__} == {
                name: int(member) for name, member in double.__members__.items()
            }
