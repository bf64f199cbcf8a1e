"""What the product's code does not do: run text, unpickle files, start shells."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    path for folder in ("jobs", "cluster", "trt_actors", "datasets") for path in (ROOT / folder).rglob("*.py")
)

FORBIDDEN = {"eval", "exec", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load"}
UNPICKLING = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads"),
    *("torch.load", "joblib.load", "dill.loads", "cloudpickle.loads"),
}

# The child of a trial gets its order from its parent, in a folder that the parent made for it alone; the
# table of commits reads back what the same process keeps in its own memory.
UNPICKLES = {"jobs/commit_table.py", "trt_actors/trial/child.py"}


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call of the product: its file, what is called, and the call."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield str(path.relative_to(ROOT)), name_of(node.func), node


CALLS = list(calls())


def test_there_is_something_to_look_at() -> None:
    assert len(CALLS) > 5000


def test_no_text_is_run() -> None:
    assert [(path, name) for path, name, _ in CALLS if name in FORBIDDEN] == []


def test_no_file_is_unpickled() -> None:
    assert {path for path, name, _ in CALLS if name in UNPICKLING} <= UNPICKLES
    keywords = [(path, word.arg) for path, _, call in CALLS for word in call.keywords]
    assert [path for path, word in keywords if word == "allow_pickle"] == []


def test_no_shell_is_started() -> None:
    for path, name, call in CALLS:
        for word in call.keywords:
            assert word.arg != "shell", f"{path}: {name}"
    assert [path for path, name, _ in CALLS if name.startswith("subprocess.getoutput")] == []


def test_yaml_is_read_by_a_safe_loader_alone() -> None:
    assert {path for path, name, _ in CALLS if name == "yaml.load"} == {"jobs/plain_yaml.py"}


def test_modules_are_imported_by_name_for_hooks_alone() -> None:
    users = {path for path, name, _ in CALLS if name in ("importlib.import_module", "__import__")}
    # A hook is named on the command line or in the user's own job file; the others are fixed names.
    fixed = {"trt_actors/building/flavour.py", "trt_actors/runtime/nvimgcodec.py"}
    in_sweeps = {path for path in users if path.startswith(("trt_actors/trial/", "jobs/sweep"))}
    assert users - in_sweeps == {"trt_actors/hooks.py", *fixed}
