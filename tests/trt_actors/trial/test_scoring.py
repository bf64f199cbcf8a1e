"""Throughput on a dataset, in real processes on this machine's CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trtfleet.tests.trt_actors.conftest import PlannedJob
from trtfleet.trt_actors.trial.context import Window
from trtfleet.trt_actors.trial.host import TrialHost, run_trial
from trtfleet.trt_actors.trial.scoring import Scoring
from trtfleet.trt_actors.trial.task import HostTask, Measure, Measurement, Order, Rows

QUICK = Measure(mode="throughput", runs=20, seconds=0.05, warm_up_s=0.2, timeout_s=60)


def order_of(job: PlannedJob, **changes: Any) -> Order:
    order = Order(
        network=job.task.network,
        settings=job.task.tensorrt,
        backend="onnxruntime-cpu",
        batch_size=16,
        row_shapes={},
        measure=QUICK,
        rows=Rows(feeding=job.task, shards=tuple(job.shards)),
    )
    return replace(order, **changes)


def run(job: PlannedJob, **changes: Any) -> Measurement:
    return run_trial(order_of(job, **changes), [])


@pytest.fixture
def job(
    planned: Callable[..., PlannedJob], linear_model: Callable[..., Path], vectors: Callable[..., Path]
) -> Callable[..., PlannedJob]:
    """Plans a job over a thousand rows in ten shards."""

    def plan(**options: Any) -> PlannedJob:
        return planned(linear_model(), vectors(), shard_bytes=2000, input={"x": "x"}, **options)

    return plan


def test_rows_are_scored_again_and_again(job: Callable[..., PlannedJob]) -> None:
    found = run(job(), measure=replace(QUICK, runs=200))
    assert found.error is None
    assert found.executed == "onnxruntime-cpu"
    assert found.rows_per_s_low is not None
    assert found.rows_per_s is not None
    assert 0 < found.rows_per_s_low <= found.rows_per_s
    assert (found.bad_rows, found.host_p50_ms, found.latency_runs) == (0, None, None)


def test_contexts_and_actors_share_the_rows(job: Callable[..., PlannedJob]) -> None:
    found = run(job(), contexts=2, actors=2)
    assert found.error is None
    assert found.rows_per_s is not None


def test_latency_is_that_of_synthetic_batches(job: Callable[..., PlannedJob]) -> None:
    found = run(job(), measure=replace(QUICK, mode="both"), row_shapes={"x": (4,)})
    assert found.error is None
    assert found.host_p50_ms is not None
    assert found.rows_per_s is not None
    assert found.latency_runs is not None
    assert found.latency_runs >= 20


def test_bad_rows_are_counted_and_are_no_part_of_the_rate(
    job: Callable[..., PlannedJob], hook: Callable[[str], str]
) -> None:
    name = hook(
        """
def pre(batch):
    if 0 in batch["id"].to_pylist():
        raise ValueError("no such row")
    return batch
"""
    )
    found = run(job(preprocess=f"{name}:pre"), measure=replace(QUICK, runs=200))
    assert found.error is None
    assert found.bad_rows is not None
    assert found.bad_rows >= 1


def test_a_dataset_without_a_good_row_is_the_trials_error(
    job: Callable[..., PlannedJob], hook: Callable[[str], str]
) -> None:
    name = hook("def pre(batch):\n    raise ValueError('no such row')\n")
    found = run(job(preprocess=f"{name}:pre"))
    assert found.error is not None
    assert found.error.startswith("none of the dataset's ")


def test_a_process_that_dies_is_the_trials_error(
    job: Callable[..., PlannedJob], hook: Callable[[str], str]
) -> None:
    name = hook("import os\ndef pre(batch):\n    os._exit(5)\n")
    found = run(job(preprocess=f"{name}:pre"))
    assert found.error is not None
    assert found.error.startswith("its process ended with exit code 5")


def test_what_a_process_logged_is_in_the_actors_log_even_if_it_died(
    job: Callable[..., PlannedJob], hook: Callable[[str], str], capfd: pytest.CaptureFixture[str]
) -> None:
    name = hook(
        """
import logging, os
def pre(batch):
    logging.getLogger("trtfleet.hook").warning("here it ends")
    os._exit(5)
"""
    )
    order = order_of(job(preprocess=f"{name}:pre"), name="t-0")
    host = TrialHost(HostTask(run="r1", log_format="json"))
    host.run(order)
    events = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    ready, started, *logged, failed = events
    assert (ready["event"], started["event"], failed["event"]) == (
        *("host_ready", "attempt_started", "attempt_failed"),
    )
    assert {(event["event"], event["message"], event["level"]) for event in logged} == {
        ("log", "here it ends", "warning")
    }
    assert {event["run"] for event in events} == {"r1"}
    assert {event["trial"] for event in events[1:]} == {"t-0"}
    assert failed["pid"] == host.info.pid != logged[0]["pid"]
    assert started["time"] <= logged[0]["time"] <= failed["time"]
    assert failed["reason"].startswith("its process ended with exit code 5")


def test_results_are_written_and_do_not_pile_up(job: Callable[..., PlannedJob], tmp_path: Path) -> None:
    scoring = Scoring(order_of(job()), 0, tmp_path)
    scoring.open()
    assert scoring.warm_up(0.2).runs > 0
    window = Window()
    with ThreadPoolExecutor(1) as thread:
        measuring = thread.submit(scoring.throughput, window)
        assert window.has_enough.wait(60)
        window.end()
        ends_s, rows = measuring.result()
    scoring.close()
    assert np.all(np.diff(ends_s) > 0)
    assert rows.sum() >= 20 * 16
    assert list(tmp_path.glob("scored-0/_trtfleet/g0001/commits/*.json")) != []
    assert list(tmp_path.glob("scored-0/_trtfleet/g0001/parts/*.parquet")) == []
