"""Files of every kind, changed at random: read or refused in words, in bounded time and memory.

The examples are the same in every run; ``TRTFLEET_FUZZ_EXAMPLES=5000`` takes more and other ones.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .mutations import Hostile, changed_bytes, changed_json, resealed
from .sandbox import Sandbox
from .seeds import seeds_of

MORE = int(os.environ.get("TRTFLEET_FUZZ_EXAMPLES", "0"))
CORPUS = Path(__file__).with_name("corpus")
BINARY = ["parquet", "arrow", "arrows", "image", "onnx"]
JSON = ["manifest", "batch_size", "lease", "pending", "table", "program", "job", "commit", "run", "success"]
CASES = sorted(path for path in CORPUS.glob("*/*") if path.is_file())

fuzzing = settings(
    max_examples=MORE or 100,
    derandomize=not MORE,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """The process that the inputs go to."""
    box = Sandbox()
    yield box
    box.close()


def check(sandbox: Sandbox, target: str, data: bytes) -> None:
    """Holds that an input does no harm; one that does is kept for the corpus."""
    verdict = sandbox.run(target, data)
    if not verdict.is_fine:
        kept = Path(tempfile.gettempdir()) / f"hostile-{target}"
        kept.write_bytes(data)
        pytest.fail(f"{kept}: {verdict.fact}")


@pytest.mark.parametrize("target", [*BINARY, "spec", *JSON])
def test_good_files_are_read(target: str, sandbox: Sandbox) -> None:
    for seed in seeds_of(target):
        verdict = sandbox.run(target, seed)
        assert verdict.ended == "accepted", verdict.fact


@pytest.mark.parametrize("target", [*BINARY, "spec", *JSON])
def test_changed_bytes(target: str, sandbox: Sandbox) -> None:
    @fuzzing
    @given(changed_bytes(seeds_of(target)))
    def hold(data: Hostile) -> None:
        check(sandbox, target, data)

    hold()


@pytest.mark.parametrize("target", JSON)
def test_changed_values(target: str, sandbox: Sandbox) -> None:
    @fuzzing
    @given(changed_json(seeds_of(target)).map(resealed if target == "manifest" else lambda data: data))
    def hold(data: Hostile) -> None:
        check(sandbox, target, data)

    hold()


@pytest.mark.parametrize("target", ["spec", "program", "table", "statistics", "image", "onnx"])
def test_any_bytes(target: str, sandbox: Sandbox) -> None:
    @fuzzing
    @given(st.binary(max_size=200).map(Hostile))
    def hold(data: Hostile) -> None:
        check(sandbox, target, data)

    hold()


@pytest.mark.parametrize("path", CASES, ids=[f"{path.parent.name}/{path.name}" for path in CASES])
def test_what_once_broke_something(path: Path, sandbox: Sandbox) -> None:
    check(sandbox, path.parent.name, path.read_bytes())
