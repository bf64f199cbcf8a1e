"""The layers as the source shows them: jobs -> cluster -> trt_actors -> datasets -> errors."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
LAYERS = ("jobs", "cluster", "trt_actors", "datasets")
MODULES = sorted(path for layer in LAYERS for path in (REPOSITORY / layer).rglob("*.py"))
GPU_LIBRARIES = ("tensorrt", "tensorrt_rtx", "pycuda", "cupy", "torch", "cuda")


@functools.cache
def imports(path: Path) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """The import statements of a file, wherever in it."""
    nodes = ast.walk(ast.parse(path.read_bytes()))
    return tuple(node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))


def imported(path: Path) -> Iterator[str]:
    """The full names of the modules that a file imports."""
    package = ["trtfleet", *path.relative_to(REPOSITORY).parent.parts]
    for node in imports(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.module else base
            # ``from .. import x`` may name a module; ``from ..x import y`` never has to.
            yield from (
                ".".join([*module, alias.name] if not node.module else module) for alias in node.names
            )


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def run_python(source: str) -> subprocess.CompletedProcess[str]:
    # Somewhere else, so that nothing is found only because it lies in the working folder.
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        capture_output=True,
        text=True,
        cwd=os.sep,
        timeout=120,
        check=False,
    )


def test_there_is_something_to_look_at() -> None:
    assert {path.relative_to(REPOSITORY).parts[0] for path in MODULES} == set(LAYERS)
    assert "trtfleet.datasets.storage" in set(imported(REPOSITORY / "jobs" / "plan.py"))
    assert "ray" in set(imported(REPOSITORY / "cluster" / "session.py"))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    layer = path.relative_to(REPOSITORY).parts[0]
    allowed = (*LAYERS[LAYERS.index(layer) :], "errors", "__version__")
    own = [name.split(".") for name in imported(path) if name.split(".")[0] == "trtfleet"]
    assert [name for name in own if len(name) > 1 and name[1] not in allowed] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_own_modules_are_imported_relatively(path: Path) -> None:
    names = [
        alias.name if isinstance(node, ast.Import) else node.module or ""
        for node in imports(path)
        if isinstance(node, ast.Import) or not node.level
        for alias in node.names
    ]
    own = ("trtfleet", *LAYERS, "errors")
    assert [name for name in names if name.split(".")[0] in own] == []


def test_errors_import_nothing_of_ours() -> None:
    assert [name for name in imported(REPOSITORY / "errors.py") if name.startswith("trtfleet")] == []


@pytest.mark.parametrize(
    ("library", "places"),
    [
        ("ray", ("cluster/", "trt_actors/actor.py")),
        (
            "onnxruntime",
            (
                "trt_actors/onnxruntime_engine.py",
                "trt_actors/reference.py",
                "trt_actors/runtime/onnxruntime_runner.py",
                "trt_actors/building/half.py",
                "trt_actors/calibration/session.py",
            ),
        ),
        ("pycuda", ("trt_actors/runtime/cuda.py",)),
        ("obstore", ("datasets/storage.py",)),
        ("click", ("jobs/cli.py", "jobs/commands/")),
        ("rich", ("jobs/progress.py",)),
        ("yaml", ("jobs/plain_yaml.py", "jobs/spec.py")),
    ],
)
def test_heavy_libraries_have_few_places(library: str, places: tuple[str, ...]) -> None:
    users = [name_of(path) for path in MODULES if library in {name.split(".")[0] for name in imported(path)}]
    assert users
    assert [user for user in users if not user.startswith(places)] == []


def test_no_layer_is_a_package_of_its_own() -> None:
    # A regular package here would hide an installed ``datasets`` from workers started in the checkout.
    assert [name_of(path) for layer in LAYERS for path in (REPOSITORY / layer).rglob("__init__.py")] == []


def test_every_module_imports_without_gpu_libraries() -> None:
    names = ["trtfleet", "trtfleet.errors"]
    names += ["trtfleet." + ".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in MODULES]
    done = run_python(f"""
import importlib, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {GPU_LIBRARIES!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
for name in {names!r}:
    importlib.import_module(name)
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_package_itself_is_light() -> None:
    done = run_python("""
import sys
import trtfleet, trtfleet.errors
assert callable(trtfleet.score) and trtfleet.__version__
heavy = {"ray", "pyarrow", "onnxruntime", "onnx", "numpy", "obstore", "rich", "click", "yaml", "PIL"}
print(sorted(heavy & set(sys.modules)))
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
