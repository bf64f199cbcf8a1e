"""The GPU benchmark runs on a machine without one, says so, and notices what goes wrong."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trtfleet.jobs.network import fit
from trtfleet.jobs.spec import ScoreSpec
from trtfleet.trt_actors.model import load_model

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PARTS = ("bench", "data", "engine", "explore", "goals", "images", "isolate", "networks")
PARTS += ("peers", "report", "runs", "scale", "table", "torch", "watch")
MODULES = ("models", "workloads", "peers", "report", *(f"gpu_{part}" for part in PARTS))
WORKLOADS = ("images", "table", "tensor", "jpeg", "two_actors", "latency", "explore")
DISTINCT = 32

HELPERS = """
import os, time

def answer(items):
    for item in items:
        if item == "raise":
            raise ValueError("no such luck")
        if item == "die":
            os._exit(3)
        if item == "hang":
            time.sleep(600)
        yield item.upper()
"""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The benchmark's modules, which find each other by the script's folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield {name.removeprefix("gpu_"): importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A generator function that a new process can import."""
    (tmp_path / "gpu_helpers.py").write_text(HELPERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("gpu_helpers").answer
    sys.modules.pop("gpu_helpers", None)


def run_script(folder: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    script = [sys.executable, str(BENCHMARKS / "score_gpu.py"), "--quick", "--device", "cpu"]
    places = ["--work", str(folder / "work"), "--json", str(folder / "found.json")]
    done = subprocess.run(
        [*script, *places, *options], capture_output=True, text=True, timeout=220, cwd=folder, check=False
    )
    return done, json.loads((folder / "found.json").read_text())


def write(folder: Path, ids: np.ndarray, classes: np.ndarray) -> Path:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(classes.reshape(-1)), classes.shape[1])
    folder.mkdir()
    pq.write_table(pa.table({"id": ids, "logits_topk_indices": lists}), folder / "part.parquet")
    return folder


def test_every_workload_runs_without_a_gpu(tmp_path: Path) -> None:
    done, found = run_script(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    workloads = found["workloads"]
    assert tuple(workloads) == WORKLOADS
    assert not any(entry.get("error") for entry in workloads.values())
    for name in ("images", "tensor", "jpeg", "two_actors"):
        assert {row["rows"] for row in workloads[name]["runs"]} <= {DISTINCT, 2 * DISTINCT}
    assert {row["layout"] for row in workloads["table"]["runs"]} == {"columns", "binary", "list"}
    runs = [row for entry in workloads.values() for row in entry.get("runs", [])]
    assert all(row["account"]["adds_up"] for row in runs)
    assert all(row["rows_per_s"] > row["rows_per_s_in_all"] > 0 for row in runs)
    assert all(row["summary"]["backend"] == "onnxruntime-cpu" for row in runs)
    peers = workloads["images"]["peers"]
    assert {row["name"].split(",")[0] for row in peers} == {"plain loop", "Ray Data"}
    assert {row["agreement"] for row in [*peers, *workloads["tensor"]["runs"]]} == {1.0}
    assert {row["error"] for row in workloads["latency"]["latencies"]} == {"no GPU"}
    assert {goal["is_met"] for goal in found["goals"] if goal["unit"]} == {None}
    for name in WORKLOADS[:5]:
        assert f"| {name} | trtfleet, " in done.stdout
    assert "| explore | PyTorch eager, channels-last | no GPU |" in done.stdout
    assert "| ResNet-50 | no GPU |" in done.stdout
    assert "images: trtfleet by the engine alone: " in done.stdout
    assert not list((tmp_path / "work").glob("out-*"))


def test_what_does_not_fit_into_the_budget_is_left_out_and_told(tmp_path: Path) -> None:
    done, found = run_script(tmp_path, "--only", "explore", "--budget-s", "0.001")
    rows = [row for row in found["workloads"]["explore"]["engine_only"] if row["error"] != "no GPU"]
    assert [row["error"] for row in rows] == ["no time left"] * 3
    assert "| explore | ONNX Runtime, defaults | no time left |" in done.stdout


def test_results_of_several_runs_are_shown_together(tmp_path: Path) -> None:
    parts = []
    for name in ("latency", "explore"):
        (tmp_path / name).mkdir()
        run_script(tmp_path / name, "--only", name)
        parts += ["--show", str(tmp_path / name / "found.json")]
    shown = subprocess.run(
        [sys.executable, str(BENCHMARKS / "score_gpu.py"), *parts],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert "| ResNet-50 | no GPU |" in shown.stdout
    assert "| explore | ONNX Runtime, defaults | " in shown.stdout


def test_the_others_get_the_network_that_trtfleet_makes(tmp_path: Path, load: dict[str, ModuleType]) -> None:
    networks, data = load["networks"], load["data"]
    scale = load["scale"].Scale.of("cpu", quick=True)
    model, prepared = networks.network(scale, tmp_path), networks.prepared(scale, tmp_path)
    onnx.checker.check_model(str(prepared))
    datasets = [data.images(scale, tmp_path, layout, 2) for layout in ("binary", "tensor")]
    for files in (*datasets, data.jpegs(scale, tmp_path, 2)):
        assert pq.read_table(list(files)).num_rows == 2 * scale.distinct
        spec = ScoreSpec(
            model=str(model),
            data=("unused",),
            out="unused",
            keep=("id",),
            normalize=networks.NORMALIZE,
            emit=networks.EMIT,
            precision=networks.PRECISION,
            batch_size=scale.batch_rows,
        )
        fitted = fit(spec, load_model(model), pq.read_schema(files[0]))
        assert fitted.network.model_bytes == prepared.read_bytes()


def test_raw_images_are_the_same_in_both_layouts(tmp_path: Path, load: dict[str, ModuleType]) -> None:
    scale = load["scale"].Scale.of("cpu", quick=True)
    binary, tensor = (
        pq.read_table(load["data"].images(scale, tmp_path, layout, 1))["image"].combine_chunks()
        for layout in ("binary", "tensor")
    )
    assert b"".join(binary.to_pylist()) == tensor.to_numpy_ndarray().tobytes()


def test_full_sizes_are_those_the_goals_speak_of(load: dict[str, ModuleType]) -> None:
    scale = load["scale"].Scale.of("cuda", quick=False)
    assert scale.is_full
    assert min(scale.copies, scale.slow_copies) * scale.distinct >= 20_000
    assert scale.table_copies * scale.table_rows == 10_000_000
    assert not load["scale"].Scale.of("cuda", quick=True).is_full


def test_an_item_that_breaks_its_process_costs_only_itself(load: dict[str, ModuleType], answer: Any) -> None:
    items = ["a", "raise", "b", "die", "c"]
    found = list(load["isolate"].each_apart(answer, items, limit_s=120))
    assert found == [
        ("a", "A", ""),
        ("raise", None, "ValueError: no such luck"),
        ("b", "B", ""),
        ("die", None, "the process ended with exit code 3"),
        ("c", "C", ""),
    ]


def test_an_item_that_hangs_is_given_up(load: dict[str, ModuleType], answer: Any) -> None:
    found = list(load["isolate"].each_apart(answer, ["hang", "a"], limit_s=120, each_s=5))
    assert found == [("hang", None, "stopped after 5.0 s"), ("a", "A", "")]


def test_work_in_this_process_is_stopped_when_its_time_is_up(load: dict[str, ModuleType]) -> None:
    with pytest.raises(TimeoutError, match="not finished after 0 s"), load["isolate"].limited(0.2):
        time.sleep(30)


def test_a_failed_measurement_is_a_row_and_is_kept(tmp_path: Path, load: dict[str, ModuleType]) -> None:
    bench = load["bench"].Bench(
        scale=load["scale"].Scale.of("cpu", quick=True),
        work=tmp_path,
        json=tmp_path / "found.json",
        end_s=time.monotonic() + 600,
    )
    rows = bench.results.setdefault("rows", [])

    def fail() -> None:
        raise RuntimeError("no such\nluck")

    assert bench.measure(rows, "broken", 60, fail) is None
    assert json.loads(bench.json.read_text()) == {
        "rows": [{"name": "broken", "error": "RuntimeError: no such luck"}]
    }


def test_memory_of_a_process_is_seen(load: dict[str, ModuleType]) -> None:
    size_bytes = 64 << 20
    script = f"held = b'x' * {size_bytes}; print('ready', flush=True); input()"
    title = os.fsencode(sys.executable) + b"\0-c\0held ="
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with load["watch"].Watch(title) as watch:
            while not watch.memory()["processes"]:
                time.sleep(0.05)
        process.communicate("\n")
    found = watch.memory()
    assert found["processes"] == 1
    assert found["resident_bytes"] >= found["anonymous_bytes"] >= size_bytes


def test_missing_doubled_and_disordered_rows_are_noticed(tmp_path: Path, load: dict[str, ModuleType]) -> None:
    best_classes = load["runs"].best_classes
    ids, classes = np.tile(np.arange(3), 2), np.arange(12).reshape(6, 2)
    found = best_classes(write(tmp_path / "right", ids, classes), 3, 2, is_ordered=True)
    assert found.tolist() == [[0, 6], [2, 8], [4, 10]]
    turned = write(tmp_path / "turned", ids[::-1], classes)
    assert best_classes(turned, 3, 2, is_ordered=False).shape == (3, 2)
    with pytest.raises(ValueError, match="not in the dataset's order"):
        best_classes(turned, 3, 2, is_ordered=True)
    with pytest.raises(ValueError, match="5 rows were written instead of 6"):
        best_classes(write(tmp_path / "fewer", ids[:5], classes[:5]), 3, 2, is_ordered=False)
    with pytest.raises(ValueError, match="twice"):
        best_classes(write(tmp_path / "twice", np.array([0, 0, 0, 1, 2, 2]), classes), 3, 2, is_ordered=False)


def test_goals_are_judged_on_a_gpu_at_full_size_only(load: dict[str, ModuleType]) -> None:
    def run(rate: float) -> dict[str, Any]:
        return {
            "name": "trtfleet, 1 actor",
            "rows_per_s": rate,
            "memory": {"resident_bytes": 5 << 30},
            "account": {"adds_up": False},
            "agreement": 1.0,
            "words": ["reading was the limit: the engine starved"],
        }

    images = {
        "engine_rows_per_s": 100.0,
        "runs": [run(rate) for rate in (90.0, 98.0, 99.0)],
        "peers": [{"name": "Ray Data, fed", "rows_per_s": 11.0, "agreement": 0.5}],
    }
    tensor = {"engine_rows_per_s": 100.0, "runs": [run(70.0)]}
    latency = {
        "latencies": [
            {"name": "ResNet-50", "goals": {"1": 3.5}, "ms": {"1": {"PyTorch eager, TF32": 8.0, "TF32": 2.0}}}
        ]
    }
    latency["latencies"][0]["ms"]["1"]["PyTorch eager, no TF32"] = 9.0
    results = {
        "options": {"is_full": True, "device": "cuda"},
        "workloads": {"images": images, "tensor": tensor, "latency": latency},
    }
    goals_of = load["goals"].goals_of
    verdicts = [(round(goal["value"], 2), goal["is_met"]) for goal in goals_of(results)]
    assert verdicts == [
        *((0.98, True), (8.91, False)),
        *((0.7, True), (1.0, True)),
        *((5.0, False), (0.0, False), (0.5, False)),
        (4.0, True),
    ]
    results["options"]["is_full"] = False
    assert [goal["is_met"] for goal in goals_of(results) if goal["unit"]] == [None] * 5


def test_the_engine_is_measured_in_each_setting(tmp_path: Path, load: dict[str, ModuleType]) -> None:
    engine = load["engine"]
    scale = load["scale"].Scale.of("cpu", quick=True)
    model = load["networks"].prepared(scale, tmp_path)
    variants = [engine.Variant(name=level, level=level) for level in ("all", "none")]
    found = list(engine.engine_rates(variants, {"": str(model)}, "cpu", scale.batch_rows, 0.01))
    assert len(found) == 2
    assert all(row["rows_per_s"] > 0 and len(row["rates"]) == engine.WINDOWS for row in found)
