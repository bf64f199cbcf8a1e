"""Results as tables, and what two sweeps tell of a change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from trtfleet.datasets.storage import Storage
from trtfleet.errors import OutputError
from trtfleet.jobs.sweep.compare import changes, in_words
from trtfleet.jobs.sweep.grid import Trial
from trtfleet.jobs.sweep.repeats import merged
from trtfleet.jobs.sweep.results import Row, best_rows, failures, pareto_front, read_rows, write_rows
from trtfleet.jobs.sweep.tables import tables
from trtfleet.trt_actors.trial.task import Measurement

TRIAL = Trial(
    model="a.onnx",
    precision="fp32",
    backend="onnxruntime-cpu",
    batch_size=8,
    contexts=1,
    actors=1,
    device="cpu",
)


def row(p50_ms: float, noise: float = 0.01, trial: Trial = TRIAL) -> Row:
    rate = 1000 * trial.batch_size / p50_ms
    return Row(
        trial=trial,
        found=Measurement(
            executed=trial.backend,
            host_p50_ms=p50_ms,
            host_p50_low_ms=p50_ms * (1 - noise),
            host_p50_high_ms=p50_ms * (1 + noise),
            rows_per_s=rate,
            rows_per_s_low=rate * (1 - noise),
            rows_per_s_high=rate * (1 + noise),
            is_steady=True,
        ),
    )


def failed(trial: Trial = TRIAL) -> Row:
    return Row(trial=trial, found=Measurement(error="no memory"))


def verdicts(before: Row, now: Row) -> dict[str, str]:
    return {change.metric: change.verdict for change in changes([before], [now])}


def test_a_change_beyond_the_noise_is_told_for_both_numbers() -> None:
    assert verdicts(row(2.0), row(2.2)) == {"host_p50_ms": "slower", "rows_per_s": "slower"}
    assert verdicts(row(2.2), row(2.0)) == {"host_p50_ms": "faster", "rows_per_s": "faster"}


def test_a_change_within_the_noise_is_none() -> None:
    assert set(verdicts(row(2.0, noise=0.06), row(2.2, noise=0.06)).values()) == {"same"}


def test_a_change_of_two_percent_is_none_however_sure_it_is() -> None:
    assert set(verdicts(row(2.0, noise=0.0001), row(2.04, noise=0.0001)).values()) == {"same"}


def test_without_an_interval_nothing_is_said() -> None:
    unsure = row(4.0)
    unsure = replace(unsure, found=replace(unsure.found, host_p50_high_ms=None))
    found = next(change for change in changes([row(2.0)], [unsure]) if change.metric == "host_p50_ms")
    assert (found.verdict, found.noise) == ("same", None)


def test_a_trial_that_fails_now_is_a_regression() -> None:
    assert verdicts(row(2.0), failed()) == {"": "fails now"}
    assert verdicts(failed(), row(2.0)) == {"": "works now"}
    assert verdicts(failed(), failed()) == {}


def test_trials_of_one_sweep_alone_are_not_compared() -> None:
    assert changes([row(2.0)], [row(2.0, trial=replace(TRIAL, batch_size=9))]) == []


def test_regressions_come_first_in_words() -> None:
    other = replace(TRIAL, batch_size=9)
    lines = in_words(changes([row(2.0, trial=other), row(2.0)], [row(1.0, trial=other), row(3.0)]))
    assert lines[0] == (
        "slower: a.onnx, fp32, onnxruntime-cpu, cpu, batch 8: host_p50_ms 2 -> 3, +50.0%, noise ±2.0%"
    )
    assert lines[-1] == "0 of 4 numbers did not change by more than their noise"


def test_very_many_changes_are_counted() -> None:
    trials = [replace(TRIAL, batch_size=size) for size in range(1, 41)]
    lines = in_words(changes([row(1.0, trial=t) for t in trials], [row(2.0, trial=t) for t in trials]))
    assert len(lines) == 32
    assert lines[-2] == "and 50 more changes, see the report"


def test_the_table_has_models_and_batch_sizes() -> None:
    one = replace(TRIAL, batch_size=1)
    rows = [row(0.5, trial=one), row(2.0), failed(replace(one, model="longer.onnx"))]
    assert tables(rows) == [
        "cpu, fp32, onnxruntime-cpu: median ms a batch, host to host",
        "  batch             1      8",
        "  a.onnx        0.500  2.000",
        "  longer.onnx  failed",
    ]


def test_a_table_is_held_against_the_baseline_wherever_that_ran() -> None:
    fast = replace(TRIAL, backend="tensorrt", device="H100")
    lines = tables([row(3.0), row(1.5, trial=fast)], "onnxruntime-cpu")
    assert "  a.onnx  3.000" in lines
    assert "  a.onnx  1.500 (x2.00)" in lines


def test_a_sweep_of_throughput_alone_is_a_table_of_rates() -> None:
    found = row(2.0)
    found = replace(found, found=replace(found.found, host_p50_ms=None))
    assert tables([found])[0] == "cpu, fp32, onnxruntime-cpu: rows per second"
    assert tables([found])[2] == "  a.onnx  4,000"


def test_the_best_setting_has_most_rows_per_second() -> None:
    larger = replace(TRIAL, batch_size=64)
    assert [one.trial for one in best_rows([row(1.0), row(2.0, trial=larger), failed()])] == [larger]


def test_the_front_has_what_nothing_beats_in_both_numbers() -> None:
    sizes = {size: replace(TRIAL, batch_size=size) for size in (1, 2, 4, 8)}
    # Rates of 1,000, 1,000, 4,000 and 3,200 rows per second.
    rows = [row(1.0, trial=sizes[1]), row(2.0, trial=sizes[2]), row(1.0, trial=sizes[4])]
    assert pareto_front(rows) == {sizes[4]}
    assert pareto_front([*rows, row(0.5, trial=sizes[1]), row(2.5, trial=sizes[8])]) == {sizes[1], sizes[4]}


def test_every_model_and_device_has_a_front_of_its_own() -> None:
    others = [replace(TRIAL, device="H100"), replace(TRIAL, model="b.onnx")]
    rows = [row(1.0), *(row(9.0, trial=trial) for trial in others), failed(replace(TRIAL, batch_size=1))]
    assert pareto_front(rows) == {TRIAL, *others}


def test_equal_trials_are_on_the_front_together() -> None:
    other = replace(TRIAL, contexts=2)
    assert pareto_front([row(1.0), row(1.0, trial=other)]) == {TRIAL, other}


def test_results_say_what_is_on_the_front(tmp_path: Path) -> None:
    rows = [row(1.0), row(9.0, trial=replace(TRIAL, contexts=2)), failed(replace(TRIAL, actors=2))]
    write_rows(Storage(tmp_path), rows)
    assert pq.read_table(tmp_path / "results.parquet")["is_pareto"].to_pylist() == [True, False, None]


def test_failures_of_one_reason_are_told_once() -> None:
    rows = [failed(), failed(replace(TRIAL, batch_size=9)), row(1.0)]
    assert failures(rows) == [(f"{TRIAL} and 1 more", "no memory")]


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [row(1.0), failed(replace(TRIAL, model='a,"b".onnx'))]
    write_rows(Storage(tmp_path), rows)
    assert read_rows(str(tmp_path)) == rows
    assert (tmp_path / "results.csv").read_text().splitlines()[2].startswith('"a,""b"".onnx","fp32"')


def test_repeats_join_to_medians_whose_interval_holds_them_all() -> None:
    found = merged([row(p50_ms, noise=0.01).found for p50_ms in (1.0, 1.5, 1.2)])
    assert found.host_p50_ms == 1.2
    assert found.host_p50_low_ms == pytest.approx(0.99)
    assert found.host_p50_high_ms == pytest.approx(1.515)
    assert found.is_steady
    assert found.host_p99_ms is None


def test_repeats_join_their_counts_words_and_extremes() -> None:
    one = replace(row(1.0).found, latency_runs=50, temperature_c=60.0, node="a", throttled="")
    other = replace(one, temperature_c=70.0, node="b", throttled="power limit", is_steady=False)
    found = merged([one, other])
    assert (found.latency_runs, found.temperature_c, found.is_steady) == (100, 70.0, False)
    assert merged([replace(one, bad_rows=1), replace(one, bad_rows=2)]).bad_rows == 3
    assert (found.node, found.throttled, found.executed) == ("a, b", "power limit", TRIAL.backend)


def test_an_end_that_a_repeat_cannot_tell_is_unknown() -> None:
    one = row(1.0).found
    assert merged([one, replace(one, host_p50_high_ms=None)]).host_p50_high_ms is None


def test_a_repeat_that_fails_fails_the_trial() -> None:
    assert merged([row(1.0).found, failed().found]).error == "no memory"


def test_a_place_without_a_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"holds no results.parquet"):
        read_rows(str(tmp_path))
