"""Whole sweeps on a real Ray cluster, on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
from trtfleet.errors import FingerprintError, OutputError
from trtfleet.jobs.sweep.job import SweepSummary, run_sweep
from trtfleet.jobs.sweep.spec import SweepSpec
from trtfleet.tests.jobs.conftest import Ran

pytestmark = pytest.mark.usefixtures("ray_session")

QUICK = {"repeats": 1, "runs": 10, "seconds": 0.02, "warm_up_s": 0.1, "cpus_per_actor": 1}


def sweep(model: Path, out: Path, **options: Any) -> SweepSummary:
    return run_sweep(SweepSpec.of({"models": (model,), "out": out, **QUICK, **options}))


def commits(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("_trtfleet/g0001/commits/*.json")}


def test_every_combination_is_a_row(linear_model: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = sweep(linear_model(), out, batch_sizes="1,4", actors="1,2")
    assert summary.failed == []
    table = pq.read_table(out / "results.parquet")
    settings = [(row["batch_size"], row["actors"]) for row in table.to_pylist()]
    assert settings == [(1, 1), (4, 1), (1, 2), (4, 2)]
    assert all(row["host_p50_ms"] > 0 and row["rows_per_s"] > 0 for row in table.to_pylist())
    assert pc.read_csv(out / "results.csv").column_names == table.column_names
    assert (out / "report.html").stat().st_size > 5000


def test_trials_that_fail_are_rows_and_the_others_go_on(
    linear_model: Callable[..., Path], tmp_path: Path
) -> None:
    summary = sweep(
        linear_model(batch=4),
        tmp_path / "out",
        batch_sizes="4,5",
        backends="onnxruntime-cpu,tensorrt",
        actors="1,9",
    )
    errors = {
        (r.trial.batch_size, r.trial.backend, r.trial.actors): r.found.error or "" for r in summary.rows
    }
    assert errors.pop((4, "onnxruntime-cpu", 1)) == ""
    assert errors[4, "tensorrt", 1] == "the cluster has no GPU, which tensorrt needs"
    assert errors[5, "onnxruntime-cpu", 1] == "batch size 5 exceeds the model's fixed batch size 4"
    assert errors[4, "onnxruntime-cpu", 9].startswith("9 actors need 9 CPUs of one node, the largest has ")
    assert all(errors.values())


def test_a_trial_that_takes_too_long_is_a_row(linear_model: Callable[..., Path], tmp_path: Path) -> None:
    summary = sweep(linear_model(), tmp_path / "out", batch_sizes="1", timeout_s=0.0)
    assert [row.found.error for row in summary.rows] == ["it took more than 0 s"]


def test_a_finished_sweep_is_not_measured_again(linear_model: Callable[..., Path], tmp_path: Path) -> None:
    model, out = linear_model(), tmp_path / "out"
    first = sweep(model, out, batch_sizes="1,2")
    before = commits(out)
    again = sweep(model, out, batch_sizes="1,2")
    assert again.rows == first.rows
    assert again.before == 2
    assert commits(out) == before
    afresh = sweep(model, out, batch_sizes="1,2", overwrite=True)
    assert afresh.before == 0
    assert afresh.rows != first.rows


def test_only_what_is_missing_is_measured(linear_model: Callable[..., Path], tmp_path: Path) -> None:
    model, out = linear_model(), tmp_path / "out"
    first = sweep(model, out, batch_sizes="1,2,3")
    lost = out / "_trtfleet" / "g0001" / "commits" / f"{first.rows[1].trial.key}-0.json"
    lost.unlink()
    again = sweep(model, out, batch_sizes="1,2,3")
    assert again.before == 2
    same = [one == other for one, other in zip(first.rows, again.rows, strict=True)]
    assert same == [True, False, True]


def test_repeats_are_one_row(linear_model: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = sweep(linear_model(), out, batch_sizes="1,2", repeats=2)
    assert len(commits(out)) == 4
    assert [row.trial.batch_size for row in summary.rows] == [1, 2]
    assert all((row.found.latency_runs or 0) >= 20 for row in summary.rows)


def test_a_dataset_is_scored_and_a_baseline_that_is_not_there_is_a_row(
    linear_model: Callable[..., Path], vectors: Callable[..., Path], tmp_path: Path
) -> None:
    summary = sweep(
        linear_model(),
        tmp_path / "out",
        data=vectors(),
        batch_sizes="8",
        backends="onnxruntime-cpu",
        baseline="torch",
        torch="no_such_module:make",
    )
    scored, torch = (row.found for row in summary.rows)
    assert (scored.error, scored.bad_rows) == (None, 0)
    assert scored.host_p50_ms is not None
    assert scored.rows_per_s is not None
    # Without PyTorch it fails for that, with it for the module.
    assert torch.error is not None
    assert "torch is not available" in torch.error or "no_such_module" in torch.error


def test_another_sweep_in_the_same_place_is_refused(
    linear_model: Callable[..., Path], tmp_path: Path
) -> None:
    model, out = linear_model(), tmp_path / "out"
    sweep(model, out, batch_sizes="1")
    with pytest.raises(FingerprintError, match=r"batch_sizes was \[1\], now \[2\]"):
        sweep(model, out, batch_sizes="2")


def test_the_earlier_sweep_is_looked_for_before_anything_runs(
    linear_model: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match=r"holds no results.parquet"):
        sweep(linear_model(), tmp_path / "out", compare=tmp_path / "old")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_tables_and_what_changed(
    linear_model: Callable[..., Path], tmp_path: Path, command: Callable[..., Ran]
) -> None:
    flags = ["--batch-sizes", "1,2", "--runs", "10", "--seconds", "0.02", "--warm-up", "0.1"]
    flags += ["--cpus-per-actor", "1", "--repeats", "2", "--backends", "onnxruntime-cpu", "--mode", "latency"]
    model = linear_model()
    ran = command("sweep", model, "-o", tmp_path / "old", *flags)
    assert ran.code == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0] == "cpu, fp32, onnxruntime-cpu: median ms a batch, host to host"
    assert lines[2].startswith("  linear.onnx  ")
    assert "[4/4] linear.onnx, fp32, onnxruntime-cpu, cpu, batch 2: " in ran.stderr
    ran = command("sweep", model, "-o", tmp_path / "new", *flags, "--compare", tmp_path / "old", "--json")
    assert ran.code == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert [trial["batch_size"] for trial in found["trials"]] == [1, 2]
    assert {change["metric"] for change in found["changes"]} == {"host_p50_ms", "engine_p50_ms"}
    assert "id='changes'" in (tmp_path / "new" / "report.html").read_text()
