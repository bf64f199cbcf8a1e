"""The calibration benchmark runs each way on all rows, and says when one fails."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ROWS = 20


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The benchmark's main module, which finds the others by the script's folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module("calibrate_vs_peers")
    for name in set(sys.modules) - before:
        if (BENCHMARKS / f"{name}.py").exists():
            del sys.modules[name]


def test_every_way_takes_all_rows(tmp_path: Path) -> None:
    script = [sys.executable, str(BENCHMARKS / "calibrate_vs_peers.py"), "--quick"]
    sizes = ["--rows", str(ROWS), "--side", "32", "--batch-rows", "8", "--chunk-gib", "0.001"]
    places = ["--work", str(tmp_path / "work"), "--json", str(tmp_path / "found.json")]
    done = subprocess.run(
        [*script, *sizes, *places], capture_output=True, text=True, timeout=200, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    ways = json.loads((tmp_path / "found.json").read_text())["ways"]
    assert [way["error"] for way in ways.values()] == [""] * 7
    assert {run["rows"] for way in ways.values() for run in way["runs"]} == {ROWS}
    tensors = {name: way["runs"][0]["tensors"] for name, way in ways.items()}
    ours = [count for name, count in tensors.items() if name.startswith("trtfleet")]
    assert ours == [ours[0]] * 3
    assert tensors["ONNX Runtime, entropy, only the tensors that trtfleet observes"] == ours[0]
    assert tensors["ONNX Runtime, entropy"] > ours[0]
    assert "not the full size" in done.stdout


def test_a_way_that_fails_is_a_row_of_the_table(bench: ModuleType, tmp_path: Path) -> None:
    case = bench.CalibrationCase(
        model=tmp_path / "none.onnx",
        files=(tmp_path / "none.parquet",),
        rows=1,
        batch_rows=1,
        device="cpu",
        chunk_bytes=1,
    )
    failed: dict[str, object] = {"runs": [], "error": ""}
    bench._take_turn(bench.ACTORS, failed, case, 60.0)
    assert "none.onnx" in str(failed["error"])
    good = {"runs": [{"rows": 9, "seconds": 3.0, "tensors": 2, "peak_bytes": 1 << 30}], "error": ""}
    results = {
        "machine": bench.facts_of_machine(),
        "network": "n",
        "rows": 9,
        "side": 8,
        "batch_rows": 4,
        "device": "cpu",
        "is_full_size": True,
        "ways": {bench.ACTORS: failed, bench.JOB: good, bench.ENTROPY: good},
    }
    lines = bench.lines_of(results)
    assert f"| {bench.JOB} | 3.0 | 3.0 to 3.0 | 3.0 | 2 | 1.00 | 1.0 |" in lines
    assert any(line.startswith(f"| {bench.ACTORS} | failed: ") for line in lines)
    assert any("1.00 x, goal >= 3 x: MISSED" in line for line in lines)
    assert any("nothing to compare" in line for line in lines)
